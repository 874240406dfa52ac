"""Random values of an image's shape, drawn in one row per sample.

The values are the same as without rows, but XLA:CPU unrolls loops over short axes: 16 channels make one draw seconds of compiling.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array


def in_rows(sampler: Callable[..., Array], key: Array, shape: tuple[int, ...], **settings: float) -> Array:
  """Returns `sampler(key, shape, **settings)`, where the sampler is `jax.random.normal` or `jax.random.uniform`."""
  return sampler(key, (shape[0], math.prod(shape[1:])), **settings).reshape(shape)


def dropout(key: Array, x: Array, rate: float) -> Array:
  """Sets single values of [B, ...] to zero at random and scales the others, so that the expectation stays.

  Args:
    key: PRNG key.
    x: [B, ...].
    rate: the probability of zero, below 1 and rounded to 1/256, but not to 0 or 1.
  """
  return drop(random_bytes(key, x.shape), x, rate) if rate else x


def random_bytes(key: Array, shape: tuple[int, ...]) -> Array:
  """Returns u8[B, ...] of this shape for `drop`: `jax.random.bernoulli` takes 32 bits a value, and to draw them is what dropout costs."""
  size = math.prod(shape[1:])
  words = jax.random.bits(key, (shape[0], -(-size // 4)), jnp.uint32)  # asked for bytes, JAX would draw a word for each
  return jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(shape[0], -1)[:, :size].reshape(shape)


def drop(drawn: Array, x: Array, rate: float) -> Array:
  """Returns x where its byte says so, scaled, else 0; see `dropout`."""
  dropped = min(max(round(256 * rate), 1), 255)
  return jnp.where(drawn >= dropped, x * jnp.asarray(256 / (256 - dropped), x.dtype), 0)
