"""BatchNorm with an optional (leaky) ReLU as one operation, of which the gradient keeps the input and its statistics alone."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from ssl_jax.ops import winograd
from ssl_jax.ops.remat import kept

EPSILON = 1e-5  # PyTorch's


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def batch_norm(
  x: Array, scale: Array, bias: Array, relu: bool = False, views: int = 1, leak: float = 0.0, pairs: bool = False
) -> tuple[Array, Array, Array]:
  """Normalises with batch statistics: y = act(γ (x − m) / √(v + ε) + β), m and v over all axes but the last.

  Args:
    x: [B, *spatial, C], any float dtype; gradient flows here.
    scale, bias: f32[C], γ and β; gradient flows here.
    relu: whether act is ReLU or nothing.
    views: the batch is this many equal parts one after the other, each with its own m and v, as if each were a batch of its own.
    leak: slope of the ReLU below 0, 0 <= leak < 1.
    pairs: whether x comes from an operation that doubles each side, and so is a stack of pairs of slices. The result is the same; on a
      CPU sums over another stack cost a copy of x.

  Returns:
    y in x's dtype, and m, v (biased) of every view as f32[views, C]; no gradient flows through m and v as outputs. Statistics are f32 sums,
    v = E[(x − p)²] − (m − p)², clamped at 0, with p the mean of every eighth voxel: with p = 0 a nearly constant channel loses its digits.
  """
  return _forward(x, scale, bias, relu, views, leak, pairs)[0]


def _split(x: Array, views: int, pairs: bool) -> Array:
  """[B, *spatial, C] -> [views, B / views, *spatial, C], or [B, first side / n, n, ..., C] of one view.

  The latter is how `ops.conv` and `ops.upconv` stack their results: XLA:CPU stacks again, and keeps it, for sums over another shape.
  """
  x = x.astype(jnp.float32)
  if views > 1:
    return x.reshape(views, x.shape[0] // views, *x.shape[1:])
  n = 2 if pairs else winograd.group(x.shape[1], x.shape[-1])
  return x if x.shape[1] % n else x.reshape(x.shape[0], x.shape[1] // n, n, *x.shape[2:])


def _sum(a: Array, views: int) -> Array:
  """[...] of `_split` -> [views, C], inner axes first: XLA:CPU runs one thread per element of the first result."""
  inner = jnp.sum(a, axis=tuple(range(3, a.ndim - 1)))
  return jnp.sum(inner, axis=(0, 1, 2) if views == 1 else (1, 2)).reshape(views, -1)


def _like(statistics: Array, x: Array) -> Array:
  return statistics.reshape(statistics.shape[0], *(1,) * (x.ndim - 2), statistics.shape[-1])


def _affine(mean, var, scale, bias):
  inverse = lax.rsqrt(var + EPSILON)
  gain = scale * inverse
  return gain, bias - mean * gain, inverse


def rectify(y: Array, leak: float) -> Array:
  """Returns y where it is positive, else leak · y."""
  return jnp.maximum(y, leak * y) if leak else jax.nn.relu(y)


@partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _forward(x, scale, bias, relu, views, leak, pairs):
  wide = _split(x, views, pairs)
  count = x.size // x.shape[-1] // views
  some = _split(x[(slice(None), *(slice(None, None, 8),) * (x.ndim - 2))], views, pairs)
  pivot = _sum(some, views) * (views * x.shape[-1] / some.size)
  moved = wide - _like(pivot, wide)
  square, pivot = kept(_sum(moved * moved, views) / count), kept(pivot)
  # XLA:CPU writes out what two sums share, an array as large as x, so the mean is a sum of x itself. It waits for the other sum: free to
  # choose, the order that needs least memory (`compiler.order_for_memory`) keeps 1.4 GiB more in a CAML step.
  if jax.default_backend() == "cpu":
    wide, square, pivot = lax.optimization_barrier((wide, square, pivot))
  mean = kept(_sum(wide, views) / count)
  shift = mean - pivot
  var = kept(jnp.maximum(square - shift * shift, 0.0))
  gain, shift, _ = _affine(mean, var, scale, bias)
  y = wide * _like(gain, wide) + _like(shift, wide)
  y = (rectify(y, leak) if relu else y).reshape(x.shape).astype(x.dtype)
  return (y, mean, var), (x, mean, var, scale, bias)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _backward(relu, views, leak, pairs, saved, cotangents):
  x, mean, var, scale, bias = saved
  wide, grad = _split(x, views, pairs), _split(cotangents[0], views, pairs)
  count = x.size // x.shape[-1] // views
  gain, shift, inverse = _affine(mean, var, scale, bias)
  if relu:
    grad = jnp.where(wide * _like(gain, wide) + _like(shift, wide) > 0, grad, leak * grad if leak else 0.0)
  grad_bias = _sum(grad, views)
  grad_scale = (_sum(grad * wide, views) - mean * grad_bias) * inverse
  slope = -gain * inverse * grad_scale / count
  offset = gain * grad_bias / count + slope * mean
  grad_x = grad * _like(gain, wide) + wide * _like(slope, wide) - _like(offset, wide)
  return grad_x.reshape(x.shape).astype(x.dtype), jnp.sum(grad_scale, axis=0), jnp.sum(grad_bias, axis=0)


batch_norm.defvjp(_forward, _backward)
