"""Cross pseudo supervision: two networks of one architecture learn each other's hard predictions.

| equation | where |
|---|---|
| ℓ = ℓ_s(p_a, y) + ℓ_s(p_b, y) + w(t) · ℓ_cps | `step` |
| ℓ_cps = CE(p_a, argmax p_b) + CE(p_b, argmax p_a) | `ops.consistency.cross_pseudo_supervision` |
| w(t) = w_max · ramp(⌊t / 150⌋, R) | `step` |

Source: Chen et al. 2021 [P]; settings of SSL4MIS [L].
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import optax

from ssl_jax.core import rng
from ssl_jax.core.schedules import ramp
from ssl_jax.core.step import both_halves, descend, forward, init_state, student, weighted_terms
from ssl_jax.ops.consistency import cross_pseudo_supervision
from ssl_jax.ops.segmentation import ce_dice
from ssl_jax.types import Array, Batch, Method, Metrics, Task, TrainState


@dataclasses.dataclass(frozen=True)
class Options:
  """Keys of `config.method`.

  Attributes:
    weights: of the loss terms; `cps` is w_max [L].
    ramp: R, in units of `ramp_unit_steps` [L]; 0: a constant weight [P].
    ramp_unit_steps: steps during which the weight stays constant [L].
    samples: on which the networks teach each other: the "unlabelled" scans [L] or "all" [P].
  """

  weights: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"supervised": 1.0, "cps": 0.1})
  ramp: float = 40.0
  ramp_unit_steps: int = 150
  samples: Literal["unlabelled", "all"] = "unlabelled"


def build(options: Options, networks: Any, optimizer: optax.GradientTransformation, task: Task) -> Method:
  """Returns the method; see `types.Method`."""
  del task
  network = networks.backbone()  # one module, two sets of parameters

  def init(key: Array, batch: Batch) -> TrainState:
    return init_state(dict.fromkeys("ab", network), optimizer, key, batch["labelled"]["image"])

  def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
    image, label = both_halves(batch)
    first = 0 if options.samples == "all" else len(label)

    def loss_fn(students):
      logits, stats = {}, {}
      for name in students:
        key_of = rng.key_for(key, state.step, f"dropout_{name}")
        out, stats[name] = forward(network, students[name], state.stats[name], image, key=key_of)
        logits[name] = out.logits
      terms = {
        "supervised": lambda: ce_dice(logits["a"][: len(label)], label) + ce_dice(logits["b"][: len(label)], label),
        "cps": lambda: cross_pseudo_supervision(logits["a"][first:], logits["b"][first:]),
      }
      rising = {"cps": ramp(state.step // options.ramp_unit_steps, options.ramp)}
      return *weighted_terms(options.weights, terms, rising), {"stats": stats}

    return descend(optimizer, state, loss_fn)

  return Method(init, {"train": step}, student(network, "a"), {"network_b": student(network, "b")})
