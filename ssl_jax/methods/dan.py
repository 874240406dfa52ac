"""DAN: Deep Adversarial Network (Zhang et al., MICCAI 2017): segmentations of unlabelled scans that pass for those of labelled ones.

| equation | where |
|---|---|
| ℓ_s = ½ (CE + Dice) | `ops.segmentation.ce_dice` |
| segmentation network: the evaluation network takes unlabelled (p, x) for labelled ones | `core.adversary.Adversary.deceived` |
| evaluation network: labelled (p, x) against unlabelled ones | `core.adversary.Adversary.learn` |
| ℓ_s + w(t) ℓ_adv | `step` |

Source: its form in SSL4MIS, whose evaluation network is SASSNet's discriminator instead of the paper's own [L].
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import optax

from ssl_jax.core import rng
from ssl_jax.core.adversary import Adversary
from ssl_jax.core.schedules import ramp
from ssl_jax.core.step import both_halves, descend, forward, init_state, student, weighted_terms
from ssl_jax.ops.segmentation import ce_dice
from ssl_jax.ops.softmax import softmax
from ssl_jax.types import Array, Batch, Method, Metrics, Task, TrainState


@dataclasses.dataclass(frozen=True)
class Options:
  """Keys of `config.method`.

  Attributes:
    weights: of the terms; `adversarial` is the final w [L].
    ramp: R of w, in units of `ramp_unit_steps`; 200 for 30,000 steps [L], 40 on the Left Atrium as its other baselines [D].
    ramp_unit_steps: steps during which w stays constant [L].
    discriminator_lr: of the evaluation network's Adam [L].
  """

  weights: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"supervised": 1.0, "adversarial": 0.1})
  ramp: float = 40.0
  ramp_unit_steps: int = 150
  discriminator_lr: float = 1e-4


def build(options: Options, networks: Any, optimizer: optax.GradientTransformation, task: Task) -> Method:
  """Returns the method; see `types.Method`."""
  del task
  network = networks.backbone()
  predict = student(network)
  adversary = Adversary(networks.discriminator(), options.discriminator_lr)

  def init(key: Array, batch: Batch) -> TrainState:
    image = batch["labelled"]["image"]
    return adversary.join(init_state({"a": network}, optimizer, key, image), optimizer, key, image, networks.num_classes)

  def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
    image, label = both_halves(batch)
    count = len(label)
    key_of = lambda use, step=state.step: rng.key_for(key, step, use)

    def loss_fn(params):
      out, stats = forward(network, params, state.stats["a"], image, key=key_of("dropout_a"))
      terms = {
        "supervised": lambda: ce_dice(out.logits[:count], label),
        "adversarial": lambda: adversary.deceived(state, softmax(out.logits[count:]), image[count:]),
      }
      rising = {"adversarial": ramp(state.step // options.ramp_unit_steps, options.ramp)}
      return *weighted_terms(options.weights, terms, rising), {"stats": {"a": stats}}

    moved, metrics = descend(optimizer, state, loss_fn, of="a")
    if options.weights.get("adversarial"):  # on what the network as it is now says in inference mode [L]
      moved, further = adversary.learn(moved, predict(moved, image), image, count, key_of("dropout_discriminator"))
      metrics |= further
    return moved, metrics

  return Method(init, {"train": step}, predict)
