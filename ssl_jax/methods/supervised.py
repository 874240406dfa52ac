"""Supervised training on the labelled half alone: the lower bound of every table, and with all labels the upper one.

| equation | where |
|---|---|
| ℓ_s = ½ (CE + Dice), CRLN eq. 1 | `ops.segmentation.ce_dice` |

Source: V-Net, Milletari et al. 2016.
"""

import dataclasses
from typing import Any

import optax

from ssl_jax.core import rng
from ssl_jax.core.step import descend, forward, init_state, student, weighted_terms
from ssl_jax.ops.segmentation import ce_dice
from ssl_jax.types import Array, Batch, Method, Metrics, Task, TrainState


@dataclasses.dataclass(frozen=True)
class Options:
  """Nothing to choose."""


def build(options: Options, networks: Any, optimizer: optax.GradientTransformation, task: Task) -> Method:
  """Returns the method; see `types.Method`."""
  del options, task
  network = networks.backbone()

  def init(key: Array, batch: Batch) -> TrainState:
    return init_state({"a": network}, optimizer, key, batch["labelled"]["image"])

  def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
    image, label = batch["labelled"]["image"], batch["labelled"]["label"]

    def loss_fn(students):
      out, stats = forward(network, students["a"], state.stats["a"], image, key=rng.key_for(key, state.step, "dropout_a"))
      return *weighted_terms({"supervised": 1.0}, {"supervised": lambda: ce_dice(out.logits, label)}), {"stats": {"a": stats}}

    return descend(optimizer, state, loss_fn)

  return Method(init, {"train": step}, student(network))
