"""Networks, found by name."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ssl_jax.networks.blocks import UPSAMPLING
from ssl_jax.networks.unet import UNet2D, UNet3D
from ssl_jax.networks.vnet import VNet
from ssl_jax.types import InputError, NetworkConfig, nearest

_NETWORKS: dict[str, Any] = {"vnet": VNet, "unet2d": UNet2D, "unet3d": UNet3D}


def build(cfg: NetworkConfig, *, num_classes: int, **extra: Any) -> nn.Module:
  """Returns the network of a configuration; `extra` are attributes that only some networks have, such as `cma`.

  Raises:
    InputError: no such network, with the nearest name there is, or a number out of range.
  """
  if cfg.name not in _NETWORKS:
    raise InputError(f"config.network.name: no {cfg.name!r}; {nearest(cfg.name, _NETWORKS)}")
  if cfg.width < 1 or not 0 <= cfg.dropout < 1:
    raise InputError(f"config.network: needs width >= 1 and 0 <= dropout < 1, got {cfg.width} and {cfg.dropout}")
  if cfg.bn_group < 0:
    raise InputError(f"config.network.bn_group: must not be negative, got {cfg.bn_group}")
  for key in extra:
    if key not in _NETWORKS[cfg.name].__dataclass_fields__:
      raise InputError(f"config.network.name: {cfg.name!r} has no {key!r}, which this method needs; use 'vnet'")
  if "further" in extra and not extra["further"]:
    raise InputError("config.method.further: needs at least one decoder beside the first")
  for mode in extra.get("further", ()):
    if mode not in UPSAMPLING:
      raise InputError(f"config.method.further: no decoder {mode!r}; {nearest(mode, UPSAMPLING)}")
  common = {key: getattr(cfg, key) for key in ("width", "upsample", "dropout", "bn_group", "remat")} | {"dtype": jnp.dtype(cfg.dtype)}
  return _NETWORKS[cfg.name](num_classes=num_classes, **common, **extra)
