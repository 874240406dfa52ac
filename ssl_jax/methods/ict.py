"""Interpolation consistency training: the prediction of a mixture of scans is the mixture of the teacher's predictions.

| equation | where |
|---|---|
| ℓ = ℓ_s(p_s, y) + w(t) · mean (p_s(mix(u₀, u₁)) − mix(p_t(u₀), p_t(u₁)))² | `step`, `ops.consistency.mean_squared` |
| mix(a, b) = (1 − λ) a + λ b, λ ~ Beta(α, α) for each pair | `ops.views.mixup` |
| w(t) = w_max · ramp(⌊t / 150⌋, R) | `step` |

Source: Verma et al. 2022 [P]; settings of SSL4MIS [L].
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from ssl_jax.core import teaching
from ssl_jax.core.teaching import Lesson, taught
from ssl_jax.ops.views import mixup
from ssl_jax.types import Array, Batch, Method, Task, TrainState


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

  def teach(state: TrainState, image: Array, key_of: Callable[[str], Array]) -> Lesson:
    pairs = len(image) // 2
    factor = jax.random.beta(key_of("mix"), options.alpha, options.alpha, (pairs,))
    mixed = lambda array: mixup(factor, array[:pairs], array[pairs:])
    prob, stats = taught(network, state, image, key_of("dropout_t") if options.teacher_dropout else None)
    return Lesson(mixed(image), mixed(prob), stats)

  method = teaching.build(network, optimizer, options, teach)

  def init(key: Array, batch: Batch) -> TrainState:
    if (size := batch["unlabelled"]["image"].shape[0]) % 2:
      raise ValueError(f"config.train.batch_unlabelled: ICT mixes pairs of unlabelled images, so it must be even; got {size}")
    return method.init(key, batch)

  return dataclasses.replace(method, init=init)
