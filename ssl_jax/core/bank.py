"""Memory bank of labelled features: fixed shapes, on the device, part of the state.

A slot belongs to a training case and a class. What a case had stored is replaced whenever it is seen again. `population` says how many
voxels the slots of a case and class stand for, so that drawing treats every voxel alike, not every slot.

Source: CAML, section 2.3; slots of fixed number [P], chosen and drawn as if all voxels were kept [C].
"""

import jax
import jax.numpy as jnp

from ssl_jax.types import Array

Bank = dict[str, Array]
"""`{"features": f32[L, C, N, D], "valid": i32[L, C], "population": i32[L, C]}`: L cases, C classes, N slots."""


def empty(num_cases: int, num_classes: int, slots: int, width: int) -> Bank:
  """Returns a bank that holds nothing."""
  none = jnp.zeros((num_cases, num_classes), jnp.int32)
  return {"features": jnp.zeros((num_cases, num_classes, slots, width), jnp.float32), "valid": none, "population": none}


def replace(bank: Bank, index: Array, features: Array, population: Array) -> Bank:
  """Returns the bank with the slots of some cases overwritten.

  Args:
    bank: the bank.
    index: i32[B], the cases; of one that occurs twice the later row stays.
    features: f32[B, C, N, D], of which the first min(N, population) slots are meant.
    population: i32[B, C].
  """
  num_cases, _, slots, _ = bank["features"].shape
  later = jnp.triu(index[:, None] == index[None, :], k=1).any(axis=1)
  target = jnp.where(later, num_cases, index)  # out of range: dropped
  new = {"features": features, "valid": jnp.minimum(population, slots), "population": population}
  return {name: bank[name].at[target].set(new[name], mode="drop") for name in bank}


def draw(bank: Bank, key: Array, count: int) -> tuple[Array, Array]:
  """Draws `count` slots of every class without replacement, each weighted by the voxels it stands for, population / valid.

  Args:
    bank: the bank.
    key: PRNG key.
    count: at most L·N.

  Returns:
    `(features f32[C, count, D], enough bool[C])`; a class that holds fewer than `count` is not enough, and its features are arbitrary.
  """
  num_cases, num_classes, slots, width = bank["features"].shape
  held = jnp.arange(slots) < bank["valid"][..., None]
  log_weight = jnp.log(bank["population"] / jnp.maximum(bank["valid"], 1))[..., None]
  by_class = lambda a: jnp.moveaxis(a, 0, 1).reshape(num_classes, num_cases * slots, *a.shape[3:])
  # The largest of log w + Gumbel noise are a weighted sample without replacement (Efraimidis and Spirakis 2006).
  noisy = jnp.where(held, log_weight + jax.random.gumbel(key, held.shape), -jnp.inf)
  chosen = jax.lax.top_k(by_class(noisy), count)[1]
  features = jnp.take_along_axis(by_class(bank["features"]), chosen[..., None], axis=1)
  return features, jnp.sum(bank["valid"], axis=0) >= count
