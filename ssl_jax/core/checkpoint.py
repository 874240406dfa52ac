"""Checkpoints of the training state: the last few and the best, each with a checksum of every array."""

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from ssl_jax.core import distributed
from ssl_jax.types import InputError, PyTree

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports every save


class Checkpoints:
  """Saves asynchronously and atomically; keeps the last `keep` and the one with the best validation Dice."""

  def __init__(self, folder: Path, keep: int = 2):
    policies = ocp.checkpoint_managers
    self._manager = ocp.CheckpointManager(
      folder.absolute(),
      options=ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), policies.BestN(get_metric_fn=_dice, n=1)]),
        best_fn=_dice,
        enable_async_checkpointing=True,
      ),
    )
    self._folder = folder

  def steps(self) -> list[int]:
    """Returns the steps of all complete checkpoints, ascending."""
    return sorted(self._manager.all_steps())

  def save(self, step: int, state: PyTree, metrics: Mapping[str, float] | None = None) -> None:
    """Starts saving; the state may be donated as soon as this returns.

    Raises:
      OSError: ENOSPC, now or for the save before, which was not finished; complete checkpoints stay as they are.
    """
    if step not in self._manager.all_steps():
      sums = [int(value) for value in jax.device_get(jax.tree.leaves(checksums(state)))]
      items = ocp.args.Composite(state=ocp.args.StandardSave(state), checksums=ocp.args.JsonSave({"leaves": sums}))
      with self._disk_full_as_such():
        self._manager.save(step, args=items, metrics=dict(metrics or {}))

  def restore(self, abstract: PyTree, shardings: PyTree, select: str = "last", set_aside: bool = False) -> PyTree:
    """Returns the last sound state, or the best one; a damaged one is named on standard error and passed over for the one before.

    Args:
      abstract: tree of `jax.ShapeDtypeStruct`, as `jax.eval_shape(init)` gives.
      shardings: of every leaf, or one for all; need not be those of the run that has saved.
      select: "last", or "best" by validation Dice.
      set_aside: move damaged ones to `<folder>_damaged`, so that training can write those steps again.

    Raises:
      InputError: no checkpoint, or none that is sound and fits `abstract`.
    """
    best = self._manager.best_step()
    steps = self.steps()[::-1] if select == "last" else [] if best is None else [best]
    if not steps:
      raise InputError(f"{self._folder}: no {select} checkpoint; train first, or name another --workdir")
    if isinstance(shardings, jax.sharding.Sharding):
      shardings = jax.tree.map(lambda _: shardings, abstract)
    target = jax.tree.map(lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), abstract, shardings)
    problems: list[str] = []
    for step in steps:
      state, problem = self._read(step, target)
      found = [p for p in distributed.gather(problem) if p]
      if not found:
        if problems and set_aside:
          self._set_aside([s for s in steps if s > step])
        return state
      problems.append(f"{self._folder / str(step)}: this checkpoint is damaged or does not fit the configuration ({found[0]})")
      print(problems[-1], file=sys.stderr)
    raise InputError(problems[0])

  def _read(self, step: int, target: PyTree) -> tuple[PyTree, str | None]:
    """Returns a state and `None`, or nothing and what is wrong with it."""
    items = ocp.args.Composite(state=ocp.args.StandardRestore(target), checksums=ocp.args.JsonRestore())
    try:
      found = self._manager.restore(step, args=items)
    except Exception as error:  # noqa: BLE001  a damaged file shows as whatever Orbax, TensorStore or JSON raise over it
      return None, next(iter(str(error).splitlines()), "") or type(error).__name__
    sums = jax.device_get(jax.tree.leaves(checksums(found["state"])))
    if not np.array_equal(np.asarray(sums, np.int64), np.asarray(found["checksums"]["leaves"], np.int64)):
      return None, "an array is not what was saved"
    return found["state"], None

  def _set_aside(self, steps: list[int]) -> None:
    if jax.process_index() == 0:
      for step in steps:
        place = self._folder.with_name(f"{self._folder.name}_damaged")
        place.mkdir(exist_ok=True)
        count = len(list(place.iterdir()))
        (self._folder / str(step)).rename(place / f"{step}_{count}")
    distributed.gather(None)  # the others wait until it is done
    self._manager.reload()

  def close(self) -> None:
    """Waits until everything is on disk; raises as `save`."""
    with self._disk_full_as_such():
      try:
        self._manager.wait_until_finished()
      finally:
        self._manager.close()

  @contextlib.contextmanager
  def _disk_full_as_such(self) -> Iterator[None]:
    try:
      yield
    except Exception as error:  # TensorStore says it as a ValueError, Orbax as its own
      if os.strerror(errno.ENOSPC) in str(error):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._folder)) from error
      raise


@jax.jit
def checksums(tree: PyTree) -> PyTree:
  """Returns u32[] for every leaf: the sum of its bit patterns, each weighted by an odd number that depends on its place.

  One changed bit always changes it, and it is the same however the leaf is sharded.
  """

  def checksum(leaf: jax.Array) -> jax.Array:
    words = (
      leaf.astype(jnp.uint8) if leaf.dtype == bool else jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}"))
    )
    place = jnp.zeros(leaf.shape, jnp.uint32)
    for axis in range(leaf.ndim):
      place = place * jnp.uint32(0x9E3779B1) + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
    return jnp.sum(words.astype(jnp.uint32) * (2 * place + 1), dtype=jnp.uint32)

  return jax.tree.map(checksum, tree)


def _dice(metrics: Mapping[str, float] | None) -> float:
  return (metrics or {}).get("dice", float("-inf"))
