"""The training that methods of one network with several predictions share: all learn from the labels, and they are made to agree."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import optax

from ssl_jax.core import rng
from ssl_jax.core.schedules import ramp
from ssl_jax.core.step import both_halves, descend, forward, infer, init_state, student, weighted_terms
from ssl_jax.ops.consistency import mutual_consistency
from ssl_jax.ops.segmentation import dice_batch
from ssl_jax.ops.softmax import softmax
from ssl_jax.types import Array, Batch, Method, Metrics, TrainState


@dataclasses.dataclass(frozen=True)
class MutualOptions:
  """Options of the methods whose decoders learn each other's sharpened predictions.

  Attributes:
    weights: of the loss terms: `supervised` is β, `consistency` w_max [C].
    further: how the decoders behind the first double the resolution, "transpose", "trilinear" or "nearest"; the first does what
      `config.network.upsample` says [C].
    temperature: T of the sharpening [C].
    ramp: R, in units of `ramp_unit_steps` [C].
    ramp_unit_steps: steps during which the consistency weight stays constant [C].
    evaluated: the "first" decoder [C] or the "mean" of all decoders' probabilities.
  """

  weights: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"supervised": 0.5, "consistency": 1.0})
  further: tuple[str, ...] = ("trilinear",)
  temperature: float = 0.1
  ramp: float = 40.0
  ramp_unit_steps: int = 150
  evaluated: Literal["first", "mean"] = "first"


def build_mutual(options: MutualOptions, networks: Any, optimizer: optax.GradientTransformation) -> Method:
  """Returns the method β Σ_i Dice(p_i, y) + w(t) Σ_{i≠j} mean (p_i − sharpen(p_j))² over the decoders of one network.

  Source: published code of MC-Net and MC-Net+ [C].
  """
  return build(
    networks.backbone(further=options.further),
    optimizer,
    options,
    supervised=lambda logits, label: sum(dice_batch(softmax(x), label) for x in logits),
    consistency=lambda logits, _: mutual_consistency(logits, options.temperature),  # of labelled and unlabelled images [C]
    published_select="best",  # by Dice on the test list [C]
  )


def build(
  network: Any,
  optimizer: optax.GradientTransformation,
  options: Any,
  *,
  supervised: Callable[[Sequence[Array], Array], Any],
  consistency: Callable[[Sequence[Array], int], Array],
  published_select: Literal["last", "best"] = "last",
) -> Method:
  """Returns the method that minimises w_s · supervised + w_c · ramp(⌊t / unit⌋, R) · consistency.

  Args:
    network: its output has `heads`, see `networks.blocks.HeadsOutput`.
    optimizer: of the network.
    options: the method's, with `weights` of the two terms, `ramp` R and `ramp_unit_steps`, and `evaluated`, the "first" head or the "mean"
      of all heads' probabilities; the other is shown beside it.
    supervised: (logits f32[L, *spatial, C] of every head on the labelled images, label) -> loss.
    consistency: (logits f32[B, *spatial, C] of every head, number L of labelled images, which come first) -> loss.
    published_select: see `types.Method`.
  """

  def init(key: Array, batch: Batch) -> TrainState:
    return init_state({"a": network}, optimizer, key, batch["labelled"]["image"])

  def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
    image, label = both_halves(batch)

    def loss_fn(students):
      out, stats = forward(network, students["a"], state.stats["a"], image, key=rng.key_for(key, state.step, "dropout_a"))
      terms = {
        "supervised": lambda: supervised([logits[: len(label)] for logits in out.heads], label),
        "consistency": lambda: consistency(out.heads, len(label)),
      }
      rising = {"consistency": ramp(state.step // options.ramp_unit_steps, options.ramp)}
      return *weighted_terms(options.weights, terms, rising), {"stats": {"a": stats}}

    return descend(optimizer, state, loss_fn)

  def mean(state: TrainState, image: Array) -> Array:
    heads = infer(network, state.students["a"], state.stats["a"], image).heads
    return jnp.mean(softmax(jnp.stack(heads)), axis=0)

  predictors = {"first": student(network), "mean": mean}
  predict = predictors.pop(options.evaluated)
  return Method(init, {"train": step}, predict, predictors, published_select=published_select)
