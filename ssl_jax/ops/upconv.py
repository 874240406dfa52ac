"""Interpolation to twice the resolution with a convolution behind it, as one linear operation.

Both are linear, so the convolution's channels can be mixed before the interpolation: 27 products per coarse voxel instead of per fine
one, and each axis then blends its three taps while it is doubled. With gradients that takes a third of the time of one after the other on
two cores, and keeps no fine input for the gradient. GPU and TPU do one after the other.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ssl_jax.ops import conv, order, plane

Interpolation = Callable[[Any], Any]  # of JAX's arrays, and of NumPy's

_CACHED = 1 << 21  # elements of the products of some slices that stay in the cache
_SHORT = 8  # voxels of a side, 7 of the deepest decoder; from 28 on zeros around the input are faster


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def upsample_conv3(x: Array, w: Array, interpolate: Interpolation) -> Array:
  """Convolution with a kernel of 3, stride 1 and zero padding, of an interpolated image.

  Args:
    x: [B, *spatial, in], two or three spatial axes; gradient flows here.
    w: [3, 3(, 3), in, out] of the same dtype; gradient flows here.
    interpolate: one of `ops.resize`; linear, doubles every axis on its own, each output from its own input and one neighbour.

  Returns:
    [B, *(2 · spatial), out] in x's dtype.
  """
  return _forward(x, w, interpolate)[0]


def _in_turn(x: Array, w: Array, interpolate: Interpolation) -> Array:
  return conv.conv3(interpolate(x), w)


@functools.partial(jax.jit, static_argnums=2)  # for tracing alone, as in `ops.conv`
def _forward(x: Array, w: Array, interpolate: Interpolation) -> tuple[Array, tuple[Array, Array]]:
  fast, plain = functools.partial(_blend_products, interpolate), functools.partial(_in_turn, interpolate=interpolate)
  y = plain(x, w) if conv.is_small(x, w) else lax.platform_dependent(x, w, cpu=fast, default=plain)
  return y, (x, w)


def _backward(interpolate: Interpolation, saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
  plain = lambda x, w, grad: jax.vjp(functools.partial(_in_turn, interpolate=interpolate), x, w)[1](grad)
  if conv.is_small(*saved):
    return plain(*saved, grad)
  return lax.platform_dependent(*saved, grad, cpu=functools.partial(_blend_gradients, interpolate), default=plain)


upsample_conv3.defvjp(_forward, _backward)


def _blend_products(interpolate: Interpolation, x: Array, w: Array) -> Array:
  """Doubles the planes along the first axis, then that axis."""
  if order.is_large((*x.shape[:-1], 2 ** (x.ndim - 2) * w.shape[-1])):
    return order.by_sample(functools.partial(_blend_products, interpolate, w=w), x)
  # Zeros around the input, not the products, which would copy each; a short first axis would multiply more than that saves.
  first = (0, 0) if x.shape[1] < _SHORT else (1, 1)
  padded = jnp.pad(x, [(0, 0), first, *[(1, 1)] * (x.ndim - 3), (0, 0)])
  columns = _columns(w)

  def double(_: None, planes: Array) -> tuple[None, Array]:
    products = jnp.matmul(planes, columns, preferred_element_type=jnp.float32)
    for axis in range(1, planes.ndim - 1):
      products = _double(jnp.split(products, 3, axis=-1), axis, _blends(x.shape[axis + 1], interpolate))
    return None, products

  _, products = _by_planes(double, None, padded)
  return _double(jnp.split(products, 3, axis=-1), 1, _blends(x.shape[1], interpolate)).astype(x.dtype)


def _blend_gradients(interpolate: Interpolation, x: Array, w: Array, grad: Array) -> tuple[Array, Array]:
  if order.is_large(grad.shape):
    return order.gradients_by_sample(functools.partial(_blend_gradients, interpolate), x, w, grad)
  # Zeros around, or XLA:CPU looks for the border at each value that it blends.
  padded = jnp.pad(grad.astype(jnp.float32), [(2, 2) if axis == 1 else (0, 0) for axis in range(grad.ndim)])
  products = jnp.concatenate(_halve(padded, 1, _blends(x.shape[1], interpolate)), axis=-1)
  mixed = jnp.split(_columns(w).astype(jnp.float32), 3, axis=-1)

  def halve(total: list[Array], planes: Array, products: Array) -> tuple[list[Array], Array]:
    for axis in range(planes.ndim - 2, 1, -1):
      products = jnp.concatenate(_halve(products, axis, _blends(x.shape[axis + 1], interpolate)), axis=-1)
    thirds = _halve(products, 1, _blends(x.shape[2], interpolate))  # together they would be the largest array of all
    rows = planes.reshape(-1, planes.shape[-1]).T.astype(jnp.float32)
    total = [part + jnp.matmul(rows, third.reshape(-1, third.shape[-1])) for part, third in zip(total, thirds, strict=True)]
    return total, functools.reduce(lax.add, [jnp.matmul(third, part.T) for third, part in zip(thirds, mixed, strict=True)])

  total, grad_x = _by_planes(halve, [jnp.zeros_like(part) for part in mixed], x, products)
  kernel = jnp.concatenate(total, axis=-1).reshape(-1, *w.shape[1:-2], w.shape[0], w.shape[-1])
  return grad_x.astype(x.dtype), jnp.moveaxis(kernel, (-2, 0), (0, -2)).astype(w.dtype)


def _columns(w: Array) -> Array:
  """A kernel as a matrix [in, taps · out], the taps of the first axis behind those of the others."""
  return conv.as_columns(jnp.moveaxis(w, 0, w.ndim - 3))


def _by_planes(step: Callable[..., tuple[Any, Array]], state: Any, x: Array, *others: Array) -> tuple[Any, Array]:
  """Scans over [B, first axis, ...]; in 3D by as many planes at a time as leave their products, 27 / 2 a value of x, in the cache."""
  (batch, planes), size = x.shape[:2], math.prod(x.shape[2:]) * 27 // 2
  if x.ndim == 4 or (isinstance(batch, int) and batch * planes * size <= _CACHED):  # no number: left open, in a program to be exported
    parts = [a.reshape(1, -1, *a.shape[2:]) for a in (x, *others)]
  else:
    at_once = plane.slices_in_cache(planes, size, _CACHED)
    parts = [a.reshape(-1, at_once, *a.shape[2:]) for a in (x, *others)]
  state, results = lax.scan(lambda state, parts: step(state, *parts), state, parts)
  return state, results.reshape(batch, planes, *results.shape[2:])


@functools.lru_cache(maxsize=256)
def _blends(side: int, interpolate: Interpolation) -> np.ndarray:
  """Weights f32[2, 3, 3, side] of one axis: output 2k + p is the sum over taps t and d of [p, t, d, k] times product t at k + d − 1."""
  doubling = interpolate(np.eye(side, dtype=np.float32)[None])[0]  # [2 · side, side], by NumPy: compiled apart it took seconds of a start
  padded = np.pad(doubling, ((1, 1), (1, 1)))
  k = np.arange(side)
  return np.array([[[padded[2 * k + p + t, k + d] for d in range(3)] for t in range(3)] for p in range(2)])


def _double(taps: Sequence[Array], axis: int, blends: np.ndarray) -> Array:
  """Three taps of side or side + 2 voxels along an axis, the latter with zeros at both ends -> their blend of 2 · side."""
  side = blends.shape[-1]
  part = lambda x, d: _shift(x, axis, d - 1) if x.shape[axis] == side else lax.slice_in_dim(x, d, d + side, axis=axis)
  terms = lambda p: [_along(blends[p, t, d], axis, x) * part(x, d) for t, x in enumerate(taps) for d in _used(blends[p, t])]
  even, odd = (functools.reduce(lax.add, terms(p)) for p in range(2))
  return jnp.stack([even, odd], axis + 1).reshape(*even.shape[:axis], -1, *even.shape[axis + 1 :])


def _halve(fine: Array, axis: int, blends: np.ndarray) -> list[Array]:
  """The adjoint of `_double`, of 2 · side voxels along an axis or of 2 · side + 4, which have zeros at both ends."""
  side = blends.shape[-1]
  pairs = fine.reshape(*fine.shape[:axis], -1, 2, *fine.shape[axis + 1 :])
  halves = [lax.index_in_dim(pairs, p, axis + 1, keepdims=False) for p in range(2)]

  def part(x: Array, weights: np.ndarray, d: int) -> Array:
    if x.shape[axis] == side:
      return _shift(_along(weights, axis, x) * x, axis, 1 - d)
    return _along(np.pad(weights, 1)[2 - d : 2 - d + side], axis, x) * lax.slice_in_dim(x, 2 - d, 2 - d + side, axis=axis)

  terms = lambda t: [part(x, blends[p, t, d], d) for p, x in enumerate(halves) for d in _used(blends[p, t])]
  return [functools.reduce(lax.add, terms(t)) for t in range(3)]


def _used(weights: np.ndarray) -> list[int]:
  return [d for d in range(3) if weights[d].any()]


def _along(weights: np.ndarray, axis: int, x: Array) -> Array:
  return jnp.asarray(weights).reshape([-1 if a == axis else 1 for a in range(x.ndim)])


def _shift(x: Array, axis: int, by: int) -> Array:
  """Returns x at index + by along an axis, 0 outside."""
  if by == 0:
    return x
  padding = [(0, 0)] * x.ndim
  padding[axis] = (max(-by, 0), max(by, 0))
  side = x.shape[axis]
  return jnp.pad(lax.slice_in_dim(x, max(by, 0), side + min(by, 0), axis=axis), padding)
