"""What a method is handed instead of network classes: it asks for a part by its role, the configuration decides the rest."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ssl_jax import networks
from ssl_jax.networks.dim import DIM, CPSHead, Rectifier
from ssl_jax.networks.discriminator import Discriminator
from ssl_jax.networks.heads import DistanceHead, Projection, WithDistance
from ssl_jax.types import NetworkConfig


@dataclasses.dataclass(frozen=True)
class Networks:
  """Makes the modules of one run.

  Attributes:
    cfg: the backbone's configuration.
    num_classes: C, background included.
  """

  cfg: NetworkConfig
  num_classes: int

  @property
  def prototype_width(self) -> int:
    """F = 4n: channels of the second decoder level f2."""
    return 4 * self.cfg.width

  def backbone(self, upsample: str | None = None, **extra: Any) -> nn.Module:
    """Returns the segmentation network.

    Args:
      upsample: another decoder than the configuration's, for a second view.
      extra: further attributes of the network, such as `cma=True`.
    """
    changes: dict[str, Any] = {"upsample": upsample} if upsample else {}
    return networks.build(dataclasses.replace(self.cfg, **changes), num_classes=self.num_classes, **extra)

  def with_distance(self) -> WithDistance:
    """Returns the segmentation network with a second head for signed distance maps."""
    return WithDistance(self.backbone(), DistanceHead(self.num_classes - 1, jnp.dtype(self.cfg.dtype)))

  def discriminator(self) -> Discriminator:
    """Returns a classifier of whole predictions, of the published width 64 at n = 16."""
    return Discriminator(4 * self.cfg.width, dtype=jnp.dtype(self.cfg.dtype))

  def projection(self, features: int, **options: Any) -> Projection:
    """Returns a head on single voxels' features."""
    return Projection(features, **options)

  def dim(self, **options: Any) -> DIM:
    """Returns a Dynamic Interaction Module."""
    return DIM(dtype=jnp.dtype(self.cfg.dtype), **options)

  def rectifier(self, **options: Any) -> Rectifier:
    """Returns a rectification of predictions."""
    return Rectifier(**options)

  def cps_head(self) -> CPSHead:
    """Returns the projection of f4 to the width of the prototypes."""
    return CPSHead(self.cfg.width, self.prototype_width, jnp.dtype(self.cfg.dtype))
