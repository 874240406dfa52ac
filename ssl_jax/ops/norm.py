"""BatchNorm with an optional (leaky) ReLU as one operation: two passes forward, two back, nothing kept but the input."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from ssl_jax.ops.remat import kept

EPSILON = 1e-5  # PyTorch's


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def batch_norm(x: Array, scale: Array, bias: Array, relu: bool = False, views: int = 1, leak: float = 0.0) -> tuple[Array, Array, Array]:
  """Normalises with batch statistics: y = act(γ (x − m) / √(v + ε) + β), m and v over all axes but the last.

  Args:
    x: [B, *spatial, C], any float dtype; gradient flows here.
    scale, bias: f32[C], γ and β; gradient flows here.
    relu: whether act is ReLU or nothing.
    views: the batch is this many equal parts one after the other, each with its own m and v, as if each were a batch of its own.
    leak: slope of the ReLU below 0, 0 <= leak < 1.

  Returns:
    y in x's dtype, and m, v (biased) of every view as f32[views, C]; no gradient flows through m and v as outputs. Statistics are f32 sums,
    v = E[(x − p)²] − (m − p)², clamped at 0, with p the mean of every eighth voxel: with p = 0 a nearly constant channel loses its digits.
  """
  return _forward(x, scale, bias, relu, views, leak)[0]


def _split(x, views):
  return x.astype(jnp.float32).reshape(views, x.shape[0] // views, *x.shape[1:])


def _sum(a: Array) -> Array:
  """[views, B, *spatial, C] -> [views, C], inner axes first: XLA:CPU runs one thread per element of the first result."""
  return jnp.sum(jnp.sum(a, axis=tuple(range(3, a.ndim - 1))), axis=(1, 2))


def _like(statistics: Array, x: Array) -> Array:
  return statistics.reshape(statistics.shape[0], *(1,) * (x.ndim - 2), statistics.shape[-1])


def _affine(mean, var, scale, bias):
  inverse = lax.rsqrt(var + EPSILON)
  gain = scale * inverse
  return gain, bias - mean * gain, inverse


def rectify(y: Array, leak: float) -> Array:
  """Returns y where it is positive, else leak · y."""
  return jnp.maximum(y, leak * y) if leak else jax.nn.relu(y)


@partial(jax.jit, static_argnums=(3, 4, 5))
def _forward(x, scale, bias, relu, views, leak):
  wide = _split(x, views)
  count = wide[0].size // x.shape[-1]
  pivot = jnp.mean(wide[(..., *(slice(None, None, 8),) * (x.ndim - 2), slice(None))], axis=tuple(range(1, x.ndim)))
  moved = wide - _like(pivot, wide)
  shift = _sum(moved) / count
  mean, var = kept(pivot + shift), kept(jnp.maximum(_sum(moved * moved) / count - shift * shift, 0.0))
  gain, shift, _ = _affine(mean, var, scale, bias)
  y = wide * _like(gain, wide) + _like(shift, wide)
  y = (rectify(y, leak) if relu else y).reshape(x.shape).astype(x.dtype)
  return (y, mean, var), (x, mean, var, scale, bias)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _backward(relu, views, leak, saved, cotangents):
  x, mean, var, scale, bias = saved
  wide, grad = _split(x, views), _split(cotangents[0], views)
  count = wide[0].size // x.shape[-1]
  gain, shift, inverse = _affine(mean, var, scale, bias)
  if relu:
    grad = jnp.where(wide * _like(gain, wide) + _like(shift, wide) > 0, grad, leak * grad if leak else 0.0)
  grad_bias = _sum(grad)
  grad_scale = (_sum(grad * wide) - mean * grad_bias) * inverse
  slope = -gain * inverse * grad_scale / count
  offset = gain * grad_bias / count + slope * mean
  grad_x = grad * _like(gain, wide) + wide * _like(slope, wide) - _like(offset, wide)
  return grad_x.reshape(x.shape).astype(x.dtype), jnp.sum(grad_scale, axis=0), jnp.sum(grad_bias, axis=0)


batch_norm.defvjp(_forward, _backward)
