"""Random views of a batch, drawn on the device: turns and flips in the X–Y plane (weak), noise, changes of colour, mixtures (strong)."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ssl_jax.ops import draw


class Pose(NamedTuple):
  """How each sample is turned: by `angle` f32[B] in radians after a flip of X where `flip` bool[B]."""

  angle: Array
  flip: Array


def draw_pose(key: Array, batch: int, *, square: bool, max_deg: float = 20.0) -> Pose:
  """Draws quarter turns (half turns of a patch that is not square), a rotation by U(±max_deg) degrees and, half of the time, a flip.

  Source: CMEMS, §3.1; all three at once [D].
  """
  key_turn, key_angle, key_flip = jax.random.split(key, 3)
  turns = jax.random.randint(key_turn, (batch,), 0, 4) if square else 2 * jax.random.randint(key_turn, (batch,), 0, 2)
  extra = jax.random.uniform(key_angle, (batch,), minval=-max_deg, maxval=max_deg)
  return Pose(turns * (math.pi / 2) + extra * (math.pi / 180), jax.random.bernoulli(key_flip, 0.5, (batch,)))


def turn_image(image: Array, pose: Pose) -> Array:
  """Turns f32[B, X, Y, *rest] about its centre, linear between pixels, 0 beyond the edges."""
  u, v = _source(image.shape[1:3], pose)
  low_u, low_v = jnp.floor(u), jnp.floor(v)
  total = jnp.zeros_like(image)
  for near_u in (low_u, low_u + 1):
    for near_v in (low_v, low_v + 1):
      weight = (1 - jnp.abs(u - near_u)) * (1 - jnp.abs(v - near_v))
      total += _expand(weight, image) * _fetch(image, near_u, near_v)
  return total


def turn_label(label: Array, pose: Pose) -> Array:
  """Turns i32[B, X, Y, *rest] as `turn_image` does, nearest pixel, class 0 beyond the edges."""
  u, v = _source(label.shape[1:3], pose)
  return _fetch(label, jnp.round(u), jnp.round(v))


def random_turn(key: Array, image: Array, label: Array | None = None) -> tuple[Array, Any]:
  """Returns images f32[B, X, Y, *rest] turned at random, see `draw_pose`, and with them their labels i32[B, X, Y, *rest], if any."""
  pose = draw_pose(key, image.shape[0], square=image.shape[1] == image.shape[2])
  return turn_image(image, pose), None if label is None else turn_label(label, pose)


def uniform_noise(key: Array, image: Array, size: float) -> Array:
  """Adds U(−size, size) to every voxel of f32[B, *spatial, channels]."""
  return image + draw.in_rows(jax.random.uniform, key, image.shape, minval=-size, maxval=size)


def gaussian_noise(key: Array, image: Array, std: float, clip: float) -> Array:
  """Adds N(0, std²), clipped to ±`clip`, to every voxel of f32[B, *spatial, channels].

  Source: UA-MT's code [L].
  """
  return image + jnp.clip(std * draw.in_rows(jax.random.normal, key, image.shape), -clip, clip)


def mixup(factor: Array, first: Array, second: Array) -> Array:
  """Returns (1 − λ) · first + λ · second, with one λ a sample.

  Args:
    factor: λ, f32[B].
    first, second: f32[B, ...]; gradient flows to both.

  Source: ICT (Verma et al. 2022).
  """
  factor = _expand(factor, first)
  return (1.0 - factor) * first + factor * second


def _source(shape: tuple[int, ...], pose: Pose) -> tuple[Array, Array]:
  """Returns the place f32[B, X, Y] in the input that each output pixel shows."""
  centre = [(side - 1) / 2 for side in shape]
  grid = jnp.meshgrid(*(jnp.arange(side) - middle for side, middle in zip(shape, centre, strict=True)), indexing="ij")
  cos, sin = jnp.cos(pose.angle)[:, None, None], jnp.sin(pose.angle)[:, None, None]
  u = (cos * grid[0] + sin * grid[1]) * jnp.where(pose.flip, -1.0, 1.0)[:, None, None]
  return u + centre[0], cos * grid[1] - sin * grid[0] + centre[1]


def _fetch(array: Array, u: Array, v: Array) -> Array:
  """Returns `array[b, u, v]` for whole-number places, 0 beyond the edges."""
  inside = (u >= 0) & (u < array.shape[1]) & (v >= 0) & (v < array.shape[2])
  row = jnp.clip(u, 0, array.shape[1] - 1).astype(jnp.int32)
  column = jnp.clip(v, 0, array.shape[2] - 1).astype(jnp.int32)
  taken = jax.vmap(lambda a, r, c: a[r, c])(array, row, column)
  return jnp.where(_expand(inside, array), taken, jnp.zeros((), array.dtype))


def _expand(plane: Array, like: Array) -> Array:
  return plane.reshape(plane.shape + (1,) * (like.ndim - plane.ndim))


def _factors(key: Array, image: Array, strength: float) -> Array:
  """U(max(0, 1 − strength), 1 + strength), one a sample."""
  shape = (image.shape[0],) + (1,) * (image.ndim - 1)
  return jax.random.uniform(key, shape, minval=max(0.0, 1.0 - strength), maxval=1.0 + strength)


def colour_jitter(key: Array, image: Array, strength: float) -> Array:
  """Multiplies brightness, then contrast about each channel's mean, by factors U(max(0, 1 − α), 1 + α) of each sample.

  Args:
    key: PRNG key.
    image: f32[B, *spatial, channels].
    strength: α; 0 returns the image as it is.

  Returns:
    f32 of the same shape, within [0, 1] or, where the image went beyond, within its own range.

  Source: CMEMS, §3.1. Hue and saturation are void on single channels [D].
  """
  if strength == 0:
    return image
  key_brightness, key_contrast = jax.random.split(key)
  spatial = tuple(range(1, image.ndim - 1))
  bright = _within(image, image * _factors(key_brightness, image, strength))
  mean = jnp.mean(bright, axis=spatial, keepdims=True)
  return _within(image, mean + (bright - mean) * _factors(key_contrast, image, strength))


def _within(image: Array, changed: Array) -> Array:
  return jnp.clip(changed, jnp.minimum(jnp.min(image), 0.0), jnp.maximum(jnp.max(image), 1.0))


def gaussian_blur(key: Array, image: Array, sigma_px: tuple[float, float] = (0.1, 2.0), radius: int = 4) -> Array:
  """Blurs the first two spatial axes of f32[B, X, Y, *rest] with a Gaussian of σ ~ U(*sigma_px) pixels of each sample, edges repeated.

  Source: strong augmentation GB of CMEMS; σ as in SimCLR's descendants [D].
  """
  sigma = jax.random.uniform(key, (image.shape[0], 1), minval=sigma_px[0], maxval=sigma_px[1])
  offsets = jnp.arange(-radius, radius + 1)
  taps = jax.nn.softmax(-0.5 * jnp.square(offsets / sigma), axis=-1)  # [B, 2 radius + 1], sums to 1
  for axis in (1, 2):
    padded = jnp.pad(image, [(radius, radius) if a == axis else (0, 0) for a in range(image.ndim)], mode="edge")
    shifted = [jax.lax.slice_in_dim(padded, i, i + image.shape[axis], axis=axis) for i in range(2 * radius + 1)]
    image = functools.reduce(jnp.add, (_expand(taps[:, i], image) * part for i, part in enumerate(shifted)))
  return image


def sharpen(key: Array, image: Array, strength: float = 0.5) -> Array:
  """Moves each sample of f32[B, X, Y, *rest] away from or towards its own blur (σ = 1 pixel) by a factor U(1 − s, 1 + s).

  Source: strong augmentation AS of CMEMS; the kernel and s [D].
  """
  smooth = gaussian_blur(key, image, (1.0, 1.0), radius=2)
  return smooth + (image - smooth) * _factors(key, image, strength)
