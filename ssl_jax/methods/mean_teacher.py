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
import jax.numpy as jnp
import optax

from ssl_jax.core import ema, rng
from ssl_jax.core.schedules import ramp
from ssl_jax.core.step import forward, init_network, probabilities, weighted_terms
from ssl_jax.ops.segmentation import ce_dice
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
  network = networks.backbone()

  def init(key: Array, batch: Batch) -> TrainState:
    params, stats = init_network(network, key, batch["labelled"]["image"])
    students, stats = {"a": params}, {"a": stats}
    teacher = jax.tree.map(jnp.copy, {"students": students, "stats": stats})  # own buffers, or donation would free them twice
    return TrainState(jnp.int32(0), students, (), stats, optimizer.init(students), teacher, ())

  def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
    labelled, image_u = batch["labelled"], batch["unlabelled"]["image"]
    num_labelled = labelled["image"].shape[0]
    key_of = lambda use: rng.key_for(key, state.step, use)

    noise = jnp.clip(options.noise_std * jax.random.normal(key_of("noise"), image_u.shape), -options.noise_clip, options.noise_clip)
    key_t = key_of("dropout_t") if options.teacher_dropout else None
    out_t, stats_t = forward(network, state.teacher["students"]["a"], state.teacher["stats"]["a"], image_u + noise, key=key_t)
    prob_t = jax.nn.softmax(out_t.logits)

    def loss_fn(students):
      image = jnp.concatenate([labelled["image"], image_u])
      out, stats = forward(network, students["a"], state.stats["a"], image, key=key_of("dropout_a"))
      terms = {
        "supervised": lambda: ce_dice(out.logits[:num_labelled], labelled["label"]),
        "consistency": lambda: jnp.mean((jax.nn.softmax(out.logits[num_labelled:]) - prob_t) ** 2),
      }
      loss, metrics = weighted_terms(options.weights, terms, {"consistency": ramp(state.step // options.ramp_unit_steps, options.ramp)})
      return loss, (stats, metrics)

    (_, (stats, metrics)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.students)
    updates, opt = optimizer.update(grads, state.opt, state.students)
    students = optax.apply_updates(state.students, updates)
    teacher = {"students": ema.update(state.teacher["students"], students, state.step, options.ema_decay), "stats": {"a": stats_t}}
    return dataclasses.replace(state, step=state.step + 1, students=students, stats={"a": stats}, opt=opt, teacher=teacher), metrics

  def predict(state: TrainState, image: Array) -> Array:
    return probabilities(network, state.students["a"], state.stats["a"], image)

  def predict_teacher(state: TrainState, image: Array) -> Array:
    return probabilities(network, state.teacher["students"]["a"], state.teacher["stats"]["a"], image)

  return Method(init, {"train": step}, predict, {"teacher": predict_teacher})
