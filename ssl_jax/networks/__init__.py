"""Networks, found by name."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ssl_jax.networks.vnet import VNet
from ssl_jax.types import InputError, NetworkConfig, nearest

_NETWORKS: dict[str, Any] = {"vnet": VNet}


def build(cfg: NetworkConfig, *, num_classes: int) -> nn.Module:
  """Returns the network of a configuration.

  Raises:
    InputError: no such network, with the nearest name there is, or a number out of range.
  """
  if cfg.name not in _NETWORKS:
    raise InputError(f"config.network.name: no {cfg.name!r}; {nearest(cfg.name, _NETWORKS)}")
  if cfg.width < 1 or not 0 <= cfg.dropout < 1:
    raise InputError(f"config.network: needs width >= 1 and 0 <= dropout < 1, got {cfg.width} and {cfg.dropout}")
  return _NETWORKS[cfg.name](num_classes, cfg.width, cfg.upsample, cfg.dropout, jnp.dtype(cfg.dtype))
