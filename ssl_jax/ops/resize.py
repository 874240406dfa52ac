"""Doubling the resolution, any number of spatial axes, channels last, of JAX's arrays and of NumPy's, each by their own library."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax


def upsample_linear(x: Array, corners_aligned: bool = True) -> Array:
  """Doubles every spatial side by linear interpolation.

  Corners aligned: output i samples i (n − 1) / (2n − 1). Not aligned: (i + ½) / 2 − ½, clamped. Both need only two neighbours with fixed
  weights for even and for odd outputs, so the axes are blended and interleaved without a gather. TPUs multiply each axis by a matrix.

  Args:
    x: [B, *spatial, C]; gradient flows here.
    corners_aligned: PyTorch's `align_corners`.

  Returns:
    [B, *(2 · spatial), C].
  """
  blend = functools.partial(_blended, corners_aligned=corners_aligned)
  if not isinstance(x, jax.Array):
    return blend(x)
  return lax.platform_dependent(x, tpu=functools.partial(_multiplied, corners_aligned=corners_aligned), default=blend)


def _blended(x: Any, corners_aligned: bool) -> Any:
  for axis in range(1, x.ndim - 1):
    x = _double(x, axis, corners_aligned)
  return x


def _multiplied(x: Array, corners_aligned: bool) -> Array:
  """As products, which XLA:TPU compiles in half the time, with a third of the bytes; its default would round f32 to bfloat16."""
  for axis in range(1, x.ndim - 1):
    doubling = _blended(np.eye(x.shape[axis], dtype=np.float32)[None], corners_aligned)[0]
    product = jnp.tensordot(x, doubling.astype(x.dtype), axes=(axis, 1), precision=lax.Precision.HIGHEST)
    x = jnp.moveaxis(product, -1, axis)
  return x


def upsample_nearest(x: Array) -> Array:
  """Repeats every voxel twice along every spatial axis."""
  for axis in range(1, x.ndim - 1):
    x = x.__array_namespace__().stack([x, x], axis=axis + 1).reshape(*x.shape[:axis], 2 * x.shape[axis], *x.shape[axis + 1 :])
  return x


def _double(x: Array, axis: int, corners_aligned: bool) -> Array:
  xp: Any = x.__array_namespace__()
  n = x.shape[axis]
  previous = xp.concatenate([_cut(x, axis, 0, 1), _cut(x, axis, 0, n - 1)], axis)
  following = xp.concatenate([_cut(x, axis, 1, n), _cut(x, axis, n - 1, n)], axis)
  if corners_aligned:
    i = xp.arange(n, dtype=xp.float32) / (2 * n - 1)
    to_previous, to_following = i, i[::-1]  # even output 2i lies i/(2n−1) before input i; odd 2i+1 lies (n−1−i)/(2n−1) after it
  else:
    to_previous = to_following = xp.full(n, 0.25, xp.float32)
  weight = lambda w: w.astype(x.dtype).reshape([-1 if a == axis else 1 for a in range(x.ndim)])
  even = x + weight(to_previous) * (previous - x)
  odd = x + weight(to_following) * (following - x)
  return xp.stack([even, odd], axis=axis + 1).reshape(*x.shape[:axis], 2 * n, *x.shape[axis + 1 :])


def _cut(x: Array, axis: int, first: int, last: int) -> Array:
  return x[(slice(None),) * axis + (slice(first, last),)]
