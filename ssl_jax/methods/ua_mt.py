"""UA-MT: a mean teacher that is followed only where it is sure.

| equation | where |
|---|---|
| ℓ = ℓ_s(p_s, y) + w(t) · Σ m (p_s − p_t)² / (C · Σ m), w(t) = w_max · ramp(⌊t / 150⌋, R) | `step`, `ops.consistency.mean_squared` |
| µ = mean of T teacher passes with noise and dropout, u = −Σ µ log µ | `mean_of_passes`, `ops.segmentation.normalised_entropy` |
| m = 1[u < (¾ + ¼ · ramp(t, steps)) · ln C] | `step` |

Source: Yu et al. 2019 [P] and its code [C], where C = 2.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ssl_jax.core import teaching
from ssl_jax.core.schedules import ramp
from ssl_jax.core.teaching import Lesson, taught
from ssl_jax.ops.segmentation import normalised_entropy
from ssl_jax.ops.views import gaussian_noise
from ssl_jax.types import Array, Method, PyTree, Task, TrainState


@dataclasses.dataclass(frozen=True)
class Options:
  """Keys of `config.method`.

  Attributes:
    weights: of the loss terms; `consistency` is w_max [P, C].
    ramp: R, in units of `ramp_unit_steps` [P, C].
    ramp_unit_steps: steps during which the consistency weight stays constant [C].
    passes: T, even: two noisy copies of the batch pass at a time [P, C].
    threshold: share of the largest entropy below which a voxel counts at first; it rises to 1 [P, C].
    ema_decay: upper bound of α [P, C].
    noise_std, noise_clip: Gaussian noise on the teacher's views, clipped [C].
    teacher_dropout: whether the teacher drops channels where it is the target, as in the T passes [C].
  """

  weights: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"supervised": 1.0, "consistency": 0.1})
  ramp: float = 40.0
  ramp_unit_steps: int = 150
  passes: int = 8
  threshold: float = 0.75
  ema_decay: float = 0.99
  noise_std: float = 0.1
  noise_clip: float = 0.2
  teacher_dropout: bool = True


def build(options: Options, networks: Any, optimizer: optax.GradientTransformation, task: Task) -> Method:
  """Returns the method; see `types.Method`."""
  if options.passes < 2 or options.passes % 2:
    raise ValueError(f"config.method.passes: must be an even number, at least 2; got {options.passes}")
  if not 0 < options.threshold <= 1:
    raise ValueError(f"config.method.threshold: a share of ln C, so above 0 and at most 1; got {options.threshold}")
  network = networks.backbone()
  noisy = lambda key, image: gaussian_noise(key, image, options.noise_std, options.noise_clip)

  def mean_of_passes(state: TrainState, stats: PyTree, image: Array, key: Array) -> tuple[Array, PyTree]:
    """Mean probability f32[B, *spatial, C] of T noisy passes with dropout, and the teacher's running averages."""

    def two_passes(carry: tuple[Array, PyTree], key: Array) -> tuple[tuple[Array, PyTree], None]:
      key_noise, key_dropout = jax.random.split(key)
      prob, stats = taught(network, state, noisy(key_noise, jnp.concatenate([image, image])), key_dropout, carry[1])
      return (sum(jnp.split(prob / options.passes, 2), carry[0]), stats), None

    none = jnp.zeros((*image.shape[:-1], networks.num_classes))
    return jax.lax.scan(two_passes, (none, stats), jax.random.split(key, options.passes // 2))[0]

  def teach(state: TrainState, image: Array, key_of: Callable[[str], Array]) -> Lesson:
    target, stats = taught(network, state, noisy(key_of("noise"), image), key_of("dropout_t") if options.teacher_dropout else None)
    mean, stats = mean_of_passes(state, stats, image, key_of("passes"))
    sure = normalised_entropy(mean) < options.threshold + (1.0 - options.threshold) * ramp(state.step, task.num_steps)
    return Lesson(image, target, stats, sure, {"sure_share": jnp.mean(sure)})

  return teaching.build(network, optimizer, options, teach)
