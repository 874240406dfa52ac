"""V-Net as the semi-supervised literature uses it: no residual connections, added skips."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ssl_jax.networks.attention import CrossSampleAttention
from ssl_jax.networks.blocks import BatchNorm, Conv, Down, NetworkOutput, Up, channel_dropout, norm_views, recompute
from ssl_jax.types import Array

ENCODER_BLOCKS = (1, 2, 3, 3, 3)
DECODER_BLOCKS = (3, 3, 2, 1)


class VNet(nn.Module):
  """Five encoder levels of widths n … 16n with 1, 2, 3, 3, 3 blocks of conv 3³ – BatchNorm – ReLU; four decoder levels with 3, 3, 2, 1.

  Attributes:
    num_classes: C.
    width: n.
    upsample: "transpose", "trilinear" or "nearest", see `blocks.Up`.
    dropout: rate of channel dropout after level 5 and before the output convolution.
    dtype: compute precision; parameters, statistics and logits are f32.
    bn_group: images that share BatchNorm statistics, 0 for all of a view; the first group enters the running averages.
    remat: compute the levels again for the gradient.
    cma: attention across samples after encoder level 4, in training mode only (CAML's auxiliary network).

  Source: V-Net (Milletari et al. 2016) in the form of UA-MT, MC-Net, CAML and CML [C].
  """

  num_classes: int
  width: int = 16
  upsample: str = "transpose"
  dropout: float = 0.5
  dtype: Any = jnp.float32
  bn_group: int = 0
  remat: bool = False
  cma: bool = False

  @nn.compact
  def __call__(self, x: Array, *, train: bool, dropout: bool | None = None, views: int = 1) -> NetworkOutput:
    """Segments images.

    Args:
      x: f32[B, *spatial, channels], two or three spatial axes, sides that are multiples of 16.
      train: use batch statistics, and update running averages where "batch_stats" is mutable.
      dropout: whether channels are dropped; defaults to `train`.
      views: parts of the batch with BatchNorm statistics of their own; the first alone enters the running averages.

    Raises:
      ValueError: a side is no multiple of 16, or `views` does not divide B.
    """
    views = norm_views(x, views, self.bn_group if train else 0, "V-Net")
    dropout = train if dropout is None else dropout
    x = x.astype(self.dtype)

    def level_of(count: int, features: int, name: str) -> Callable[[Array], Array]:
      def blocks(x: Array) -> Array:
        for i in range(count):
          x = Conv(features, dtype=self.dtype, name=f"{name}_conv{i}")(x)
          x = BatchNorm(relu=True, name=f"{name}_norm{i}")(x, train, views)
        return x

      return recompute(self, blocks, self.remat)

    skips = []
    for level, count in enumerate(ENCODER_BLOCKS):
      features = self.width * 2**level
      if level:
        skips.append(x)
        x = Down(features, dtype=self.dtype, name=f"encoder{level + 1}_down")(x)
        x = BatchNorm(relu=True, name=f"encoder{level + 1}_down_norm")(x, train, views)
      x = level_of(count, features, f"encoder{level + 1}")(x)
      if level == 3 and self.cma and (train or self.is_initializing()):
        x = CrossSampleAttention(dtype=self.dtype, name="cma")(x, dropout)
    bottleneck = x = channel_dropout(self, x, self.dropout, dropout)

    features_of = {}
    for level, count in enumerate(DECODER_BLOCKS, start=1):
      skip = skips.pop()
      x = Up(skip.shape[-1], mode=self.upsample, dtype=self.dtype, name=f"decoder{level}_up")(x)
      x = BatchNorm(relu=True, name=f"decoder{level}_up_norm")(x, train, views)
      features_of[level] = x = level_of(count, skip.shape[-1], f"decoder{level}")(x + skip)
    x = channel_dropout(self, x, self.dropout, dropout)
    logits = Conv(self.num_classes, size=1, dtype=self.dtype, name="output")(x).astype(jnp.float32)
    return NetworkOutput(logits, features_of[2], features_of[3], features_of[4], bottleneck)
