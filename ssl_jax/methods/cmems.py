"""CMEMS: Cross-Model Mutual Learning for Exemplar-based Medical Image Segmentation (En and Guo, AISTATS 2024). No code was published.

Two networks, one labelled slice. Images made by pasting that slice's organs on unlabelled backgrounds (`data/synthesis.py`, eq. 1) teach
both; on unlabelled slices each learns the other's confident labels, from changed colours and from features with channels missing.
| equation | where |
|---|---|
| (2), (6) L_e, L_s = ½ CE + ½ Dice on each network's weak view | `supervised` |
| (3) pseudo-labels above τ | `pseudo_label` |
| (4), (5) L_cmip on strong views | `taught`, term `image` |
| (7), (8) L_cmfp on perturbed features | `taught`, term `feature` |
| (9) L_e + L_s + λ_cmip L_cmip + λ_cmfp L_cmfp | `core.step.weighted_terms` |
| (10) mean of both networks | `predict` |
"""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from ssl_jax.core import rng
from ssl_jax.core.step import descend, forward, init_state, require_synthetic, student, weighted_terms
from ssl_jax.ops import views
from ssl_jax.ops.segmentation import ce_dice
from ssl_jax.ops.softmax import softmax
from ssl_jax.types import Array, Batch, Method, Metrics, PyTree, Task, TrainState

OTHER = {"a": "b", "b": "a"}
STREAMS = ("labelled", "synthetic", "unlabelled")


@dataclasses.dataclass(frozen=True)
class Options:
  """Keys of `config.method`.

  Attributes:
    weights: of the terms: `exemplar` L_e, `synthetic` L_s, `image` λ_cmip, `feature` λ_cmfp (Table 3).
    threshold: τ, confidence from which a pseudo-label counts.
    unconfident: pixels below τ: "ignore" leaves them out, as the text has it [D]; "background" makes them class 0, as eq. 3 is printed [P].
    colour_jitter: α of the strong view; 0 turns the image perturbation off and leaves the other network's weak view (Table 3, CM).
    gaussian_blur, sharpness: further strong augmentations GB and AS.
    teaches: whose pseudo-labels and views a network learns from: the "other"'s (CM) or its "own".
    feature_perturbation: "cross": the other's view and labels; "individual": the network's own (Table 5).
    feature_dropout: probability with which a channel of an encoder level is lost.
    same_views: streams of which both networks see one weak view instead of two independent ones (Table 4).
  """

  weights: Mapping[str, float] = dataclasses.field(
    default_factory=lambda: {"exemplar": 1.0, "synthetic": 1.0, "image": 1.0, "feature": 0.09}
  )
  threshold: float = 0.8
  unconfident: Literal["ignore", "background"] = "ignore"
  colour_jitter: float = 1.0
  gaussian_blur: bool = False
  sharpness: bool = False
  teaches: Literal["other", "own"] = "other"
  feature_perturbation: Literal["cross", "individual"] = "cross"
  feature_dropout: float = 0.5
  same_views: tuple[str, ...] = ()


def pseudo_label(prob: Array, threshold: float, unconfident: str) -> tuple[Array, Array]:
  """Returns labels i32[B, *spatial] and the pixels bool[B, *spatial] that count (eq. 3), from probabilities f32[B, *spatial, C]."""
  label, confident = jnp.argmax(prob, axis=-1), jnp.max(prob, axis=-1) >= threshold
  if unconfident == "background":
    return jnp.where(confident, label, 0), jnp.ones_like(confident)
  return label, confident


def strong_view(key: Array, image: Array, options: Options) -> Array:
  """Returns f32[B, *spatial, channels] with other colours and, where switched on, blurred and sharpened; nothing moves."""
  keys = jax.random.split(key, 3)
  image = views.colour_jitter(keys[0], image, options.colour_jitter)
  image = views.gaussian_blur(keys[1], image) if options.gaussian_blur else image
  return views.sharpen(keys[2], image) if options.sharpness else image


def build(options: Options, networks: Any, optimizer: optax.GradientTransformation, task: Task) -> Method:
  """Returns the method; see `types.Method`."""
  del task
  if not 0 <= options.threshold <= 1 or not 0 <= options.feature_dropout < 1 or options.colour_jitter < 0:
    raise ValueError("config.method: needs 0 <= threshold <= 1, 0 <= feature_dropout < 1 and colour_jitter >= 0")
  for stream in options.same_views:
    if stream not in STREAMS:
      raise ValueError(f"config.method.same_views: no stream {stream!r}; known: {', '.join(STREAMS)}")
  network = networks.backbone()
  if options.weights.get("feature") and "perturb" not in inspect.signature(network.__call__).parameters:
    raise ValueError("config.network.name: the feature perturbation needs a network that takes `perturb`, such as 'unet2d'")
  image_teacher = {name: OTHER[name] if options.teaches == "other" else name for name in OTHER}
  feature_teacher = {name: OTHER[name] if options.feature_perturbation == "cross" else name for name in OTHER}
  mutual = any(options.weights.get(term) for term in ("image", "feature"))
  sets = {"exemplar": "labelled", "synthetic": "synthetic"}
  sets = {term: stream for term, stream in sets.items() if options.weights.get(term)}

  def init(key: Array, batch: Batch) -> TrainState:
    require_synthetic(options.weights, batch)
    return init_state(dict.fromkeys(OTHER, network), optimizer, key, batch["labelled"]["image"])

  def weak_view(name: str, stream: str, batch: Batch, key: Array) -> tuple[Array, Any]:
    """The network's own turned images f32[B, *spatial, channels] of a stream, and their labels where it has any."""
    pose_key = jax.random.fold_in(key, 0 if stream in options.same_views else ord(name))
    return views.random_turn(jax.random.fold_in(pose_key, STREAMS.index(stream)), batch[stream]["image"], batch[stream].get("label"))

  def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
    key_of = lambda use: rng.key_for(key, state.step, use)
    own = {name: {stream: weak_view(name, stream, batch, key_of("pose")) for stream in sets.values()} for name in OTHER}
    stats, weak, strong, pseudo = dict(state.stats), {}, {}, {}
    if mutual:
      for name in OTHER:
        weak[name], _ = weak_view(name, "unlabelled", batch, key_of("pose"))
        strong[name] = strong_view(key_of(f"strong_{name}"), weak[name], options)
        # Batch statistics and no dropout, as a teacher; real slices enter the running averages here [D].
        out, stats[name] = forward(network, state.students[name], stats[name], weak[name], key=None)
        pseudo[name] = pseudo_label(softmax(out.logits), options.threshold, options.unconfident)  # Eq. (3), no gradient

    def loss_fn(students):
      new, out = dict(stats), {}

      def run(name, image, use, **extra):
        return forward(network, students[name], stats[name], image, key=key_of(f"{use}_{name}"), **extra)

      for name in OTHER:
        if sets:
          image = jnp.concatenate([own[name][stream][0] for stream in sets.values()])
          result, new[name] = run(name, image, "dropout_labelled")
          ends = [len(own[name][stream][0]) for stream in sets.values()][:-1]
          out[name] = dict(zip(sets, jnp.split(result.logits, ends), strict=True))

      def supervised(term):  # Eqs. (2), (6)
        return sum(ce_dice(out[name][term], own[name][sets[term]][1]) for name in OTHER)

      def taught(use, teachers, images, **extra):
        """Each network on its teacher's images, against its teacher's pseudo-labels."""
        return sum(ce_dice(run(n, images[t], use, **extra)[0].logits, *pseudo[t]) for n, t in teachers.items())

      terms: dict[str, Any] = {
        "exemplar": lambda: supervised("exemplar"),
        "synthetic": lambda: supervised("synthetic"),
        "image": lambda: taught("dropout_strong", image_teacher, strong),  # Eqs. (4), (5)
        "feature": lambda: taught("dropout_feature", feature_teacher, weak, perturb=options.feature_dropout),  # Eqs. (7), (8)
      }
      return *weighted_terms(options.weights, terms), {"stats": new}  # Eq. (9)

    state, metrics = descend(optimizer, state, loss_fn)
    if mutual:
      metrics |= {"pseudo_share": jnp.mean(jnp.stack([counted for _, counted in pseudo.values()]))}
      metrics |= {"pseudo_foreground": jnp.mean(jnp.stack([label > 0 for label, _ in pseudo.values()]))}
    return state, metrics

  each = {f"network_{name}": student(network, name) for name in OTHER}

  def predict(state: TrainState, image: Array) -> Array:
    return 0.5 * (each["network_a"](state, image) + each["network_b"](state, image))  # Eq. (10) [D: probabilities]

  def pseudo_labels(state: TrainState, image: Array) -> Mapping[str, tuple[PyTree, Array]]:
    prob = predict(state, image)
    return {"mean": (prob, jnp.max(prob, axis=-1) >= options.threshold)}

  return Method(init, {"train": step}, predict, each, pseudo_labels)
