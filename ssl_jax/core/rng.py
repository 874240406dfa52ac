"""Random keys: one per step and named use, so that adding or removing a use changes no other."""

import zlib

import jax

from ssl_jax.types import Array


def key_for(key: Array, step: Array, use: str) -> Array:
  """Returns the key of one named use at one step: `fold_in(fold_in(key, step), crc32(use))`.

  Args:
    key: the run's key, the same at every step.
    step: i32[], the training step.
    use: a fixed name, such as "cutmix".
  """
  return jax.random.fold_in(jax.random.fold_in(key, step), zlib.crc32(use.encode()))
