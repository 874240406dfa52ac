"""MCF: Mutual Correction Framework (Wang et al., CVPR 2023). Two different networks, corrected where they contradict each other.

| equation | where |
|---|---|
| Σ_i CE(p_i, y) + Dice(p_i, y) | `loss_fn`, term `supervised` |
| contrastive difference review: error of p_i where the networks predict different classes | `ops.consistency.error_where_different` |
| competition: the network with the lower Dice loss on the labelled half teaches the other | `loss_fn`, term `consistency` |
| mean (p_worse − sharpen(p_better))² on the unlabelled half | `loss_fn`, term `consistency` |
| w(t) = w_max · ramp(⌊t / 150⌋, R) | `loss_fn` |

Source: the authors' code [C].
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
from ssl_jax.ops.consistency import error_where_different, sharpen
from ssl_jax.ops.segmentation import cross_entropy, dice_batch
from ssl_jax.ops.softmax import softmax
from ssl_jax.types import Array, Batch, Method, Metrics, Task, TrainState


@dataclasses.dataclass(frozen=True)
class Options:
  """Keys of `config.method`.

  Attributes:
    weights: of the terms; `consistency` is w_max [C].
    temperature: T of the sharpened pseudo-labels [C].
    ramp: R, in units of `ramp_unit_steps` [C].
    ramp_unit_steps: steps during which the consistency weight stays constant [C].
    residual: whether the second network's encoder is residual [P, C]; else the two differ in upsampling [D].
  """

  weights: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"supervised": 1.0, "rectification": 0.5, "consistency": 0.1})
  temperature: float = 0.1
  ramp: float = 40.0
  ramp_unit_steps: int = 150
  residual: bool = True


def build(options: Options, networks: Any, optimizer: optax.GradientTransformation, task: Task) -> Method:
  """Returns the method; see `types.Method`."""
  del task
  second = networks.backbone(residual=True) if options.residual else networks.backbone(upsample="trilinear")
  pair = {"a": networks.backbone(), "b": second}

  def init(key: Array, batch: Batch) -> TrainState:
    return init_state(pair, optimizer, key, batch["labelled"]["image"])

  def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
    image, label = both_halves(batch)
    count = len(label)

    def loss_fn(students):
      logits, stats = {}, {}
      for name, network in pair.items():
        dropout = rng.key_for(key, state.step, f"dropout_{name}")
        out, stats[name] = forward(network, students[name], state.stats[name], image, key=dropout)
        logits[name] = out.logits
      (a, b), (u_a, u_b) = ([x[half] for x in logits.values()] for half in (slice(count), slice(count, None)))
      dice = [dice_batch(softmax(x), label) for x in (a, b)]
      a_teaches = dice[0] < dice[1]

      def competition():
        target = jax.lax.stop_gradient(sharpen(jnp.where(a_teaches, u_a, u_b), options.temperature))
        return jnp.mean((softmax(jnp.where(a_teaches, u_b, u_a)) - target) ** 2)

      terms = {
        "supervised": lambda: sum(cross_entropy(x, label) + d for x, d in zip((a, b), dice, strict=True)),
        "rectification": lambda: error_where_different(a, b, label) + error_where_different(b, a, label),
        "consistency": competition,
      }
      rising = {"consistency": ramp(state.step // options.ramp_unit_steps, options.ramp)}
      loss, metrics = weighted_terms(options.weights, terms, rising)
      different = jnp.mean(jnp.argmax(u_a, axis=-1) != jnp.argmax(u_b, axis=-1))
      return loss, {**metrics, "a_teaches": a_teaches.astype(jnp.float32), "different": different}, {"stats": stats}

    return descend(optimizer, state, loss_fn)

  each = {f"network_{name}": student(network, name) for name, network in pair.items()}

  def predict(state: TrainState, image: Array) -> Array:
    return 0.5 * (each["network_a"](state, image) + each["network_b"](state, image))

  return Method(init, {"train": step}, predict, each)
