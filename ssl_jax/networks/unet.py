"""U-Nets as the semi-supervised literature uses them."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ssl_jax.networks.blocks import (
  INTERPOLATE,
  BatchNorm,
  Conv,
  Dropout,
  HeadsOutput,
  InstanceNorm,
  NetworkOutput,
  Up,
  channel_dropout,
  max_pool2,
  norm_views,
)
from ssl_jax.networks.heads import ScaleHeads
from ssl_jax.ops import norm, resize
from ssl_jax.types import Array

LEVELS = 5
DROPOUT_OF_LEVEL = (0.1, 0.2, 0.4, 0.6, 1.0)  # of the rate of level 5
LEAK = 0.01


def _contract(x: Array, encode: Callable[[Array, int], Array], perturb: Callable[[Array], Array]) -> tuple[Array, list[Array]]:
  """Halves an image four times.

  Args:
    x: [B, *spatial, channels].
    encode: (x, level 0..4) -> the level's features.
    perturb: what happens to features on their way to the decoder; the next level of the encoder sees them as they were.

  Returns:
    The bottleneck and the features of levels 0..3, as the decoder gets them.
  """
  skips = []
  for level in range(LEVELS):
    x = encode(max_pool2(x) if level else x, level)
    skips.append(perturb(x))
  return skips.pop(), skips


def _expand(x: Array, skips: list[Array], decode: Callable[[Array, Array, int], Array]) -> list[Array]:
  """Doubles the resolution four times.

  Args:
    x: the bottleneck.
    skips: see `_contract`.
    decode: (x, skip, level 1..4) -> features at the resolution of `skip`, of the encoder's level 4 − level.

  Returns:
    The features of the decoder's levels 1..4.
  """
  decoded = []
  for level, skip in enumerate(reversed(skips), start=1):
    x = decode(x, skip, level)
    decoded.append(x)
  return decoded


class UNet2D(nn.Module):
  """Five levels of widths n … 16n, two conv 3 – BatchNorm – LeakyReLU each with dropout between; max-pooling, ×2 and concatenation.

  Attributes:
    num_classes: C.
    width: n.
    upsample: "transpose", or conv 1 and "trilinear" (linear in any number of axes, corners aligned) or "nearest" interpolation.
    dropout: rate, of single values, in level 5 of the encoder; the levels have 0.1, 0.2, 0.4, 0.6, 1 of it [D], which makes 0.5 the
      published 0.05, 0.1, 0.2, 0.3, 0.5 [C]. The decoder has none.
    dtype: compute precision; parameters, statistics and logits are f32.
    bn_group: images that share BatchNorm statistics, 0 for all of a view; the first group enters the running averages.
    remat: whoever differentiates shall keep convolutions and statistics alone, see `ops.remat`.
    residual: each level of the encoder adds its input, through a convolution of size 1 and BatchNorm, before the last LeakyReLU (MCF's
      second network in two dimensions [D]).
    further: how further decoders on the same encoder double the resolution, one name each (MC-Net); "branch2_", "branch3_", ... stand
      before the names of their parameters.
    scales: whether levels 1 to 3 of the first decoder predict too (URPC).

  Source: U-Net (Ronneberger et al. 2015) in the form of SSL4MIS, CML and BCP [C] and CMEMS (App. D) [P].
  """

  num_classes: int
  width: int = 16
  upsample: str = "transpose"
  dropout: float = 0.5
  dtype: Any = jnp.float32
  bn_group: int = 0
  remat: bool = False
  residual: bool = False
  further: tuple[str, ...] = ()
  scales: bool = False

  @nn.compact
  def __call__(
    self, x: Array, *, train: bool, dropout: bool | None = None, views: int = 1, perturb: Array | float = 0.0
  ) -> NetworkOutput | HeadsOutput:
    """Segments images; with `further` or `scales` the output has `heads`: further decoders in order, then levels 3, 2, 1.

    Args:
      x: f32[B, *spatial, channels], two or three spatial axes, sides that are multiples of 16.
      train: use batch statistics, and update running averages where "batch_stats" is mutable.
      dropout: whether values are dropped; defaults to `train`.
      views: parts of the batch with BatchNorm statistics of their own; the first alone enters the running averages.
      perturb: f32[], probability with which each channel of each of the encoder's five levels is lost to the decoder, whatever `dropout`
        says (CMEMS eqs. 7, 8); the others are scaled by 1/(1 − perturb). Key stream "dropout".

    Raises:
      ValueError: a side is no multiple of 16, or `views` does not divide B.
    """
    views = norm_views(x, views, self.bn_group if train else 0, "U-Net")
    dropout = train if dropout is None else dropout

    def blocks(x: Array, features: int, name: str, rate: float = 0.0, residual: bool = False) -> Array:
      first = x
      for i in range(2):
        unbiased = Conv(features, dtype=self.dtype, name=f"{name}_conv{i}").unbiased(x)
        x = BatchNorm(relu=not (residual and i), leak=LEAK, name=f"{name}_norm{i}")(*unbiased, train, views)
        if rate and i == 0:
          x = Dropout(rate, name=f"{name}_dropout")(x, dropout)
      if not residual:
        return x
      short = Conv(features, size=1, dtype=self.dtype, name=f"{name}_short").unbiased(first)
      return norm.rectify(x + BatchNorm(name=f"{name}_short_norm")(*short, train, views), LEAK)

    def encode(x: Array, level: int) -> Array:
      name, rate = f"encoder{level + 1}", self.dropout * DROPOUT_OF_LEVEL[level]
      return blocks(x, self.width * 2**level, name, rate, self.residual)

    def decoder_of(upsample: str, branch: str = "") -> Callable[[Array, Array, int], Array]:
      def decode(x: Array, skip: Array, level: int) -> Array:
        features, name = skip.shape[-1], f"{branch}decoder{level}"
        if upsample == "transpose":
          x = Up(features, dtype=self.dtype, name=f"{name}_up")(x)
        else:
          x = INTERPOLATE[upsample](Conv(features, size=1, dtype=self.dtype, name=f"{name}_up")(x))
        return blocks(jnp.concatenate([skip, x], axis=-1), features, name)

      return decode

    predict = lambda x, branch="": Conv(self.num_classes, dtype=self.dtype, name=f"{branch}output")(x).astype(jnp.float32)
    bottleneck, skips = _contract(x.astype(self.dtype), encode, lambda x: channel_dropout(self, x, perturb, True))
    levels = _, f2, f3, f4 = _expand(bottleneck, skips, decoder_of(self.upsample))
    output = NetworkOutput(predict(f4), f2, f3, f4, bottleneck)
    branches = {f"branch{i}_": mode for i, mode in enumerate(self.further, start=2)}
    heads = [predict(_expand(bottleneck, skips, decoder_of(mode, branch))[-1], branch) for branch, mode in branches.items()]
    if self.scales:
      heads += reversed(ScaleHeads(self.num_classes, 3, "nearest", self.dtype, name="scales")(levels[:-1], dropout))
    return HeadsOutput(*output, (output.logits, *heads)) if heads else output


class UNet3D(nn.Module):
  """Five levels of widths n … 16n, two conv 3³ – InstanceNorm – ReLU each; max-pooling, trilinear ×2 and concatenation.

  Attributes:
    num_classes: C.
    width: n.
    upsample: unused: always linear interpolation, corners not aligned.
    dropout: rate, of single values, after level 5 and before the output convolution.
    dtype: compute precision; parameters and logits are f32.
    bn_group: unused: there is no BatchNorm.
    remat: whoever differentiates shall keep convolutions and statistics alone, see `ops.remat`.
    scales: whether levels 1 to 3 of the decoder predict too (URPC).

  Source: 3D U-Net (Çiçek et al. 2016) in the form of SSL4MIS's BraTS experiments [L].
  """

  num_classes: int
  width: int = 16
  upsample: str = "trilinear"
  dropout: float = 0.3
  dtype: Any = jnp.float32
  bn_group: int = 0
  remat: bool = False
  scales: bool = False

  @nn.compact
  def __call__(self, x: Array, *, train: bool, dropout: bool | None = None, views: int = 1) -> NetworkOutput | HeadsOutput:
    """Segments images; with `scales` the output has `heads`: levels 4, 3, 2, 1.

    Args:
      x: f32[B, *spatial, channels], two or three spatial axes, sides that are multiples of 16.
      train: only sets the default of `dropout`: InstanceNorm has no running averages.
      dropout: whether values are dropped; defaults to `train`.
      views: without effect, as every sample has statistics of its own.

    Raises:
      ValueError: a side is no multiple of 16.
    """
    norm_views(x, 1, 0, "U-Net")
    dropout = train if dropout is None else dropout
    drop = lambda x, name: Dropout(self.dropout, name=name)(x, dropout)

    def blocks(x: Array, features: int, name: str) -> Array:
      for i in range(2):
        x = InstanceNorm(name=f"{name}_norm{i}")(Conv(features, dtype=self.dtype, name=f"{name}_conv{i}")(x))
      return x

    def encode(x: Array, level: int) -> Array:
      x = blocks(x, self.width * 2**level, f"encoder{level + 1}")
      return drop(x, "dropout_centre") if level == LEVELS - 1 else x

    def decode(x: Array, skip: Array, level: int) -> Array:
      x = jnp.concatenate([skip, resize.upsample_linear(x, corners_aligned=False)], axis=-1)
      return blocks(x, skip.shape[-1], f"decoder{level}")

    bottleneck, skips = _contract(x.astype(self.dtype), encode, lambda x: x)
    levels = _, f2, f3, f4 = _expand(bottleneck, skips, decode)
    dropped = drop(f4, "dropout_output")
    logits = Conv(self.num_classes, size=1, dtype=self.dtype, name="output")(dropped).astype(jnp.float32)
    output = NetworkOutput(logits, f2, f3, f4, bottleneck)
    if not self.scales:
      return output
    return HeadsOutput(*output, (logits, *reversed(ScaleHeads(self.num_classes, dtype=self.dtype, name="scales")(levels[:-1], dropout))))
