"""Supervised training on the labelled half alone: the lower bound of every table, and with all labels the upper one.

| equation | where |
|---|---|
| ℓ_s = ½ (CE + Dice), CRLN eq. 1 | `ops.segmentation.ce_dice` |

Source: V-Net, Milletari et al. 2016.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ssl_jax.core import rng
from ssl_jax.core.step import forward, init_network, probabilities
from ssl_jax.ops.segmentation import ce_dice
from ssl_jax.types import Array, Batch, Method, Metrics, Task, TrainState


@dataclasses.dataclass(frozen=True)
class Options:
  """Nothing to choose."""


def build(options: Options, networks: Any, optimizer: optax.GradientTransformation, task: Task) -> Method:
  """Returns the method; see `types.Method`."""
  network = networks.backbone()

  def init(key: Array, batch: Batch) -> TrainState:
    params, stats = init_network(network, key, batch["labelled"]["image"])
    students = {"a": params}
    return TrainState(jnp.int32(0), students, (), {"a": stats}, optimizer.init(students), {}, ())

  def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
    labelled = batch["labelled"]

    def loss_fn(students):
      out, stats = forward(network, students["a"], state.stats["a"], labelled["image"], key=rng.key_for(key, state.step, "dropout_a"))
      return ce_dice(out.logits, labelled["label"]), stats

    (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.students)
    updates, opt = optimizer.update(grads, state.opt, state.students)
    state = dataclasses.replace(
      state, step=state.step + 1, students=optax.apply_updates(state.students, updates), stats={"a": stats}, opt=opt
    )
    return state, {"loss": loss, "loss_supervised": loss}

  def predict(state: TrainState, image: Array) -> Array:
    return probabilities(network, state.students["a"], state.stats["a"], image)

  return Method(init, {"train": step}, predict)
