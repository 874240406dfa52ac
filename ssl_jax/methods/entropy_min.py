"""Entropy minimisation: one network is asked to be sure of its predictions.

| equation | where |
|---|---|
| ℓ = ℓ_s(p, y) + w(t) · mean H(p) / ln C, H(p) = −Σ p log p | `step`, `ops.segmentation.normalised_entropy` |
| w(t) = w_max · ramp(⌊t / 150⌋, R) | `step` |

Source: Vu et al. 2019 (ADVENT, its direct loss); settings of SSL4MIS [L].
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import optax

from ssl_jax.core import rng
from ssl_jax.core.schedules import ramp
from ssl_jax.core.step import both_halves, descend, forward, init_state, student, weighted_terms
from ssl_jax.ops.segmentation import ce_dice, normalised_entropy
from ssl_jax.ops.softmax import softmax
from ssl_jax.types import Array, Batch, Method, Metrics, Task, TrainState


@dataclasses.dataclass(frozen=True)
class Options:
  """Keys of `config.method`.

  Attributes:
    weights: of the loss terms; `entropy` is w_max [L].
    ramp: R, in units of `ramp_unit_steps` [L].
    ramp_unit_steps: steps during which the weight stays constant [L].
    samples: whose entropy falls: "all" [L] or "unlabelled" scans' [P].
  """

  weights: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"supervised": 1.0, "entropy": 0.1})
  ramp: float = 40.0
  ramp_unit_steps: int = 150
  samples: Literal["all", "unlabelled"] = "all"


def build(options: Options, networks: Any, optimizer: optax.GradientTransformation, task: Task) -> Method:
  """Returns the method; see `types.Method`."""
  del task
  network = networks.backbone()

  def init(key: Array, batch: Batch) -> TrainState:
    return init_state({"a": network}, optimizer, key, batch["labelled"]["image"])

  def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
    image, label = both_halves(batch)
    first = 0 if options.samples == "all" else len(label)

    def loss_fn(students):
      out, stats = forward(network, students["a"], state.stats["a"], image, key=rng.key_for(key, state.step, "dropout_a"))
      terms = {
        "supervised": lambda: ce_dice(out.logits[: len(label)], label),
        "entropy": lambda: jnp.mean(normalised_entropy(softmax(out.logits[first:]))),
      }
      rising = {"entropy": ramp(state.step // options.ramp_unit_steps, options.ramp)}
      return *weighted_terms(options.weights, terms, rising), {"stats": {"a": stats}}

    return descend(optimizer, state, loss_fn)

  return Method(init, {"train": step}, student(network))
