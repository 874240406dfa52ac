"""DTC: Dual-Task Consistency (Luo et al., AAAI 2021): a network's segmentation agrees with its own level set function.

| equation | where |
|---|---|
| level set function, L_LSF = mean (z − SDM(y))² | `networks.heads.WithDistance`, `ops.distance.signed_distance` |
| T⁻¹(z) = σ(−k z), k = 1500 | `step` |
| L_DTC = mean (T⁻¹(z) − p)², labelled and unlabelled | `step` |
| L_Dice + β L_LSF + λ(t) L_DTC | `step` |

Source: its published code [C]. p and z hold the foreground classes, as its authors advise for more than one (HiLab-git/DTC, issue 5).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ssl_jax.core import rng
from ssl_jax.core.schedules import ramp
from ssl_jax.core.step import both_halves, descend, forward, init_state, student, weighted_terms
from ssl_jax.ops.distance import signed_distance
from ssl_jax.ops.segmentation import dice_batch
from ssl_jax.ops.softmax import softmax
from ssl_jax.types import Array, Batch, Method, Metrics, Task, TrainState


@dataclasses.dataclass(frozen=True)
class Options:
  """Keys of `config.method`.

  Attributes:
    weights: of the terms; `distance` is β, `consistency` the final λ [C].
    steepness: k [C].
    ramp: R of λ, in units of `ramp_unit_steps` [C].
    ramp_unit_steps: steps during which λ stays constant [C].
  """

  weights: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"supervised": 1.0, "distance": 0.3, "consistency": 1.0})
  steepness: float = 1500.0
  ramp: float = 40.0
  ramp_unit_steps: int = 150


def build(options: Options, networks: Any, optimizer: optax.GradientTransformation, task: Task) -> Method:
  """Returns the method; see `types.Method`."""
  del task
  if options.steepness <= 0:
    raise ValueError(f"config.method.steepness: must be positive, as a distance is negative inside; got {options.steepness}")
  network, num_classes = networks.with_distance(), networks.num_classes

  def init(key: Array, batch: Batch) -> TrainState:
    return init_state({"a": network}, optimizer, key, batch["labelled"]["image"])

  def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
    image, label = both_halves(batch)

    def loss_fn(students):
      out, stats = forward(network, students["a"], state.stats["a"], image, key=rng.key_for(key, state.step, "dropout_a"))
      prob = softmax(out.logits)
      terms = {
        "supervised": lambda: dice_batch(prob[: len(label)], label, 1e-5, squared=True),
        "distance": lambda: jnp.mean((out.distance[: len(label)] - signed_distance(label, num_classes)) ** 2),
        "consistency": lambda: jnp.mean((jax.nn.sigmoid(-options.steepness * out.distance) - prob[..., 1:]) ** 2),
      }
      rising = {"consistency": ramp(state.step // options.ramp_unit_steps, options.ramp)}
      return *weighted_terms(options.weights, terms, rising), {"stats": {"a": stats}}

    return descend(optimizer, state, loss_fn)

  return Method(init, {"train": step}, student(network))
