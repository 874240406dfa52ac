"""What the tests of all methods share: NumPy transcriptions, and a network that compiles in a second."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from ssl_jax.networks.attention import CrossSampleAttention
from ssl_jax.networks.blocks import BatchNorm, Conv, HeadsOutput, NetworkOutput, channel_dropout
from ssl_jax.networks.factory import Networks
from ssl_jax.types import NetworkConfig

RNG = np.random.default_rng(0)
SMALL_OPTIONS = {
  "caml": {"rows": 64, "columns": 16, "slots": 32, "features": 8, "ramp": 0.0},
  "crln": {"groups": 2, "anchors": 8, "negatives": 8},
  "els_net": {"pixels": 64, "features": 8},
  "ss_net": {"rows": 64, "slots": 8, "features": 8},
}


def normal(*shape):
  return RNG.normal(size=shape).astype(np.float32)


def softmax(x, axis=-1):
  e = np.exp(x - x.max(axis, keepdims=True))
  return e / e.sum(axis, keepdims=True)


def nll(logits, label):
  return -np.take_along_axis(np.log(softmax(logits)), label[..., None], -1)[..., 0]


def ce_dice_numpy(logits, label):
  prob, target = softmax(logits), np.eye(logits.shape[-1])[label]
  axes = tuple(range(1, prob.ndim - 1))
  dice = 1 - (2 * (prob * target).sum(axes) + 1e-5) / (prob.sum(axes) + target.sum(axes) + 1e-5)
  return 0.5 * (nll(logits, label).mean() + dice.mean())


def with_heads(output, further, scales, num_classes):
  """Gives an output the heads that a method asked for, each of one layer."""
  features = [output.f4] * len(further) + [output.f4] * 3 * scales
  heads = [Conv(num_classes, size=1, name=f"head{i}")(x) for i, x in enumerate(features)]
  return HeadsOutput(*output, (output.logits, *heads)) if heads else output


class Pyramid(nn.Module):
  """Stands in for the V-Net: the same outputs from one layer each, so that a step compiles in a second."""

  num_classes: int = 2
  cma: bool = False
  residual: bool = False
  further: tuple = ()
  scales: bool = False

  @nn.compact
  def __call__(self, x, *, train, dropout=None, views=1):
    f4 = BatchNorm(relu=True)(*Conv(2, size=1).unbiased(x), train, views)
    f4 = channel_dropout(self, f4 + Conv(2, size=1, name="short")(x) if self.residual else f4, 0.5, bool(dropout))
    every = lambda n: f4[(slice(None), *[slice(None, None, n)] * (x.ndim - 2))]  # averages would hide what DIM attends to
    f3, f2 = Conv(4, size=1)(3 * every(2)), Conv(8, size=1)(3 * every(4))
    if self.cma and (train or self.is_initializing()):
      attended = CrossSampleAttention(name="cma")(f2, bool(dropout))
      f4 = f4 + jnp.mean(jnp.square(attended), axis=tuple(range(1, x.ndim - 1)), keepdims=True)[..., :2]
    output = NetworkOutput(Conv(self.num_classes, size=1, name="output")(f4), f2, f3, f4, f2)
    return with_heads(output, self.further, self.scales, self.num_classes)


class SmallNetworks(Networks):
  """Hands out pyramids."""

  def backbone(self, upsample=None, **extra):
    return Pyramid(self.num_classes, **extra)


def small_networks(num_classes=2):
  return SmallNetworks(NetworkConfig(width=2), num_classes=num_classes)


class Pixelwise(nn.Module):
  """Stands in for the 2D U-Net, perturbation included."""

  num_classes: int
  residual: bool = False
  further: tuple = ()
  scales: bool = False

  @nn.compact
  def __call__(self, x, *, train, dropout=None, views=1, perturb=0.0):
    short = Conv(4, size=1, name="short")(x) if self.residual else 0.0
    x = BatchNorm(relu=True)(*Conv(4, size=1).unbiased(x), train, views) + short
    x = channel_dropout(self, x, perturb, True)
    output = NetworkOutput(Conv(self.num_classes, size=1, name="output")(x), x, x, x, x)
    return with_heads(output, self.further, self.scales, self.num_classes)


class SliceNetworks(Networks):
  """Hands out stand-ins for the 2D U-Net."""

  def backbone(self, upsample=None, **extra):
    return Pixelwise(self.num_classes, **extra)


def slice_networks(num_classes=2):
  return SliceNetworks(NetworkConfig(width=2), num_classes=num_classes)
