"""Layers of the segmentation networks, for two and three dimensions, initialised as PyTorch does."""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax.ops import conv, draw, initial, norm, resize, upconv
from ssl_jax.ops.remat import kept
from ssl_jax.types import Array


def torch_uniform(fan_in: int) -> nn.initializers.Initializer:
  """Returns PyTorch's default initialisation of kernels and biases: U(±1/√fan_in)."""
  return initial.uniform(1.0 / math.sqrt(fan_in))


class NetworkOutput(NamedTuple):
  """Logits f32[B, *spatial, C]; decoder features of 4n, 2n, n channels at 1/4, 1/2, full resolution; the bottleneck's 16n at 1/16."""

  logits: Array
  f2: Array
  f3: Array
  f4: Array
  bottleneck: Array


class HeadsOutput(NamedTuple):
  """A `NetworkOutput` of the first of several heads, and the logits f32[B, *spatial, C] of all of them, the first included."""

  logits: Array
  f2: Array
  f3: Array
  f4: Array
  bottleneck: Array
  heads: tuple[Array, ...]


def norm_views(x: Array, views: int, bn_group: int, network: str) -> int:
  """Returns how many parts of a batch have BatchNorm statistics of their own; checks its shape for a network that halves it four times.

  Args:
    x: [B, *spatial, channels].
    views: at least so many.
    bn_group: images a part; 0: B / views.
    network: its name, for messages.

  Raises:
    ValueError: a side is no multiple of 16, or the parts are not equal.
  """
  if any(side % 16 for side in x.shape[1:-1]):
    raise ValueError(
      f"config.data.patch: {network} halves the image four times, so every side must be a multiple of 16; got {x.shape[1:-1]}"
    )
  if x.shape[0] % views:
    raise ValueError(f"config.train.batch_labelled: {views} views need equal halves of the batch; got {x.shape[0]} images")
  if bn_group and x.shape[0] // views % bn_group:
    raise ValueError(f"config.network.bn_group: {bn_group} does not divide the {x.shape[0] // views} images that pass at once")
  return x.shape[0] // bn_group if bn_group else views


class Conv(nn.Module):
  """Convolution with bias, stride 1, kernel 3 or 1 along every axis; parameters f32, compute in `dtype`.

  Attributes:
    features: output channels.
    size: of the kernel.
    dtype: compute precision.
    interpolate: how the image is doubled before, a key of `INTERPOLATE`; "" leaves it as it is. With size 3 only.
  """

  features: int
  size: int = 3
  dtype: Any = jnp.float32
  interpolate: str = ""

  def __call__(self, x: Array) -> Array:
    """Maps [B, *spatial, in] to [B, *spatial, features], or to [B, *(2 · spatial), features] of a doubled image."""
    y, bias = self.unbiased(x)
    return y + bias

  @nn.compact
  def unbiased(self, x: Array) -> tuple[Array, Array]:
    """Returns the result without its bias, and the bias [features], for a `BatchNorm`."""
    rank, channels = x.ndim - 2, x.shape[-1]
    init = torch_uniform(channels * self.size**rank)
    kernel_size = (3,) * rank if self.size == 3 else ()
    kernel = self.param("kernel", init, (*kernel_size, channels, self.features)).astype(self.dtype)
    bias = self.param("bias", init, (self.features,)).astype(self.dtype)
    x = x.astype(self.dtype)
    if self.interpolate:
      return kept(upconv.upsample_conv3(x, kernel, INTERPOLATE[self.interpolate])), bias
    return kept((conv.conv3 if self.size == 3 else conv.conv1)(x, kernel)), bias


class Down(nn.Module):
  """Convolution of size and stride 2."""

  features: int
  dtype: Any = jnp.float32

  def __call__(self, x: Array) -> Array:
    """Maps [B, *spatial, in] to [B, *(spatial / 2), features]."""
    y, bias = self.unbiased(x)
    return y + bias

  @nn.compact
  def unbiased(self, x: Array) -> tuple[Array, Array]:
    """Returns the result without its bias, and the bias [features], for a `BatchNorm`."""
    rank, channels = x.ndim - 2, x.shape[-1]
    init = torch_uniform(channels * 2**rank)
    kernel = self.param("kernel", init, (2,) * rank + (channels, self.features))
    bias = self.param("bias", init, (self.features,))
    return kept(conv.conv_down2(x.astype(self.dtype), kernel.astype(self.dtype))), bias.astype(self.dtype)


class InstanceNorm(nn.Module):
  """Normalisation of every sample by its own statistics, without parameters, and a ReLU."""

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Normalises [B, *spatial, C]."""
    channels = x.shape[-1]
    return norm.batch_norm(x, jnp.ones(channels), jnp.zeros(channels), True, x.shape[0])[0]


def max_pool2(x: Array) -> Array:
  """Halves every spatial side of [B, *spatial, C], keeping the largest of each block; slices, since XLA's gradient of windows is slow."""
  for axis in range(1, x.ndim - 1):
    first, second = (jax.lax.slice_in_dim(x, start, None, stride=2, axis=axis) for start in (0, 1))
    x = jnp.maximum(first, second)
  return x


INTERPOLATE = {"trilinear": resize.upsample_linear, "nearest": resize.upsample_nearest}
UPSAMPLING = ("transpose", *INTERPOLATE)


class Up(nn.Module):
  """Doubles the resolution: transposed convolution of size and stride 2, or interpolation and a convolution of size 3.

  Attributes:
    features: output channels.
    mode: "transpose", "trilinear" (corners aligned) or "nearest".
    dtype: compute precision.
  """

  features: int
  mode: str = "transpose"
  dtype: Any = jnp.float32

  def __call__(self, x: Array) -> Array:
    """Maps [B, *spatial, in] to [B, *(2 · spatial), features]."""
    y, bias = self.unbiased(x)
    return y + bias

  @nn.compact
  def unbiased(self, x: Array) -> tuple[Array, Array]:
    """Returns the result without its bias, and the bias [features], for a `BatchNorm`."""
    if self.mode != "transpose":
      return Conv(self.features, dtype=self.dtype, interpolate=self.mode, name="conv").unbiased(x)
    rank, channels = x.ndim - 2, x.shape[-1]
    init = torch_uniform(self.features * 2**rank)  # PyTorch counts the outputs of a transposed convolution
    kernel = self.param("kernel", init, (2,) * rank + (channels, self.features))
    bias = self.param("bias", init, (self.features,))
    return kept(conv.conv_up2(x.astype(self.dtype), kernel.astype(self.dtype))), bias.astype(self.dtype)


class BatchNorm(nn.Module):
  """BatchNorm behind a convolution, with PyTorch's constants and running averages (unbiased variance, 0.9 of the old value).

  The batch's mean takes the convolution's bias away again, so only the running averages need it: it is never added to the image.

  Attributes:
    relu: whether a ReLU follows.
    leak: its slope below 0.
    pairs: whether the convolution doubles the resolution, see `norm.batch_norm`.
  """

  relu: bool = False
  leak: float = 0.0
  pairs: bool = False

  @nn.compact
  def __call__(self, x: Array, offset: Array, train: bool, views: int = 1) -> Array:
    """Normalises [B, *spatial, C].

    Args:
      x: the batch, as `unbiased` of a convolution returns it.
      offset: [C], its bias.
      train: by the batch's statistics, which then enter the running averages if "batch_stats" is mutable; else by the running averages.
      views: parts of the batch with statistics of their own, see `norm.batch_norm`; the first alone enters the running averages.
    """
    channels = x.shape[-1]
    scale = self.param("scale", nn.initializers.ones, (channels,))
    bias = self.param("bias", nn.initializers.zeros, (channels,))
    running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
    running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
    if not train:
      gain = scale * jax.lax.rsqrt(running_var.value + norm.EPSILON)
      y = x * gain + (bias + (offset - running_mean.value) * gain)
      return (norm.rectify(y, self.leak) if self.relu else y).astype(x.dtype)
    y, mean, var = norm.batch_norm(x, scale, bias, self.relu, views, self.leak, self.pairs)
    if self.is_mutable_collection("batch_stats"):
      count = x.size // channels // views
      running_mean.value = 0.9 * running_mean.value + 0.1 * (mean[0] + offset)
      running_var.value = 0.9 * running_var.value + 0.1 * var[0] * (count / max(count - 1, 1))
    return y


class RowBatchNorm(nn.Module):
  """BatchNorm over the rows of a list that count; constants and running averages as in `BatchNorm`."""

  @nn.compact
  def __call__(self, rows: Array, counted: Array, train: bool) -> Array:
    """Normalises f32[m, C]; rows outside `counted` bool[m] take part in no statistics, and without any the running averages serve."""
    channels = rows.shape[-1]
    scale = self.param("scale", nn.initializers.ones, (channels,))
    bias = self.param("bias", nn.initializers.zeros, (channels,))
    running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
    running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
    mean, var = running_mean.value, running_var.value
    if train:
      weight, count = counted[:, None].astype(rows.dtype), jnp.sum(counted)
      enough = count > 1
      mean = jnp.where(enough, jnp.sum(weight * rows, axis=0) / jnp.maximum(count, 1), mean)
      var = jnp.where(enough, jnp.sum(weight * (rows - mean) ** 2, axis=0) / jnp.maximum(count, 1), var)
      if self.is_mutable_collection("batch_stats"):
        keep = jnp.where(enough, 0.9, 1.0)
        running_mean.value = keep * running_mean.value + (1.0 - keep) * mean
        running_var.value = keep * running_var.value + (1.0 - keep) * var * (count / jnp.maximum(count - 1, 1))
    return (rows - mean) * jax.lax.rsqrt(var + norm.EPSILON) * scale + bias


class Dropout(nn.Module):
  """`ops.draw.dropout` of single values, key stream "dropout"."""

  rate: float

  @nn.compact
  def __call__(self, x: Array, active: bool) -> Array:
    """Returns [B, ...], changed only while `active`."""
    return draw.dropout(self.make_rng("dropout"), x, self.rate) if active else x


def channel_dropout(module: nn.Module, x: Array, rate: Array | float, active: bool) -> Array:
  """Sets whole channels of a sample to zero with probability `rate` and scales the others by 1/(1 − rate); key stream "dropout"."""
  if not active or (isinstance(rate, float) and rate == 0.0):
    return x
  keep = jax.random.bernoulli(module.make_rng("dropout"), 1.0 - rate, (x.shape[0],) + (1,) * (x.ndim - 2) + (x.shape[-1],))
  return x * (keep / (1.0 - rate)).astype(x.dtype)
