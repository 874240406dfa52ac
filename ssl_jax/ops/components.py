"""The largest connected component of a mask, in two and three dimensions, on the device.

Voxels are dealt with in blocks of 2 along every axis. Under full connectivity a block's own voxels all touch, and two neighbouring blocks
are connected exactly if both hold a voxel on the side, edge or corner where they meet, so blocks are the nodes of a graph with a quarter
(2D) or an eighth (3D) of the nodes. They are numbered in raster order, and every block keeps the number of a block of its own component,
its root, which only ever falls: until nothing changes, roots pass on to neighbours, to roots of roots, and along axes.

Nothing changes only once neighbours share their root, so the result is exact. A component's smallest number moves at least one block a
round, so as many rounds as there are blocks always suffice; segmentation masks take about 5 (benchmarks/results/largest_component.md).
"""

import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

Links = dict[tuple[int, ...], Array]  # step to a neighbour, as (-1, 0, 1) per axis -> bool[*grid], whether a block is connected to it
Spread = Callable[[Array, Array, Links], Array]  # every block's root, the smallest root next to it, and the links -> roots no larger


@jax.jit  # for tracing alone: networks' pseudo-labels have one shape
def largest_component(mask: Array) -> Array:
  """Keeps the largest connected component of every sample, under full connectivity: 8 neighbours in 2D, 26 in 3D.

  Of several largest the one met first in raster order (C order, last axis fastest) stays. An empty mask stays empty.

  Args:
    mask: bool[B, *spatial], two or three spatial axes, fewer than 2³¹ voxels a sample; no gradient.

  Returns:
    bool[B, *spatial].

  Source: CML's "NMS" of pseudo-labels [C]. Hooking and pointer jumps: Shiloach and Vishkin 1982; Zhang, Azad and Hu 2020 (FastSV).
  """
  return _of_each(mask, _spread)


def largest_per_class(logits: Array) -> Array:
  """Predicted classes, of each only the largest component of every sample; what falls away becomes class 0.

  Args:
    logits: f32[B, *spatial, C]; no gradient.

  Returns:
    i32[B, *spatial].

  Source: "NMS" of pseudo-labels in the published code of BCP and CML [C].
  """
  batch, *spatial, num_classes = logits.shape
  classes = jnp.arange(1, num_classes).reshape(-1, *(1,) * (logits.ndim - 1))
  masks = jnp.argmax(logits, axis=-1) == classes
  kept = largest_component(masks.reshape(-1, *spatial)).reshape(num_classes - 1, batch, *spatial)
  return jnp.sum(kept * classes, axis=0).astype(jnp.int32)


def _of_each(mask: Array, spread: Spread) -> Array:
  return jax.vmap(lambda m: _largest(m, spread))(mask)


def _spread(root: Array, smallest: Array, links: Links) -> Array:
  return lax.platform_dependent(root, smallest, links, tpu=_sweep, default=_hook)


def _largest(mask: Array, spread: Spread) -> Array:
  blocks = _blocks(mask)
  links = _links(blocks)
  grid = next(iter(links.values())).shape
  count = math.prod(grid)

  def more(state: tuple[Array, Array, Array]) -> Array:
    _, changed, rounds = state
    return changed & (rounds < count)

  def one_round(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    root, _, rounds = state
    new = spread(root, _smallest_neighbour(root, links), links)
    return new, jnp.any(new != root), rounds + 1

  start = jnp.arange(count, dtype=jnp.int32)
  root, _, _ = lax.while_loop(more, one_round, (start, jnp.bool_(True), jnp.int32(0)))
  chosen = (root == _winner(blocks, root, mask.shape)).reshape(grid)
  for axis in range(mask.ndim):
    chosen = jnp.repeat(chosen, 2, axis=axis)
  return mask & chosen[tuple(slice(0, s) for s in mask.shape)]


def _blocks(x: Array) -> Array:
  """[*spatial] -> [*grid, 2, ..., 2], filled up with zeros."""
  x = jnp.pad(x, [(0, s % 2) for s in x.shape])
  rank, split = x.ndim, x.reshape([n for s in x.shape for n in (s // 2, 2)])
  return jnp.transpose(split, (*range(0, 2 * rank, 2), *range(1, 2 * rank, 2)))


def _links(blocks: Array) -> Links:
  rank = blocks.ndim // 2
  where = {-1: 0, 0: slice(None), 1: 1}

  def occupied(step: tuple[int, ...]) -> Array:
    part = blocks[(..., *(where[s] for s in step))]
    return jnp.any(part, axis=tuple(range(rank, part.ndim)))

  parts = {step: occupied(step) for step in itertools.product((-1, 0, 1), repeat=rank) if any(step)}
  return {step: part & _away(parts[tuple(-s for s in step)], step) for step, part in parts.items()}


def _away(x: Array, step: tuple[int, ...]) -> Array:
  """Returns x at every index + step, 0 outside."""
  return lax.pad(x, jnp.zeros((), x.dtype), [(-s, s, 0) for s in step])


def _smallest_neighbour(root: Array, links: Links) -> Array:
  """Smallest root among a block and its neighbours. Numbers of neighbours differ by a constant, links end at the border: flat shifts do."""
  grid = next(iter(links.values())).shape
  strides = [math.prod(grid[axis + 1 :]) for axis in range(len(grid))]
  reach = sum(strides)
  padded, smallest = jnp.pad(root, reach), root
  for step, linked in links.items():
    start = reach + sum(s * stride for s, stride in zip(step, strides, strict=True))
    there = lax.slice_in_dim(padded, start, start + root.size)
    smallest = jnp.where(linked.reshape(-1), jnp.minimum(smallest, there), smallest)
  return smallest


def _hook(root: Array, smallest: Array, links: Links) -> Array:
  """Roots take the smallest root met by any of their blocks, then every block takes its root's root, twice."""
  del links
  new = jnp.minimum(root.at[root].min(smallest), smallest)
  new = new[new]
  return new[new]


def _sweep(root: Array, smallest: Array, links: Links) -> Array:
  """For TPU, where scattering and gathering are slow: along each axis in turn, every run of connected blocks takes its smallest root.

  So a round passes straight runs, and winding paths take as many rounds as bends.
  """
  del root
  grid, low = next(iter(links.values())).shape, smallest
  for axis, side in enumerate(grid):
    for way in (-1, 1):
      linked = links[tuple(way * (a == axis) for a in range(len(grid)))]
      low = _along_runs(low, linked.reshape(-1), way * math.prod(grid[axis + 1 :]), side)
  return low


def _along_runs(low: Array, linked: Array, step: int, side: int) -> Array:
  """Smallest root on the run of links that leads away from every block.

  Args:
    low: i32[n], a root for every block.
    linked: bool[n], whether a block is connected to the one a step on.
    step: of the flat index.
    side: most blocks on a run. The reach doubles until it covers them.

  Returns:
    i32[n].
  """
  doublings = (side - 1).bit_length()
  padding = abs(step) << doublings

  def double(k: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
    there = lambda x: lax.dynamic_slice(jnp.pad(x, padding), (padding + step * (1 << k),), x.shape)
    low, linked = state  # the latter over all 2ᵏ links
    return jnp.where(linked, jnp.minimum(low, there(low)), low), linked & there(linked)

  return lax.fori_loop(0, doublings, double, (low, linked))[0]


def _winner(blocks: Array, root: Array, shape: tuple[int, ...]) -> Array:
  """Root of the component with the most voxels; of several the one with the first voxel."""
  inside = tuple(range(blocks.ndim // 2, blocks.ndim))
  voxels = jnp.sum(blocks, axis=inside, dtype=jnp.int32).reshape(-1)
  size = jnp.zeros_like(root).at[root].add(voxels)[root]
  number = _blocks(jnp.arange(math.prod(shape), dtype=jnp.int32).reshape(shape))
  first = jnp.min(number, axis=inside, where=blocks, initial=math.prod(shape)).reshape(-1)
  return root[jnp.argmin(jnp.where(size == jnp.max(size), first, math.prod(shape)))]
