"""The training that mean teachers share: a student learns from the labels, and to predict what its moving average teaches it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from ssl_jax.core import rng
from ssl_jax.core.schedules import ramp
from ssl_jax.core.step import both_halves, descend, follow, forward, init_state, student, teacher, weighted_terms
from ssl_jax.ops.consistency import mean_squared
from ssl_jax.ops.segmentation import ce_dice
from ssl_jax.ops.softmax import softmax
from ssl_jax.types import Array, Batch, Method, Metrics, PyTree, TrainState


@dataclasses.dataclass(frozen=True)
class Lesson:
  """What the student is taught in one step.

  Attributes:
    image: f32[U, *spatial, channels], what the student sees beside the labelled images.
    target: f32[U, *spatial, C], the probabilities it should give.
    stats: the teacher's new running averages.
    counted: bool[U, *spatial], the voxels that count; `None` for all.
    metrics: further ones to report.
  """

  image: Array
  target: Array
  stats: PyTree
  counted: Array | None = None
  metrics: Metrics = dataclasses.field(default_factory=dict)


def build(
  network: Any,
  optimizer: optax.GradientTransformation,
  options: Any,
  teach: Callable[[TrainState, Array, Callable[[str], Array]], Lesson],
) -> Method:
  """Returns the method ℓ_s(p, y) + w_max · ramp(⌊t / unit⌋, R) · mean (p − q)², q the lesson's target.

  Args:
    network: of student and teacher.
    optimizer: of the student.
    options: the method's, with `weights` of `supervised` and `consistency`, `ramp` R, `ramp_unit_steps` and `ema_decay`.
    teach: (state, unlabelled images, use -> key) -> lesson.
  """

  def init(key: Array, batch: Batch) -> TrainState:
    return init_state({"a": network}, optimizer, key, batch["labelled"]["image"], teacher=True)

  def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
    image, label = both_halves(batch)
    key_of = lambda use: rng.key_for(key, state.step, use)
    lesson = teach(state, image[len(label) :], key_of)

    def loss_fn(students):
      seen = jnp.concatenate([image[: len(label)], lesson.image])
      out, stats = forward(network, students["a"], state.stats["a"], seen, key=key_of("dropout_a"))
      terms = {
        "supervised": lambda: ce_dice(out.logits[: len(label)], label),
        "consistency": lambda: mean_squared(softmax(out.logits[len(label) :]), lesson.target, lesson.counted),
      }
      rising = {"consistency": ramp(state.step // options.ramp_unit_steps, options.ramp)}
      return *weighted_terms(options.weights, terms, rising), {"stats": {"a": stats}}

    state, metrics = descend(optimizer, state, loss_fn)
    return follow(state, {"a": lesson.stats}, options.ema_decay), {**metrics, **lesson.metrics}

  return Method(init, {"train": step}, student(network), {"teacher": teacher(network)})


def taught(network: Any, state: TrainState, image: Array, key: Array | None, stats: PyTree | None = None) -> tuple[Array, PyTree]:
  """Returns the teacher's probabilities f32[B, *spatial, C] and its new running averages, from `stats` or those of the state.

  Args:
    network: of student and teacher.
    state: its teacher predicts.
    image: f32[B, *spatial, channels].
    key: dropout key; `None` turns dropout off.
    stats: running averages to go on from.
  """
  own = state.teacher["stats"]["a"] if stats is None else stats
  out, stats = forward(network, state.teacher["students"]["a"], own, image, key=key)
  return softmax(out.logits), stats
