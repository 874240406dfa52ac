"""CMEMS: Cross-Model Mutual Learning for Exemplar-based Medical Image Segmentation (En and Guo, AISTATS 2024). No code was published.

Two networks, one labelled slice. Images made by pasting that slice's organs on unlabelled backgrounds (`data/synthesis.py`, eq. 1) teach
both; on unlabelled slices each learns the other's confident labels, from changed colours and from features with channels missing.
| equation | where |
|---|---|
| (2), (6) L_e, L_s = ½ CE + ½ Dice on each network's weak view | `supervised`, terms `exemplar`, `synthetic` |
| (3) pseudo-labels above τ | `pseudo_label` |
| (4), (5) L_cmip on strong views | `taught`, term `image` |
| (7), (8) L_cmfp on perturbed features | `taught`, term `feature` |
| (9) L_e + L_s + λ_cmip L_cmip + λ_cmfp L_cmfp | `step`, pass after pass by `core.step.in_turn`: no gradient needs another's pass |
| (10) mean of both networks | `predict` |
"""

import dataclasses
import functools
import inspect
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ssl_jax.core import rng
from ssl_jax.core.step import descend, forward, in_turn, init_state, require_known, require_synthetic, student, weighted_terms
from ssl_jax.ops import views
from ssl_jax.ops.segmentation import ce_dice
from ssl_jax.ops.softmax import softmax
from ssl_jax.types import Array, Batch, Method, Metrics, PyTree, Task, TrainState

OTHER = {"a": "b", "b": "a"}
STREAMS = ("labelled", "synthetic", "unlabelled")
SUPERVISED = {"exemplar": "labelled", "synthetic": "synthetic"}
MUTUAL = ("image", "feature")


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
  require_known(options.weights, (*SUPERVISED, *MUTUAL))
  sets = {term: stream for term, stream in SUPERVISED.items() if options.weights.get(term)}
  mutual = [term for term in MUTUAL if options.weights.get(term)]
  stacked = lambda of: jax.tree.map(lambda *leaves: jnp.stack(leaves), *(of[name] for name in OTHER))

  def init(key: Array, batch: Batch) -> TrainState:
    require_synthetic(options.weights, batch)
    return init_state(dict.fromkeys(OTHER, network), optimizer, key, batch["labelled"]["image"])

  def weak_view(name: str, stream: str, batch: Batch, key: Array) -> tuple[Array, Any]:
    """The network's own turned images f32[B, *spatial, channels] of a stream, and their labels where it has any."""
    pose_key = jax.random.fold_in(key, 0 if stream in options.same_views else ord(name))
    return views.random_turn(jax.random.fold_in(pose_key, STREAMS.index(stream)), batch[stream]["image"], batch[stream].get("label"))

  def run(students: PyTree, stats: PyTree, part: PyTree, image: Array, **extra: Any) -> tuple[Array, PyTree]:
    """Logits of the part's network, and the running averages of both; these and the students come stacked."""
    params, before = jax.tree.map(lambda both: both[part["network"]], (students, stats))
    out, new = forward(network, params, before, image, key=part["key"], **extra)
    return out.logits, jax.tree.map(lambda both, one: both.at[part["network"]].set(one), stats, new)

  def supervised(students: PyTree, stats: PyTree, part: PyTree) -> tuple[Array, tuple[PyTree, Metrics]]:
    """A network's loss on its own weak views, which pass it together."""
    images, labels = zip(*part["views"].values(), strict=True)
    logits, stats = run(students, stats, part, jnp.concatenate(images))
    each = jnp.split(logits, np.cumsum([len(image) for image in images])[:-1])
    terms = {term: functools.partial(ce_dice, *pair) for term, *pair in zip(part["views"], each, labels, strict=True)}
    loss, metrics = weighted_terms({term: options.weights[term] for term in terms}, terms)
    return loss, (stats, metrics)

  def taught(students: PyTree, stats: PyTree, part: PyTree) -> tuple[Array, tuple[PyTree, Metrics]]:
    """A network's loss on a teacher's images, against its pseudo-labels."""
    loss = ce_dice(run(students, stats, part, part["image"], **part["extra"])[0], *part["pseudo"])
    return part["weight"] * loss, (stats, {"loss": loss})

  def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
    key_of = lambda use: rng.key_for(key, state.step, use)
    part_of = lambda name, use: {"network": jnp.int32(list(OTHER).index(name)), "key": key_of(f"dropout_{use}_{name}")}
    views_of = lambda name: {term: weak_view(name, stream, batch, key_of("pose")) for term, stream in sets.items()}
    own = [part_of(name, "labelled") | {"views": views_of(name)} for name in OTHER if sets]
    stats, others, metrics = stacked(state.stats), [], {}
    if mutual:
      weak = {name: weak_view(name, "unlabelled", batch, key_of("pose"))[0] for name in OTHER}
      strong = {name: strong_view(key_of(f"strong_{name}"), weak[name], options) for name in OTHER}
      # Batch statistics and no dropout, as a teacher; real slices enter the running averages here [D].
      out, stats = jax.lax.map(lambda one: forward(network, *one, key=None), (stacked(state.students), stats, stacked(weak)))
      label, counted = pseudo_label(softmax(out.logits), options.threshold, options.unconfident)  # Eq. (3), no gradient
      metrics = {"pseudo_share": jnp.mean(counted), "pseudo_foreground": jnp.mean(label > 0)}
      pseudo = {name: (label[i], counted[i]) for i, name in enumerate(OTHER)}
      lessons = {
        "image": ("strong", strong, image_teacher, 0.0),  # Eqs. (4), (5)
        "feature": ("feature", weak, feature_teacher, options.feature_dropout),  # Eqs. (7), (8)
      }
      for term in mutual:
        use, images, teacher, perturb = lessons[term]
        fixed = {"weight": jnp.float32(options.weights[term]), "extra": {"perturb": jnp.float32(perturb)} if "feature" in mutual else {}}
        others += [part_of(n, use) | fixed | {"image": images[teacher[n]], "pseudo": pseudo[teacher[n]]} for n in OTHER]

    def loss_fn(students):  # Eq. (9)
      loss, new, found = jnp.float32(0.0), stats, {}
      if own:
        loss, (new, terms) = in_turn(supervised, stacked(students), new, own)
        found = {name: jnp.sum(value) for name, value in terms.items()}
      if others:
        further, (_, terms) = in_turn(taught, stacked(students), stats, others)
        values = jnp.sum(terms["loss"].reshape(-1, len(OTHER)), axis=1)
        found |= {f"loss_{term}": value for term, value in zip(mutual, values, strict=True)}
        loss += further
      unstacked = {name: jax.tree.map(lambda both, i=i: both[i], new) for i, name in enumerate(OTHER)}
      return loss, metrics | found | {"loss": loss}, {"stats": unstacked}

    return descend(optimizer, state, loss_fn)

  each = {f"network_{name}": student(network, name) for name in OTHER}

  def predict(state: TrainState, image: Array) -> Array:
    return 0.5 * (each["network_a"](state, image) + each["network_b"](state, image))  # Eq. (10) [D: probabilities]

  def pseudo_labels(state: TrainState, image: Array) -> Mapping[str, tuple[PyTree, Array]]:
    prob = predict(state, image)
    return {"mean": (prob, jnp.max(prob, axis=-1) >= options.threshold)}

  return Method(init, {"train": step}, predict, each, pseudo_labels)
