"""V-Net as the semi-supervised literature uses it: added skips, and no residual connections but in the residual variant."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ssl_jax.networks.attention import CrossSampleAttention
from ssl_jax.networks.blocks import BatchNorm, Conv, Down, HeadsOutput, NetworkOutput, Up, channel_dropout, norm_views
from ssl_jax.networks.heads import ScaleHeads
from ssl_jax.types import Array

ENCODER_BLOCKS = (1, 2, 3, 3, 3)
RESIDUAL_BLOCKS = (1, 3, 4, 6, 3)  # of a ResNet-34, behind its first convolution
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
    remat: whoever differentiates shall keep convolutions and statistics alone, see `ops.remat`.
    cma: attention across samples after encoder level 4, in training mode only (CAML's auxiliary network).
    residual: levels 2 to 5 of the encoder have 3, 4, 6, 3 residual blocks of two convolutions, and level 5 no dropout (MCF's second
      network [C]; its 7³ stem has kernel 3 here, and its 3³ convolutions of stride 2 kernel 2 [D]).
    further: how further decoders on the same encoder double the resolution, one name each (MC-Net); "branch2_", "branch3_", ... stand
      before the names of their parameters.
    scales: whether levels 1 to 3 of the first decoder predict too (URPC).

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
  residual: bool = False
  further: tuple[str, ...] = ()
  scales: bool = False

  @nn.compact
  def __call__(self, x: Array, *, train: bool, dropout: bool | None = None, views: int = 1) -> NetworkOutput | HeadsOutput:
    """Segments images; with `further` or `scales` the output has `heads`: further decoders in order, then levels 3, 2, 1.

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

    def normalised(layer: Conv | Down | Up, x: Array, name: str, relu: bool = True) -> Array:
      return BatchNorm(relu=relu, pairs=isinstance(layer, Up), name=name)(*layer.unbiased(x), train, views)

    def blocks(x: Array, count: int, features: int, name: str) -> Array:
      for i in range(count):
        x = normalised(Conv(features, dtype=self.dtype, name=f"{name}_conv{i}"), x, f"{name}_norm{i}")
      return x

    def residual_blocks(x: Array, count: int, features: int, name: str) -> Array:
      def block(x: Array, name: str, halve: bool) -> Array:
        y = normalised((Down if halve else Conv)(features, dtype=self.dtype, name=f"{name}_conv0"), x, f"{name}_norm0")
        y = normalised(Conv(features, dtype=self.dtype, name=f"{name}_conv1"), y, f"{name}_norm1", relu=False)
        if halve:
          every_second = x[(slice(None), *[slice(None, None, 2)] * (x.ndim - 2))]
          short = Conv(features, size=1, dtype=self.dtype, name=f"{name}_short")
          x = normalised(short, every_second, f"{name}_short_norm", relu=False)
        return nn.relu(x + y)

      for i in range(count):
        x = block(x, f"{name}_block{i}", halve=i == 0)
      return x

    def encode(x: Array) -> tuple[Array, list[Array]]:
      skips = []
      for level, count in enumerate(RESIDUAL_BLOCKS if self.residual else ENCODER_BLOCKS):
        features, name = self.width * 2**level, f"encoder{level + 1}"
        if level:
          skips.append(x)
        if level and not self.residual:
          x = normalised(Down(features, dtype=self.dtype, name=f"{name}_down"), x, f"{name}_down_norm")
        x = (residual_blocks if level and self.residual else blocks)(x, count, features, name)
        if level == 3 and self.cma and (train or self.is_initializing()):
          x = CrossSampleAttention(dtype=self.dtype, name="cma")(x, dropout)
      return channel_dropout(self, x, 0.0 if self.residual else self.dropout, dropout), skips

    def decode(x: Array, skips: list[Array], upsample: str, branch: str = "") -> tuple[Array, list[Array]]:
      levels = []
      for level, (count, skip) in enumerate(zip(DECODER_BLOCKS, reversed(skips), strict=True), start=1):
        name = f"{branch}decoder{level}"
        x = normalised(Up(skip.shape[-1], mode=upsample, dtype=self.dtype, name=f"{name}_up"), x, f"{name}_up_norm")
        x = blocks(x + skip, count, skip.shape[-1], name)
        levels.append(x)
      x = channel_dropout(self, x, self.dropout, dropout)
      logits = Conv(self.num_classes, size=1, dtype=self.dtype, name=f"{branch}output")(x).astype(jnp.float32)
      return logits, levels

    bottleneck, skips = encode(x)
    logits, levels = decode(bottleneck, skips, self.upsample)
    _, f2, f3, f4 = levels
    output = NetworkOutput(logits, f2, f3, f4, bottleneck)
    heads = [decode(bottleneck, skips, mode, f"branch{i}_")[0] for i, mode in enumerate(self.further, start=2)]
    if self.scales:
      heads += reversed(ScaleHeads(self.num_classes, dtype=self.dtype, name="scales")(levels[:-1], dropout))
    return HeadsOutput(*output, (logits, *heads)) if heads else output
