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

  Eight random bits decide about a value, where `jax.random.bernoulli` takes 32: drawing them is what dropout costs on a CPU.

  Args:
    key: PRNG key.
    x: [B, ...].
    rate: the probability of zero, below 1 and rounded to 1/256, but not to 0 or 1.
  """
  if not rate:
    return x
  dropped, size = min(max(round(256 * rate), 1), 255), math.prod(x.shape[1:])
  words = jax.random.bits(key, (x.shape[0], -(-size // 4)), jnp.uint32)  # asked for bytes, JAX would draw a word for each
  drawn = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(x.shape[0], -1)[:, :size].reshape(x.shape)
  return jnp.where(drawn >= dropped, x * jnp.asarray(256 / (256 - dropped), x.dtype), 0)
