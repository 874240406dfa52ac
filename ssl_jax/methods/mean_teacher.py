"""Mean teacher: the student agrees with the moving average of itself on noisy unlabelled crops.

| equation | where |
|---|---|
| ℓ = ℓ_s(p_s, y) + w(t) · mean (p_s − p_t)² | `step` |
| w(t) = w_max · ramp(⌊t / 150⌋, R) | `step` |

Source: Tarvainen and Valpola 2017; settings of UA-MT's code on the Left Atrium [L].
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import optax

from ssl_jax.core import rng
from ssl_jax.core.schedules import ramp
from ssl_jax.core.step import both_halves, descend, follow, forward, init_state, student, teacher, weighted_terms
from ssl_jax.ops.consistency import mean_squared
from ssl_jax.ops.segmentation import ce_dice
from ssl_jax.ops.views import gaussian_noise
from ssl_jax.types import Array, Batch, Method, Metrics, Task, TrainState


@dataclasses.dataclass(frozen=True)
class Options:
  """Keys of `config.method`.

  Attributes:
    weights: of the loss terms; `consistency` is w_max [L].
    ramp: R, in units of `ramp_unit_steps` [L].
    ramp_unit_steps: steps during which the consistency weight stays constant [L].
    ema_decay: upper bound of α [L].
    noise_std, noise_clip: Gaussian noise on the teacher's view, clipped [L].
    teacher_dropout: whether the teacher drops channels too; off [D].
  """

  weights: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"supervised": 1.0, "consistency": 0.1})
  ramp: float = 40.0
  ramp_unit_steps: int = 150
  ema_decay: float = 0.99
  noise_std: float = 0.1
  noise_clip: float = 0.2
  teacher_dropout: bool = False


def build(options: Options, networks: Any, optimizer: optax.GradientTransformation, task: Task) -> Method:
  """Returns the method; see `types.Method`."""
  del task
  network = networks.backbone()

  def init(key: Array, batch: Batch) -> TrainState:
    return init_state({"a": network}, optimizer, key, batch["labelled"]["image"], teacher=True)

  def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
    image, label = both_halves(batch)
    key_of = lambda use: rng.key_for(key, state.step, use)
    noisy = gaussian_noise(key_of("noise"), image[len(label) :], options.noise_std, options.noise_clip)
    key_t = key_of("dropout_t") if options.teacher_dropout else None
    out_t, stats_t = forward(network, state.teacher["students"]["a"], state.teacher["stats"]["a"], noisy, key=key_t)

    def loss_fn(students):
      out, stats = forward(network, students["a"], state.stats["a"], image, key=key_of("dropout_a"))
      terms = {
        "supervised": lambda: ce_dice(out.logits[: len(label)], label),
        "consistency": lambda: mean_squared(jax.nn.softmax(out.logits[len(label) :]), jax.nn.softmax(out_t.logits)),
      }
      rising = {"consistency": ramp(state.step // options.ramp_unit_steps, options.ramp)}
      return *weighted_terms(options.weights, terms, rising), {"stats": {"a": stats}}

    state, metrics = descend(optimizer, state, loss_fn)
    return follow(state, {"a": stats_t}, options.ema_decay), metrics

  return Method(init, {"train": step}, student(network), {"teacher": teacher(network)})
