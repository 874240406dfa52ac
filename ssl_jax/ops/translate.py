"""Crops of one image that are shifted against each other, and where they overlap; static shapes, random places."""

import jax
import jax.numpy as jnp
from jax import Array


def crop_sides(spatial: tuple[int, ...], fraction: float, multiple: int = 16) -> tuple[int, ...]:
  """Returns the sides of crops: `fraction` of the image's, rounded down to what networks take, at least that, at most the whole image."""
  return tuple(min(side, max(multiple, int(fraction * side) // multiple * multiple)) for side in spatial)


def draw_offset(key: Array, spatial: tuple[int, ...], sides: tuple[int, ...]) -> Array:
  """Draws the first corner i32[rank] of a crop, uniform among the places where it fits."""
  return jax.random.randint(key, (len(spatial),), 0, jnp.array(spatial) - jnp.array(sides) + 1)


def cut(image: Array, offset: Array, sides: tuple[int, ...]) -> Array:
  """Cuts the crop [B, *sides, channels] at `offset` i32[rank] from every sample of [B, *spatial, channels]."""
  return jax.lax.dynamic_slice(image, (0, *offset, 0), (image.shape[0], *sides, image.shape[-1]))


def paste(crop: Array, offset: Array, spatial: tuple[int, ...]) -> Array:
  """Returns [B, *spatial, channels], the crop at its place and zeros around; gradient flows to the crop."""
  canvas = jnp.zeros((crop.shape[0], *spatial, crop.shape[-1]), crop.dtype)
  return jax.lax.dynamic_update_slice(canvas, crop, (0, *offset, 0))


def covered(offset: Array, sides: tuple[int, ...], spatial: tuple[int, ...]) -> Array:
  """Returns bool[*spatial], True inside the crop at `offset` i32[rank]."""
  mask = jnp.ones(spatial, bool)
  for axis, (size, side) in enumerate(zip(spatial, sides, strict=True)):
    grid = jnp.arange(size)
    inside = (grid >= offset[axis]) & (grid < offset[axis] + side)
    mask = mask & inside.reshape(tuple(size if a == axis else 1 for a in range(len(spatial))))
  return mask
