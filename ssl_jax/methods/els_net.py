"""ELSNet: Exemplar Learning-based Synthesis Net (En and Guo 2022). No code was published.

One network, one labelled slice. It learns from that slice and from images made by pasting its organs on unlabelled backgrounds
(`data/synthesis.py`), then labels the unlabelled slices once and learns from them too.
| equation | where |
|---|---|
| loss on the exemplar and on synthetic images | terms `exemplar`, `synthetic`, `ops.segmentation.ce_dice` |
| pixel-prototype contrastive embedding | term `contrast`, `ops.contrast.prototype_contrast` |
| first stage | phase `pretrain` |
| second stage: and loss on static pseudo-labels | phase `selftrain`, term `pseudo` |

The state's teacher is the network as the last step of `pretrain` left it: what it says of a slice in inference mode never changes, so
that the pseudo-labels need not be stored [D].
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ssl_jax.core import rng
from ssl_jax.core.step import descend, forward, init_state, require_synthetic, student, teacher, weighted_terms
from ssl_jax.core.voxel_heads import embed_classes, feature_width, init_chain, with_heads
from ssl_jax.ops.contrast import prototype_contrast
from ssl_jax.ops.segmentation import ce_dice
from ssl_jax.ops.views import random_turn
from ssl_jax.types import Array, Batch, Method, Metrics, PyTree, Task, TrainState

STREAM_OF = {"exemplar": "labelled", "synthetic": "synthetic", "pseudo": "unlabelled"}
HEADS = ("projection",)


@dataclasses.dataclass(frozen=True)
class Options:
  """Keys of `config.method`.

  Attributes:
    weights: of the terms [D].
    temperature: of the contrastive embedding [D].
    features: its width [D].
    pixels: drawn of each class for it, from exemplar and synthetic images together [D].
  """

  weights: Mapping[str, float] = dataclasses.field(
    default_factory=lambda: {"exemplar": 1.0, "synthetic": 1.0, "contrast": 0.1, "pseudo": 1.0}
  )
  temperature: float = 0.1
  features: int = 64
  pixels: int = 1024


def build(options: Options, networks: Any, optimizer: optax.GradientTransformation, task: Task) -> Method:
  """Returns the method; see `types.Method`."""
  del task
  if options.temperature <= 0 or options.pixels < 1:
    raise ValueError("config.method: needs temperature > 0 and pixels >= 1")
  network, head = networks.backbone(), networks.projection(options.features)
  frozen = teacher(network)

  def init(key: Array, batch: Batch) -> TrainState:
    require_synthetic(options.weights, batch)
    image = batch["labelled"]["image"]
    state = init_state({"a": network}, optimizer, key, image, teacher=True)
    width = feature_width(network, state.students["a"], state.stats["a"], image)
    return with_heads(state, optimizer, init_chain(head, [jax.random.fold_in(key, 1)], width, HEADS))

  def step(phase: str, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
    weights = {name: weight for name, weight in options.weights.items() if name != "pseudo" or phase == "selftrain"}
    labels = {stream: batch[stream]["label"] for stream in ("labelled", *(["synthetic"] if weights.get("synthetic") else []))}
    true = sum(len(label) for label in labels.values())  # images whose labels are certain
    if weights.get("pseudo"):
      labels["unlabelled"] = jnp.argmax(frozen(state, batch["unlabelled"]["image"]), axis=-1)
    key_of = lambda use: rng.key_for(key, state.step, use)
    views = {stream: random_turn(key_of(f"pose_{stream}"), batch[stream]["image"], label) for stream, label in labels.items()}
    images, turned = (jnp.concatenate(parts) for parts in zip(*views.values(), strict=True))
    ends = list(itertools.accumulate(len(label) for label in labels.values()))[:-1]

    def loss_fn(students):
      out, running = forward(network, students["a"], state.stats["a"], images, key=key_of("dropout_a"))
      logits, stats = dict(zip(views, jnp.split(out.logits, ends), strict=True)), {**state.stats, "a": running}

      def contrast_term() -> Array:
        nonlocal stats
        drawn: dict[str, Any] = {"classes": range(networks.num_classes), "count": options.pixels}
        rows, has, new = embed_classes(head, students, state.stats, HEADS, out.f4[:true], turned[:true], key_of("pixels"), **drawn)
        stats |= new
        return prototype_contrast(rows, has, options.temperature)

      terms: dict[str, Any] = {name: lambda s=stream: ce_dice(logits[s], views[s][1]) for name, stream in STREAM_OF.items()}
      return *weighted_terms(weights, {**terms, "contrast": contrast_term}), {"stats": stats}

    new, metrics = descend(optimizer, state, loss_fn)
    if weights.get("pseudo"):
      metrics["pseudo_foreground"] = jnp.mean(labels["unlabelled"] > 0)
    if phase == "pretrain":
      follower = {"students": {"a": new.students["a"]}, "stats": {"a": new.stats["a"]}}
      new = dataclasses.replace(new, teacher=jax.tree.map(jnp.copy, follower))  # own buffers, or donation would free them twice
    return new, metrics

  def pseudo_labels(state: TrainState, image: Array) -> Mapping[str, tuple[PyTree, Array]]:
    return {"static": (frozen(state, image), jnp.ones(image.shape[:-1], bool))}

  phases = {phase: lambda *args, phase=phase: step(phase, *args) for phase in ("pretrain", "selftrain")}
  return Method(init, phases, student(network), {"first_stage": frozen}, pseudo_labels)
