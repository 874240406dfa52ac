"""Softmax over the classes of a voxel.

Classes are few and lie side by side, where a reduction of XLA:CPU is a library call that cannot join the arithmetic around it; written
out class by class all of it is one pass. A loss with its gradient takes a third of the time on two cores.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax

_FEW = 16  # classes that are written out


def _each(x: Array) -> list[Array]:
  return [lax.slice_in_dim(x, c, c + 1, axis=-1) for c in range(x.shape[-1])]


def _sum(x: Array) -> Array:
  return functools.reduce(lax.add, _each(x)) if x.shape[-1] <= _FEW else jnp.sum(x, axis=-1, keepdims=True)


def _max(x: Array) -> Array:
  return functools.reduce(lax.max, _each(x)) if x.shape[-1] <= _FEW else jnp.max(x, axis=-1, keepdims=True)


@jax.custom_vjp
def softmax(logits: Array) -> Array:
  """exp(x_c) / Σ_k exp(x_k) along the last axis of f32[..., C]; gradient flows."""
  powers = jnp.exp(logits - _max(logits))
  return powers / _sum(powers)


softmax.defvjp(lambda x: (softmax(x),) * 2, lambda p, grad: (p * (grad - _sum(p * grad)),))


@jax.custom_vjp
def log_softmax(logits: Array) -> Array:
  """x_c − log Σ_k exp(x_k) along the last axis of f32[..., C]; gradient flows."""
  shifted = logits - _max(logits)
  return shifted - jnp.log(_sum(jnp.exp(shifted)))


log_softmax.defvjp(lambda x: (log_softmax(x),) * 2, lambda log_p, grad: (grad - jnp.exp(log_p) * _sum(grad),))
