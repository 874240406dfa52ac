"""Checkpoints of the training state: the last few and the best."""

import logging
from collections.abc import Mapping
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from jax.sharding import Sharding

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
    """Starts saving; the state may be donated as soon as this returns."""
    if step not in self._manager.all_steps():
      self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state)), metrics=dict(metrics or {}))

  def restore(self, abstract: PyTree, sharding: Sharding, select: str = "last") -> PyTree:
    """Returns the last or best state, placed as `sharding` says.

    Args:
      abstract: tree of `jax.ShapeDtypeStruct`, as `jax.eval_shape(init)` gives.
      sharding: of every leaf.
      select: "last", or "best" by validation Dice.

    Raises:
      InputError: no checkpoint, or one of another shape.
    """
    step = self._manager.latest_step() if select == "last" else self._manager.best_step()
    if step is None:
      raise InputError(f"{self._folder}: no {select} checkpoint; train first, or name another --workdir")
    target = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), abstract)
    try:
      return self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target)))["state"]
    except (ValueError, KeyError) as error:
      raise InputError(
        f"{self._folder / str(step)}: this checkpoint does not fit the configuration ({str(error).splitlines()[0]})"
      ) from error

  def close(self) -> None:
    """Waits until everything is on disk."""
    self._manager.wait_until_finished()
    self._manager.close()


def _dice(metrics: Mapping[str, float] | None) -> float:
  return (metrics or {}).get("dice", float("-inf"))
