"""FixMatch: on a strong view the network learns what it is sure of on the weak one.

| equation | where |
|---|---|
| ℓ = ℓ_s(p, y) + λ_u ℓ_u | `step` |
| ℓ_u = mean 1[max p_weak ≥ τ] · CE(p_strong, argmax p_weak), no gradient into p_weak | `ops.segmentation.confident_cross_entropy` |
| strong view: CutMix within the batch, noise, other brightness and contrast | `ops.cutmix.strong_view`, `ops.views.colour_jitter` |

Source: Sohn et al. 2020 [P]; views for scans [D].
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import optax

from ssl_jax.core import rng
from ssl_jax.core.step import descend, forward, init_state, student, weighted_terms
from ssl_jax.ops.cutmix import strong_view
from ssl_jax.ops.segmentation import ce_dice, confident_cross_entropy
from ssl_jax.ops.softmax import softmax
from ssl_jax.ops.views import colour_jitter
from ssl_jax.types import Array, Batch, Method, Metrics, Task, TrainState


@dataclasses.dataclass(frozen=True)
class Options:
  """Keys of `config.method`.

  Attributes:
    weights: of the loss terms; `pseudo` is λ_u [P].
    threshold: τ [P]; 0.8 in the tables of CMEMS.
    strong_view, cutmix_alpha, centre_crop, noise: see `ops.cutmix.strong_view` [D].
    colour_jitter: α of brightness and contrast, see `ops.views.colour_jitter`; 0: neither changes [D].
  """

  weights: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"supervised": 1.0, "pseudo": 1.0})
  threshold: float = 0.95
  strong_view: Literal["cutmix", "centre_crop", "none"] = "cutmix"
  cutmix_alpha: float = 4.0
  centre_crop: float = 0.75
  noise: float = 0.2
  colour_jitter: float = 0.5


def build(options: Options, networks: Any, optimizer: optax.GradientTransformation, task: Task) -> Method:
  """Returns the method; see `types.Method`."""
  del task
  if not 0 <= options.threshold <= 1:
    raise ValueError(f"config.method.threshold: must lie in 0 to 1, got {options.threshold}")
  if options.colour_jitter < 0:
    raise ValueError(f"config.method.colour_jitter: must not be negative, got {options.colour_jitter}")
  network = networks.backbone()
  view: dict[str, Any] = {"kind": options.strong_view, "alpha": options.cutmix_alpha, "crop": options.centre_crop, "noise": options.noise}
  predict = student(network)

  def init(key: Array, batch: Batch) -> TrainState:
    return init_state({"a": network}, optimizer, key, batch["labelled"]["image"])

  def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
    image_l, label, image_u = batch["labelled"]["image"], batch["labelled"]["label"], batch["unlabelled"]["image"]
    key_of = lambda use: rng.key_for(key, state.step, use)
    # Batch statistics and no dropout, as a teacher; unchanged scans enter the running averages here [D].
    weak, stats_weak = forward(network, state.students["a"], state.stats["a"], image_u, key=None)
    image_s, target, shown = strong_view(key_of("strong"), image_u, softmax(weak.logits), **view)
    image = jnp.concatenate([image_l, colour_jitter(key_of("colour"), image_s, options.colour_jitter)])

    def loss_fn(students):
      out, stats = forward(network, students["a"], stats_weak, image, key=key_of("dropout_a"))
      terms = {
        "supervised": lambda: ce_dice(out.logits[: len(label)], label),
        "pseudo": lambda: confident_cross_entropy(out.logits[len(label) :], target, options.threshold, shown),
      }
      return *weighted_terms(options.weights, terms), {"stats": {"a": stats}}

    state, metrics = descend(optimizer, state, loss_fn)
    return state, {**metrics, "pseudo_share": jnp.mean(jnp.max(target, axis=-1) >= options.threshold)}

  def pseudo_labels(state: TrainState, image: Array) -> Mapping[str, tuple[Array, Array]]:
    prob = predict(state, image)
    return {"weak": (prob, jnp.max(prob, axis=-1) >= options.threshold)}

  return Method(init, {"train": step}, predict, pseudo_labels=pseudo_labels)
