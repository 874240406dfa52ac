"""Networks, found by name."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ssl_jax.networks.vnet import VNet
from ssl_jax.types import InputError, NetworkConfig, nearest

_NETWORKS: dict[str, Any] = {"vnet": VNet}
_UPSAMPLE = ("transpose", "trilinear", "nearest")
_DTYPES = ("float32", "bfloat16")


def build(cfg: NetworkConfig, *, num_classes: int) -> nn.Module:
  """Returns the network of a configuration.

  Raises:
    InputError: a value that does not exist, with the nearest one that does.
  """
  for key, value, known in (("name", cfg.name, _NETWORKS), ("upsample", cfg.upsample, _UPSAMPLE), ("dtype", cfg.dtype, _DTYPES)):
    if value not in known:
      raise InputError(f"config.network.{key}: no {value!r}; {nearest(value, known)}")
  if cfg.width < 1 or not 0 <= cfg.dropout < 1:
    raise InputError(f"config.network: needs width >= 1 and 0 <= dropout < 1, got {cfg.width} and {cfg.dropout}")
  return _NETWORKS[cfg.name](num_classes, cfg.width, cfg.upsample, cfg.dropout, jnp.dtype(cfg.dtype))
