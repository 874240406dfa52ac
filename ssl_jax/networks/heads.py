"""Small networks on single voxels' features."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from ssl_jax.networks.blocks import Conv, RowBatchNorm
from ssl_jax.types import Array


class Projection(nn.Module):
  """Linear – BatchNorm – ReLU – Linear; CAML's projection and prediction heads (§2.3) [C].

  Attributes:
    features: width of the hidden and the output layer.
  """

  features: int = 64

  @nn.compact
  def __call__(self, rows: Array, counted: Array | None = None, *, train: bool) -> Array:
    """Maps f32[m, in] to f32[m, features].

    Args:
      rows: voxel features; gradient flows here.
      counted: bool[m], the rows whose statistics BatchNorm uses; `None` is all of them.
      train: statistics of these rows instead of the running averages.
    """
    hidden = Conv(self.features, size=1, name="hidden")(rows)
    counted = jnp.ones(rows.shape[0], bool) if counted is None else counted
    return Conv(self.features, size=1, name="output")(nn.relu(RowBatchNorm(name="norm")(hidden, counted, train)))


class DistanceHead(nn.Module):
  """tanh of a convolution of size 1 on a network's last features; SASSNet's and DTC's second head [C].

  Attributes:
    maps: one for each foreground class.
    dtype: compute precision of the convolution.
  """

  maps: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, features: Array) -> Array:
    """Maps [B, *spatial, n] to f32[B, *spatial, maps] within [−1, 1]."""
    return jnp.tanh(Conv(self.maps, size=1, dtype=self.dtype, name="output")(features).astype(jnp.float32))


class TwoHeadedOutput(NamedTuple):
  """Logits f32[B, *spatial, C] and signed distances f32[B, *spatial, C − 1] of the foreground classes."""

  logits: Array
  distance: Array


class WithDistance(nn.Module):
  """A segmentation network with a second head that predicts signed distance maps; called as the network is.

  Attributes:
    network: gives logits and f4, on which the head sits.
    sdf: the head.
  """

  network: nn.Module
  sdf: nn.Module

  @nn.compact
  def __call__(self, x: Array, **settings: Any) -> TwoHeadedOutput:
    """Segments images f32[B, *spatial, channels]; `settings` are the network's."""
    out = self.network(x, **settings)
    return TwoHeadedOutput(out.logits, self.sdf(out.f4))
