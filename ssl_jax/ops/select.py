"""Choosing voxels by masks and confidences: static shapes, no sort of whole volumes, no boolean indexing."""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from ssl_jax.ops import order

_BLOCK = 256


def at_rank(mask: Array, rank: Array) -> tuple[Array, Array]:
  """Finds the `rank`-th True entry of a mask, for many ranks at once.

  Counts per block of voxels are summed up, the blocks are searched, then one block per rank is searched: one pass over the mask.

  Args:
    mask: bool[B, V].
    rank: i32[m], each in 0 .. number of True entries − 1.

  Returns:
    `(index i32[m] into the flattened mask, total i32[])`; a rank out of range gives an arbitrary index in range.
  """
  batch, voxels = mask.shape
  blocks, ends = _blocks(mask)
  per_block = jnp.diff(ends, prepend=0)
  block = jnp.minimum(jnp.searchsorted(ends, rank, side="right"), per_block.size - 1)
  rank_in_block = rank - (ends[block] - per_block[block])
  seen = jnp.cumsum(blocks.reshape(-1, _BLOCK)[block], axis=-1, dtype=jnp.int32)
  offset = jnp.argmax(seen > rank_in_block[:, None], axis=-1)
  blocks_per_sample = blocks.shape[1]
  sample, position = block // blocks_per_sample, (block % blocks_per_sample) * _BLOCK + offset
  return sample * voxels + jnp.minimum(position, voxels - 1), ends[-1]


def draw(key: Array, mask: Array, count: int) -> tuple[Array, Array]:
  """Draws `count` positions uniformly, with replacement, among the True entries of a mask.

  Args:
    key: PRNG key.
    mask: bool[B, V].
    count: number of draws.

  Returns:
    `(index i32[count] into the flattened mask, valid bool[])`; without a True entry `valid` is False and the indices are arbitrary but in
    range.
  """
  total = jnp.sum(mask, dtype=jnp.int32)
  index, _ = at_rank(mask, jax.random.randint(key, (count,), 0, jnp.maximum(total, 1)))
  return index, total > 0


def spread(key: Array, mask: Array, count: int) -> tuple[Array, Array]:
  """Draws up to `count` distinct positions among the True entries of a mask, each with the same probability.

  The ranks 0 .. total − 1, turned by a random offset, are cut into `count` runs of nearly equal length, and one is drawn from each.

  Args:
    key: PRNG key.
    mask: bool[V].
    count: number of draws, at most 2¹⁵.

  Returns:
    `(index i32[count], total i32[])`, of which the first min(count, total) are meant; with fewer True entries than `count` these are all
    of them in order.
  """
  if count > 1 << 15:
    raise ValueError(f"spread: at most {1 << 15} draws, got {count}")  # products of two such numbers fit 32 bits
  total = jnp.sum(mask, dtype=jnp.int32)
  key_turn, key_in_run = jax.random.split(key)
  k = jnp.arange(count + 1)
  start = k * (total // count) + (k * (total % count)) // count
  rank = start[:-1] + jax.random.randint(key_in_run, (count,), 0, jnp.maximum(jnp.diff(start), 1))
  rank = (rank + jax.random.randint(key_turn, (), 0, jnp.maximum(total, 1))) % jnp.maximum(total, 1)
  return at_rank(mask[None], jnp.where(total > count, rank, jnp.arange(count)))[0], total


def most_confident(confidence: Array, mask: Array, count: int) -> tuple[Array, Array]:
  """The `count` positions of largest confidence among the True entries of a mask.

  Args:
    confidence: f32[V], not negative.
    mask: bool[V].
    count: at most V are returned.

  Returns:
    `(index i32[count], valid bool[count])` in order of falling confidence, equal ones in order of position; `valid` is False beyond the
    mask's True entries.
  """
  value, index = jax.lax.top_k(jnp.where(mask, confidence, -1.0), min(count, confidence.size))
  return index, value >= 0.0


def take(voxels: Array, index: Array) -> Array:
  """Returns [m, n], the rows i32[m] of [V, n]; the zeros to which its gradient is added are not made before the gradient is there."""
  return _take(voxels.shape[0], voxels, index)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _take(count: int, voxels: Array, index: Array) -> Array:
  return voxels[index]


def _take_backward(count: int, index: Array, grad: Array) -> tuple[Array, None]:
  zeros = jnp.broadcast_to(order.zero_of(grad), (count, grad.shape[1]))
  return zeros.at[index].add(grad), None


_take.defvjp(lambda count, voxels, index: (_take(count, voxels, index), index), _take_backward)


def _blocks(mask: Array) -> tuple[Array, Array]:
  """Pads the samples to whole blocks: bool[B, blocks, _BLOCK], and the running count of True entries at the end of every block."""
  blocks = jnp.pad(mask, ((0, 0), (0, -mask.shape[1] % _BLOCK))).reshape(mask.shape[0], -1, _BLOCK)
  return blocks, jnp.cumsum(jnp.sum(blocks, axis=-1, dtype=jnp.int32).reshape(-1))
