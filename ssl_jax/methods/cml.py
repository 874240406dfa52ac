"""CML: Cross-View Mutual Learning (Wu et al., ACM MM 2024).

Two students that are pushed towards different features and taught each other's pseudo-labels on CutMixed scans; no teacher.
| equation | where |
|---|---|
| (1), (2) L_dis on the bottleneck | `ops.consistency.feature_discrepancy` |
| (3) cross pseudo supervision | `targets`, `mode="cps"` |
| (4) L_sup^l + λ1 L_sup^u + λ2 L_dis | phase `selftrain` |
| (5), (6), (8) CutMix by one box | `ops.cutmix.box_anywhere`, `ops.cutmix.paste` |
| (7), (10) ½ (CE + Dice) | `ops.segmentation.ce_dice` |
| (9) heterogeneous targets | `targets` |
| (11) L_sup^l + λ2 L_dis^l | phase `pretrain` |

Deviation: the running averages of BatchNorm see the unmixed unlabelled scans before the mixed labelled ones; the published code does it
the other way round [C].
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import optax

from ssl_jax.core import rng
from ssl_jax.core.step import descend, forward, in_turn, infer, init_state, require_known, weighted_terms
from ssl_jax.ops.components import largest_per_class
from ssl_jax.ops.consistency import feature_discrepancy
from ssl_jax.ops.cutmix import box_anywhere, paste
from ssl_jax.ops.segmentation import ce_dice
from ssl_jax.ops.softmax import softmax
from ssl_jax.types import Array, Batch, Method, Metrics, PyTree, Task, TrainState

OTHER = {"a": "b", "b": "a"}


@dataclasses.dataclass(frozen=True)
class Options:
  """Keys of `config.method`.

  Attributes:
    variant: what the published code does ("official" [C]) or the text ("paper" [P]) where they differ: `average`.
    weights: of the terms; `pseudo` is λ1, `discrepancy` λ2 (Table 4, Fig. 5).
    mode: targets on unlabelled scans: "cml" heterogeneous (eq. 9); "cfl" the other network's everywhere; "cps" the same without L_dis.
    cutmix_size: β, side of the box as a fraction of the patch (Fig. 6).
    shared_weights: both passes through one network, as the published ACDC code has it by mistake [C].
    average: of "logits" [C] or "probabilities" [P] at inference; "variant" follows `variant`.
  """

  variant: Literal["official", "paper"] = "official"
  weights: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"supervised": 1.0, "pseudo": 1.0, "discrepancy": 0.2})
  mode: Literal["cml", "cfl", "cps"] = "cml"
  cutmix_size: float = 2 / 3
  shared_weights: bool = False
  average: Literal["variant", "logits", "probabilities"] = "variant"


def targets(box: Array, pseudo: Mapping[str, Array], mode: str) -> dict[str, Array]:
  """Returns what each network learns on the mixed unlabelled scans.

  Args:
    box: bool[*spatial].
    pseudo: network -> i32[2B, *spatial], its labels of the scans p (first half, outside the box) and q (second half, inside).
    mode: "cml": Y_i = Ŷ_{p,1−i} outside, Ŷ_{q,i} inside (eq. 9); else the other network's on both sides (eq. 3).
  """
  half = len(pseudo["a"]) // 2
  inside = {name: pseudo[name if mode == "cml" else OTHER[name]][half:] for name in OTHER}
  return {name: paste(box, pseudo[OTHER[name]][:half], inside[name]) for name in OTHER}


def build(options: Options, networks: Any, optimizer: optax.GradientTransformation, task: Task) -> Method:
  """Returns the method; see `types.Method`."""
  del task
  if not 0 < options.cutmix_size < 1:
    raise ValueError(f"config.method.cutmix_size: must lie between 0 and 1, got {options.cutmix_size}")
  first = networks.backbone()
  pair = {"a": first, "b": first if options.shared_weights else networks.backbone(upsample="trilinear")}
  owner = {"a": "a", "b": "a" if options.shared_weights else "b"}  # whose parameters a pass uses
  require_known(options.weights, terms := ("supervised", "pseudo", "discrepancy"))
  weights = {**dict.fromkeys(terms, 0.0), **options.weights, **({"discrepancy": 0.0} if options.mode == "cps" else {})}
  mean_logits = options.average == "logits" or (options.average == "variant" and options.variant == "official")

  def init(key: Array, batch: Batch) -> TrainState:
    for half, images in batch.items():
      if (size := images["index"].shape[0]) % 2:
        raise ValueError(f"config.train.batch_{half}: CML mixes two halves of the batch, so it must be even; got {size}")
    return init_state({name: pair[name] for name in owner.values()}, optimizer, key, batch["labelled"]["image"])

  def both(students: PyTree, stats: PyTree, image: Array, keys: Mapping[str, Array]) -> tuple[dict[str, Any], PyTree]:
    out, stats = {}, dict(stats)
    for name, network in pair.items():
      own = owner[name]
      out[name], stats[own] = forward(network, students[own], stats[own], image, key=keys[name])
    return out, stats

  def mixed(box: Array, array: Array) -> Array:
    half = len(array) // 2
    return paste(box, array[:half], array[half:])

  def view(term: str, image: Array, target: Mapping[str, Array], key: Mapping[str, Array]) -> dict[str, Any]:
    return {"image": image, "target": target, "key": key, "weight": jnp.float32(weights[term])}

  def loss_of_view(students: PyTree, stats: PyTree, view: PyTree) -> tuple[Array, tuple[PyTree, Metrics]]:
    out, stats = both(students, stats, view["image"], view["key"])
    terms: dict[str, Any] = {
      "fit": lambda: sum(ce_dice(out[name].logits, view["target"][name]) for name in pair),  # Eqs. (7), (10)
      "discrepancy": lambda: sum(feature_discrepancy(out[n].bottleneck, out[OTHER[n]].bottleneck) for n in pair),  # Eqs. (1), (2)
    }
    loss, metrics = weighted_terms({"fit": 1.0, "discrepancy": weights["discrepancy"]}, terms, {"fit": view["weight"]})
    return loss, (stats, metrics)

  def step(phase: str, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
    spatial = batch["labelled"]["label"].shape[1:]
    key_of = lambda use: rng.key_for(key, state.step, use)
    keys_of = lambda use: {name: key_of(f"dropout_{use}_{name}") for name in pair}
    box_l, box_u = (box_anywhere(key_of(use), spatial, options.cutmix_size) for use in ("box_l", "box_u"))
    image_u, stats, pseudo = batch["unlabelled"]["image"], state.stats, {}
    label_l = mixed(box_l, batch["labelled"]["label"])
    views = {"supervised": view("supervised", mixed(box_l, batch["labelled"]["image"]), dict.fromkeys(pair, label_l), keys_of("l"))}
    if phase == "selftrain":
      weak, stats = both(state.students, stats, image_u, keys_of("weak"))  # training mode, no gradient [C]
      pseudo = {name: largest_per_class(weak[name].logits) for name in pair}  # "NMS" [P, C]
      views["pseudo"] = view("pseudo", mixed(box_u, image_u), targets(box_u, pseudo, options.mode), keys_of("u"))

    def loss_fn(students):
      loss, (new, found) = in_turn(loss_of_view, students, stats, list(views.values()))  # Eqs. (4), (11)
      metrics = {f"loss_{name}": found["loss_fit"][i] for i, name in enumerate(views) if weights[name]}
      if weights["discrepancy"]:
        metrics["loss_discrepancy"] = jnp.sum(found["loss_discrepancy"])
      return loss, {"loss": loss, **metrics}, {"stats": new}

    state, metrics = descend(optimizer, state, loss_fn)
    if pseudo:
      metrics |= {"pseudo_agree": jnp.mean(pseudo["a"] == pseudo["b"]), "pseudo_foreground": jnp.mean(pseudo["a"] > 0)}
    return state, metrics

  def logits_of(name: str, state: TrainState, image: Array) -> Array:
    return infer(pair[name], state.students[owner[name]], state.stats[owner[name]], image).logits

  def predict(state: TrainState, image: Array) -> Array:
    logits = jnp.stack([logits_of(name, state, image) for name in pair])
    return softmax(jnp.mean(logits, axis=0)) if mean_logits else jnp.mean(softmax(logits), axis=0)

  single = lambda name: lambda state, image: softmax(logits_of(name, state, image))
  also = {} if options.shared_weights else {f"network_{name}": single(name) for name in pair}
  phases = {phase: lambda *args, phase=phase: step(phase, *args) for phase in ("pretrain", "selftrain")}
  return Method(init, phases, predict, also, published_select="best")  # by Dice on the test list [C]
