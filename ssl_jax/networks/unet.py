"""U-Nets as the semi-supervised literature uses them."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ssl_jax.networks.blocks import Conv, InstanceNorm, NetworkOutput, max_pool2
from ssl_jax.ops import resize
from ssl_jax.types import Array

LEVELS = 5


class UNet3D(nn.Module):
  """Five levels of widths n … 16n, two conv 3³ – InstanceNorm – ReLU each; max-pooling, trilinear ×2 and concatenation.

  Attributes:
    num_classes: C.
    width: n.
    upsample: unused: always linear interpolation, corners not aligned.
    dropout: rate, of single values, after level 5 and before the output convolution.
    dtype: compute precision; parameters and logits are f32.

  Source: 3D U-Net (Çiçek et al. 2016) in the form of SSL4MIS's BraTS experiments [L].
  """

  num_classes: int
  width: int = 16
  upsample: str = "trilinear"
  dropout: float = 0.3
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, *, train: bool, dropout: bool | None = None, views: int = 1) -> NetworkOutput:
    """Segments images.

    Args:
      x: f32[B, *spatial, channels], two or three spatial axes, sides that are multiples of 16.
      train: only sets the default of `dropout`: InstanceNorm has no running averages.
      dropout: whether values are dropped; defaults to `train`.
      views: without effect, as every sample has statistics of its own.

    Raises:
      ValueError: a side is no multiple of 16.
    """
    if any(side % 16 for side in x.shape[1:-1]):
      raise ValueError(f"config.data.patch: U-Net halves the image four times, so every side must be a multiple of 16; got {x.shape[1:-1]}")
    dropout = train if dropout is None else dropout
    x = x.astype(self.dtype)

    def blocks(x: Array, features: int, name: str) -> Array:
      for i in range(2):
        x = InstanceNorm(name=f"{name}_norm{i}")(Conv(features, dtype=self.dtype, name=f"{name}_conv{i}")(x))
      return x

    skips = []
    for level in range(LEVELS):
      if level:
        skips.append(x)
        x = max_pool2(x)
      x = blocks(x, self.width * 2**level, f"encoder{level + 1}")
    bottleneck = x = nn.Dropout(self.dropout, name="dropout_centre")(x, deterministic=not dropout)

    features_of = {}
    for level in range(1, LEVELS):
      skip = skips.pop()
      x = jnp.concatenate([skip, resize.upsample_linear(x, corners_aligned=False)], axis=-1)
      features_of[level] = x = blocks(x, skip.shape[-1], f"decoder{level}")
    x = nn.Dropout(self.dropout, name="dropout_output")(x, deterministic=not dropout)
    logits = Conv(self.num_classes, size=1, dtype=self.dtype, name="output")(x).astype(jnp.float32)
    return NetworkOutput(logits, features_of[2], features_of[3], features_of[4], bottleneck)
