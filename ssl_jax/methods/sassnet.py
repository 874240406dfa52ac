"""SASSNet: shape-aware semi-supervised segmentation (Li et al., MICCAI 2020): signed distances that look alike on unlabelled scans.

| equation | where |
|---|---|
| L_s = ℓ_dice + α ℓ_mse, the distance map z against SDM(y) | `networks.heads.WithDistance`, `ops.distance.signed_distance` |
| L_a, network: the discriminator takes unlabelled z for labelled ones | `core.adversary.Adversary.deceived` |
| L_a, discriminator: labelled (z, x) against unlabelled ones | `core.adversary.Adversary.learn` |
| L_s + β(t) L_a | `step` |

Source: its published code [C].
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import optax

from ssl_jax.core import rng
from ssl_jax.core.adversary import Adversary
from ssl_jax.core.schedules import ramp
from ssl_jax.core.step import both_halves, descend, forward, infer, init_state, student, weighted_terms
from ssl_jax.ops.distance import signed_distance
from ssl_jax.ops.segmentation import dice_batch
from ssl_jax.ops.softmax import softmax
from ssl_jax.types import Array, Batch, Method, Metrics, Task, TrainState


@dataclasses.dataclass(frozen=True)
class Options:
  """Keys of `config.method`.

  Attributes:
    weights: of the terms; `distance` is α, `adversarial` the final β [C].
    ramp: R of β, in units of `ramp_unit_steps` [C].
    ramp_unit_steps: steps during which β stays constant [C].
    discriminator_lr: of its Adam [C].
  """

  weights: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"supervised": 1.0, "distance": 0.3, "adversarial": 0.01})
  ramp: float = 40.0
  ramp_unit_steps: int = 150
  discriminator_lr: float = 1e-4


def build(options: Options, networks: Any, optimizer: optax.GradientTransformation, task: Task) -> Method:
  """Returns the method; see `types.Method`."""
  del task
  network, num_classes = networks.with_distance(), networks.num_classes
  adversary = Adversary(networks.discriminator(), options.discriminator_lr)

  def init(key: Array, batch: Batch) -> TrainState:
    image = batch["labelled"]["image"]
    return adversary.join(init_state({"a": network}, optimizer, key, image), optimizer, key, image, num_classes - 1)

  def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
    image, label = both_halves(batch)
    count = len(label)
    key_of = lambda use, step=state.step: rng.key_for(key, step, use)

    def loss_fn(params):
      out, stats = forward(network, params, state.stats["a"], image, key=key_of("dropout_a"))
      terms = {
        "supervised": lambda: dice_batch(softmax(out.logits[:count]), label, 1e-5, squared=True),
        "distance": lambda: jnp.mean((out.distance[:count] - signed_distance(label, num_classes)) ** 2),
        "adversarial": lambda: adversary.deceived(state, out.distance[count:], image[count:]),
      }
      rising = {"adversarial": ramp(state.step // options.ramp_unit_steps, options.ramp)}
      return *weighted_terms(options.weights, terms, rising), {"stats": {"a": stats}}

    moved, metrics = descend(optimizer, state, loss_fn, of="a")
    if options.weights.get("adversarial"):
      distance = infer(network, moved.students["a"], moved.stats["a"], image).distance  # [C]
      moved, further = adversary.learn(moved, distance, image, count, key_of("dropout_discriminator"))
      metrics |= further
    return moved, metrics

  return Method(init, {"train": step}, student(network))
