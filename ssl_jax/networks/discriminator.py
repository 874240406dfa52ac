"""The classifier of whole predictions that adversarial methods train against."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ssl_jax.networks.blocks import Conv, channel_dropout, torch_uniform
from ssl_jax.ops import conv
from ssl_jax.ops.norm import rectify
from ssl_jax.types import Array

LEAK = 0.2


class Halving(nn.Module):
  """Convolution of size 4 and stride 2 with bias; parameters f32, compute in `dtype`."""

  features: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [B, *spatial, in] to [B, *(spatial / 2), features]."""
    rank, channels = x.ndim - 2, x.shape[-1]
    init = torch_uniform(channels * 4**rank)
    kernel = self.param("kernel", init, (4,) * rank + (channels, self.features))
    bias = self.param("bias", init, (self.features,))
    return conv.conv4_down2(x.astype(self.dtype), kernel.astype(self.dtype)) + bias.astype(self.dtype)


class Discriminator(nn.Module):
  """Tells, from an image and what a network made of it, whether the image was labelled.

  Image and prediction are halved once each and added, then halved three times more, with leaky ReLUs (0.2) and, but for the last, channel
  dropout; the mean over all voxels goes to two logits. Without normalisation, so samples do not see each other.

  Attributes:
    width: channels at the first level; 2, 4 and 8 times as many follow.
    dropout: rate.
    dtype: compute precision; parameters and logits are f32.

  Source: published code of SASSNet and SSL4MIS, width 64 [C]. Their pooling windows are what is left of their patches; the mean is the same
  for any patch.
  """

  width: int = 64
  dropout: float = 0.5
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, prediction: Array, image: Array, *, train: bool) -> Array:
    """Classifies predictions.

    Args:
      prediction: f32[B, *spatial, K], such as probabilities; gradient flows here.
      image: f32[B, *spatial, channels], sides that are multiples of 16.
      train: whether channels are dropped, key stream "dropout".

    Returns:
      f32[B, 2] logits: unlabelled, labelled.
    """
    halved = lambda x, times, name: Halving(self.width * times, dtype=self.dtype, name=name)(x)
    x = rectify(halved(prediction, 1, "prediction") + halved(image, 1, "image"), LEAK)
    for level, times in enumerate((2, 4, 8), start=2):
      x = channel_dropout(self, x, self.dropout, train)
      x = rectify(halved(x, times, f"level{level}"), LEAK)
    pooled = jnp.mean(x.astype(jnp.float32), axis=tuple(range(1, x.ndim - 1)))
    return Conv(2, size=1, name="output")(pooled)
