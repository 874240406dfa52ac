"""BCP: labelled and unlabelled scans are pasted into each other, a box of one on the other and the reverse.

With M 0 inside a box and 1 outside, y labels and ỹ the teacher's largest components:
| equation | where |
|---|---|
| X_out = x₁ M + u₁ (1 − M), X_in = u₂ M + x₂ (1 − M) | `ops.cutmix.box_anywhere`, `ops.cutmix.paste` |
| ℓ = Σ over both of ½ (CE + Dice) on the labelled region + α · the same on the unlabelled one | phase `selftrain`, `region_loss` |
| ỹ = argmax p_t, of each class the largest component | `ops.components.largest_per_class` |
| ½ (CE + Dice) on x₁ M + x₂ (1 − M) | phase `pretrain` |

Source: Bai et al. 2023 [P] and its code for the Left Atrium [C].
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ssl_jax.core import rng
from ssl_jax.core.step import descend, follow, forward, in_turn, init_state, student, teacher, weighted_terms
from ssl_jax.ops.components import largest_per_class
from ssl_jax.ops.cutmix import box_anywhere, paste
from ssl_jax.ops.segmentation import ce_dice, cross_entropy, dice_soft
from ssl_jax.ops.softmax import softmax
from ssl_jax.types import Array, Batch, Method, Metrics, PyTree, Task, TrainState


@dataclasses.dataclass(frozen=True)
class Options:
  """Keys of `config.method`.

  Attributes:
    weights: of the terms; `pseudo` is α, of what comes from unlabelled scans [P, C].
    box_size: side of the box as a fraction of the patch [P, C].
    ema_decay: α of the teacher, which at the end of `pretrain` equals the student [P, C].
    teacher_dropout: whether the teacher drops channels too [C].
  """

  weights: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"supervised": 1.0, "pseudo": 0.5})
  box_size: float = 2 / 3
  ema_decay: float = 0.99
  teacher_dropout: bool = True


def region_loss(logits: Array, label: Array, region: Array) -> Array:
  """½ (CE + Dice) of f32[B, *spatial, C] against i32[B, *spatial] within `region` bool[*spatial], CE as the mean over it [C]."""
  inside = jnp.broadcast_to(region, label.shape)
  mean_ce = cross_entropy(logits, label, inside) / (jnp.mean(region) + 1e-16)
  return 0.5 * (mean_ce + dice_soft(softmax(logits), label, mask=inside))


def halves(array: Array) -> tuple[Array, Array]:
  """Returns the first and the second half of a batch."""
  return array[: len(array) // 2], array[len(array) // 2 :]


def build(options: Options, networks: Any, optimizer: optax.GradientTransformation, task: Task) -> Method:
  """Returns the method; see `types.Method`."""
  del task
  if not 0 < options.box_size < 1:
    raise ValueError(f"config.method.box_size: must lie between 0 and 1, got {options.box_size}")
  network = networks.backbone()

  def init(key: Array, batch: Batch) -> TrainState:
    sizes = {half: batch[half]["image"].shape[0] for half in ("labelled", "unlabelled")}
    if sizes["labelled"] % 2 or sizes["labelled"] != sizes["unlabelled"]:
      raise ValueError(
        "config.train.batch_labelled: BCP pastes halves of both streams into each other, so it must be even and equal to "
        f"batch_unlabelled; got {sizes['labelled']} and {sizes['unlabelled']}"
      )
    return init_state({"a": network}, optimizer, key, batch["labelled"]["image"], teacher=True)

  def start(state: TrainState, batch: Batch, key: Array) -> tuple[Any, Array, tuple[Array, Array], tuple[Array, Array]]:
    """Keys by use, the box, and both halves of labelled images and labels."""
    key_of = lambda use: rng.key_for(key, state.step, use)
    label = batch["labelled"]["label"]
    return key_of, box_anywhere(key_of("box"), label.shape[1:], options.box_size), halves(batch["labelled"]["image"]), halves(label)

  def pretrain(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
    key_of, box, image, label = start(state, batch, key)

    def loss_fn(students):
      out, stats = forward(network, students["a"], state.stats["a"], paste(box, *image), key=key_of("dropout_a"))
      terms = {"supervised": lambda: ce_dice(out.logits, paste(box, *label))}
      weights = {name: weight for name, weight in options.weights.items() if name != "pseudo"}
      return *weighted_terms(weights, terms), {"stats": {"a": stats}}

    state, metrics = descend(optimizer, state, loss_fn)
    return follow(state, state.stats, 0.0), metrics  # the teacher of self-training begins as the student

  def loss_of_paste(params: PyTree, stats: PyTree, part: PyTree) -> tuple[Array, tuple[PyTree, Metrics]]:
    out, stats = forward(network, params, stats, part["image"], key=part["key"])
    terms = {
      "supervised": lambda: region_loss(out.logits, part["label"], part["inside"]),
      "pseudo": lambda: region_loss(out.logits, part["pseudo"], ~part["inside"]),
    }
    loss, metrics = weighted_terms(options.weights, terms)
    return loss, (stats, metrics)

  def selftrain(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
    key_of, box, image, label = start(state, batch, key)
    image_u, own = batch["unlabelled"]["image"], state.teacher["stats"]["a"]
    key_t = key_of("dropout_t") if options.teacher_dropout else None
    out_t, stats_t = forward(network, state.teacher["students"]["a"], own, image_u, key=key_t, views=2)  # halves pass apart [C]
    pseudo, unlabelled = halves(largest_per_class(out_t.logits)), halves(image_u)

    pastes = [
      {"image": paste(box, image[0], unlabelled[0]), "inside": ~box, "label": label[0], "pseudo": pseudo[0], "key": key_of("dropout_out")},
      {"image": paste(box, unlabelled[1], image[1]), "inside": box, "label": label[1], "pseudo": pseudo[1], "key": key_of("dropout_in")},
    ]

    def loss_fn(students):
      loss, (stats, found) = in_turn(loss_of_paste, students["a"], state.stats["a"], pastes)
      return loss, jax.tree.map(jnp.sum, found), {"stats": {"a": stats}}

    state, metrics = descend(optimizer, state, loss_fn)
    foreground = jnp.mean(jnp.stack(pseudo) > 0)
    return follow(state, {"a": stats_t}, options.ema_decay), {**metrics, "pseudo_foreground": foreground}

  phases = {"pretrain": pretrain, "selftrain": selftrain}
  return Method(init, phases, student(network), {"teacher": teacher(network)}, published_select="best")  # by Dice on the test list [C]
