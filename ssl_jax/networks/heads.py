"""Small networks on features of a segmentation network."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax.networks.blocks import INTERPOLATE, Conv, RowBatchNorm, channel_dropout
from ssl_jax.ops import norm
from ssl_jax.types import Array


class Projection(nn.Module):
  """Linear – BatchNorm – ReLU – Linear; CAML's projection and prediction heads (§2.3) [C].

  Attributes:
    features: width of the hidden layer.
    outputs: width of the output layer; 0: `features`.
    leak: slope of the rectifier below 0.
  """

  features: int = 64
  outputs: int = 0
  leak: float = 0.0

  @nn.compact
  def __call__(self, rows: Array, counted: Array | None = None, *, train: bool) -> Array:
    """Maps f32[m, in] to f32[m, outputs].

    Args:
      rows: voxel features; gradient flows here.
      counted: bool[m], the rows whose statistics BatchNorm uses; `None` is all of them.
      train: statistics of these rows instead of the running averages.
    """
    hidden = Conv(self.features, size=1, name="hidden")(rows)
    counted = jnp.ones(rows.shape[0], bool) if counted is None else counted
    hidden = norm.rectify(RowBatchNorm(name="norm")(hidden, counted, train), self.leak)
    return Conv(self.outputs or self.features, size=1, name="output")(hidden)


class ScaleHeads(nn.Module):
  """Predictions of a decoder's coarser levels at full resolution, each from features perturbed in its own way (URPC).

  Attributes:
    num_classes: C.
    size: of the convolution, 1 or 3.
    mode: "trilinear" or "nearest", how logits are enlarged.
    dtype: compute precision.
  """

  num_classes: int
  size: int = 1
  mode: str = "trilinear"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, levels: Sequence[Array], perturbed: bool) -> tuple[Array, ...]:
    """Maps features of the decoder's levels 1, 2, 3, at 1/8, 1/4, 1/2 of the resolution, to logits f32[B, *spatial, C] each.

    Args:
      levels: [B, *(spatial / 2^k), channels] each, k = 3, 2, 1; gradient flows here.
      perturbed: whether level 1 loses half of its channels, level 2 its strongest voxels, and level 3 gets noise.

    Source: published code of URPC in two dimensions [C].
    """
    key = (lambda: self.make_rng("dropout")) if perturbed else None
    changes = (
      lambda x: channel_dropout(self, x, 0.5, perturbed),
      lambda x: drop_strongest(key(), x) if key else x,
      lambda x: scale_noise(key(), x) if key else x,
    )
    logits = []
    for level, (change, x) in enumerate(zip(changes, levels, strict=True), start=1):
      x = Conv(self.num_classes, size=self.size, dtype=self.dtype, name=f"level{level}")(change(x)).astype(jnp.float32)
      for _ in range(4 - level):
        x = INTERPOLATE[self.mode](x)
      logits.append(x)
    return tuple(logits)


def drop_strongest(key: Array, x: Array) -> Array:
  """Zeroes the voxels of [B, *spatial, C] whose mean over channels reaches γ of the sample's largest one, γ ~ U(0.7, 0.9) for all."""
  strength = jnp.mean(x, axis=-1, keepdims=True)
  largest = jnp.max(strength, axis=tuple(range(1, x.ndim)), keepdims=True)
  return x * (strength < largest * jax.random.uniform(key, (), x.dtype, 0.7, 0.9)).astype(x.dtype)


def scale_noise(key: Array, x: Array) -> Array:
  """Multiplies each value of [B, *spatial, C] by 1 + U(±0.3), the same for all samples."""
  return x * (1 + jax.random.uniform(key, x.shape[1:], x.dtype, -0.3, 0.3))


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
