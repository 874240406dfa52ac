"""Mean teacher: the student agrees with the moving average of itself on noisy unlabelled crops.

| equation | where |
|---|---|
| ℓ = ℓ_s(p_s, y) + w(t) · mean (p_s − p_t)² | `step` |
| w(t) = w_max · ramp(⌊t / 150⌋, R) | `step` |

Source: Tarvainen and Valpola 2017; settings of UA-MT's code on the Left Atrium [L].
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import optax

from ssl_jax.core import teaching
from ssl_jax.core.teaching import Lesson, taught
from ssl_jax.ops.views import gaussian_noise
from ssl_jax.types import Array, Method, Task, TrainState


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

  def teach(state: TrainState, image: Array, key_of: Callable[[str], Array]) -> Lesson:
    noisy = gaussian_noise(key_of("noise"), image, options.noise_std, options.noise_clip)
    return Lesson(image, *taught(network, state, noisy, key_of("dropout_t") if options.teacher_dropout else None))

  return teaching.build(network, optimizer, options, teach)
