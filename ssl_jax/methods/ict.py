"""Interpolation consistency training: the prediction of a mixture of scans is the mixture of the teacher's predictions.

| equation | where |
|---|---|
| ℓ = ℓ_s(p_s, y) + w(t) · mean (p_s(mix(u₀, u₁)) − mix(p_t(u₀), p_t(u₁)))² | `step`, `ops.consistency.mean_squared` |
| mix(a, b) = (1 − λ) a + λ b, λ ~ Beta(α, α) for each pair | `ops.views.mixup` |
| w(t) = w_max · ramp(⌊t / 150⌋, R) | `step` |

Source: Verma et al. 2022 [P]; settings of SSL4MIS [L].
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ssl_jax.core import rng
from ssl_jax.core.schedules import ramp
from ssl_jax.core.step import descend, follow, forward, init_state, student, teacher, weighted_terms
from ssl_jax.ops.consistency import mean_squared
from ssl_jax.ops.segmentation import ce_dice
from ssl_jax.ops.views import mixup
from ssl_jax.types import Array, Batch, Method, Metrics, Task, TrainState


@dataclasses.dataclass(frozen=True)
class Options:
  """Keys of `config.method`.

  Attributes:
    weights: of the loss terms; `consistency` is w_max [L].
    ramp: R, in units of `ramp_unit_steps` [L].
    ramp_unit_steps: steps during which the consistency weight stays constant [L].
    alpha: both parameters of λ's Beta distribution [L].
    ema_decay: upper bound of the teacher's decay [L].
    teacher_dropout: whether the teacher drops channels too [L].
  """

  weights: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"supervised": 1.0, "consistency": 0.1})
  ramp: float = 40.0
  ramp_unit_steps: int = 150
  alpha: float = 0.2
  ema_decay: float = 0.99
  teacher_dropout: bool = True


def build(options: Options, networks: Any, optimizer: optax.GradientTransformation, task: Task) -> Method:
  """Returns the method; see `types.Method`."""
  del task
  if options.alpha <= 0:
    raise ValueError(f"config.method.alpha: must be positive, got {options.alpha}")
  network = networks.backbone()

  def init(key: Array, batch: Batch) -> TrainState:
    if (size := batch["unlabelled"]["image"].shape[0]) % 2:
      raise ValueError(f"config.train.batch_unlabelled: ICT mixes pairs of unlabelled images, so it must be even; got {size}")
    return init_state({"a": network}, optimizer, key, batch["labelled"]["image"], teacher=True)

  def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
    image_l, label, image_u = batch["labelled"]["image"], batch["labelled"]["label"], batch["unlabelled"]["image"]
    pairs = len(image_u) // 2
    key_of = lambda use: rng.key_for(key, state.step, use)
    factor = jax.random.beta(key_of("mix"), options.alpha, options.alpha, (pairs,))
    mixed = lambda array: mixup(factor, array[:pairs], array[pairs:])
    key_t = key_of("dropout_t") if options.teacher_dropout else None
    out_t, stats_t = forward(network, state.teacher["students"]["a"], state.teacher["stats"]["a"], image_u, key=key_t)
    target = mixed(jax.nn.softmax(out_t.logits))

    def loss_fn(students):
      image = jnp.concatenate([image_l, mixed(image_u)])
      out, stats = forward(network, students["a"], state.stats["a"], image, key=key_of("dropout_a"))
      terms = {
        "supervised": lambda: ce_dice(out.logits[: len(label)], label),
        "consistency": lambda: mean_squared(jax.nn.softmax(out.logits[len(label) :]), target),
      }
      rising = {"consistency": ramp(state.step // options.ramp_unit_steps, options.ramp)}
      return *weighted_terms(options.weights, terms, rising), {"stats": {"a": stats}}

    state, metrics = descend(optimizer, state, loss_fn)
    return follow(state, {"a": stats_t}, options.ema_decay), metrics

  return Method(init, {"train": step}, student(network), {"teacher": teacher(network)})
