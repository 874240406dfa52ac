"""BatchNorm with an optional ReLU as one operation: two passes forward, two back, nothing kept but the input."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

EPSILON = 1e-5  # PyTorch's


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_norm(x: Array, scale: Array, bias: Array, relu: bool = False) -> tuple[Array, Array, Array]:
  """Normalises with batch statistics: y = act(γ (x − m) / √(v + ε) + β), m and v over all axes but the last.

  Args:
    x: [B, *spatial, C], any float dtype; gradient flows here.
    scale, bias: f32[C], γ and β; gradient flows here.
    relu: whether act is ReLU or nothing.

  Returns:
    y in x's dtype, and m, v (biased) as f32[C]; no gradient flows through m and v as outputs. Statistics are f32 sums, v = E[x²] − m², clamped at 0.
  """
  return _forward(x, scale, bias, relu)[0]


def _sum(a: Array) -> Array:
  """Sum over all axes but the last, inner axes first: XLA:CPU runs one thread per element of the first result."""
  return jnp.sum(jnp.sum(a, axis=tuple(range(2, a.ndim - 1))), axis=(0, 1))


def _forward(x, scale, bias, relu):
  count = x.size // x.shape[-1]
  wide = x.astype(jnp.float32)
  mean = _sum(wide) / count
  var = jnp.maximum(_sum(wide * wide) / count - mean * mean, 0.0)
  gain, shift, _ = _affine(mean, var, scale, bias)
  y = wide * gain + shift
  return ((jax.nn.relu(y) if relu else y).astype(x.dtype), mean, var), (x, mean, var, scale, bias)


def _affine(mean, var, scale, bias):
  inverse = lax.rsqrt(var + EPSILON)
  gain = scale * inverse
  return gain, bias - mean * gain, inverse


def _backward(relu, saved, cotangents):
  x, mean, var, scale, bias = saved
  grad = cotangents[0].astype(jnp.float32)
  count = x.size // x.shape[-1]
  gain, shift, inverse = _affine(mean, var, scale, bias)
  wide = x.astype(jnp.float32)
  if relu:
    grad = jnp.where(wide * gain + shift > 0, grad, 0.0)
  grad_bias = _sum(grad)
  grad_scale = (_sum(grad * wide) - mean * grad_bias) * inverse
  slope = -gain * inverse * grad_scale / count
  grad_x = grad * gain + wide * slope - (gain * grad_bias / count + slope * mean)
  return grad_x.astype(x.dtype), grad_scale, grad_bias


batch_norm.defvjp(_forward, _backward)
