"""CRLN: Cooperative Rectification Learning Network (Wang et al., Medical Image Analysis 2025).

A student learns from a teacher's pseudo-labels after class prototypes, through the Dynamic Interaction Module (DIM), have rectified them.
| equation | where |
|---|---|
| (1) ℓ_s = ½ (CE + Dice) | `ops.segmentation.ce_dice` |
| (2) ℓ_u, confident voxels of the strong view | `ops.segmentation.confident_cross_entropy` |
| (3)–(6) DIM, 𝓜(x) | `networks.dim.DIM` |
| (8) ȳ_r = ȳ + (1 − µ) 𝓜(x), (17) its fixed form | `networks.dim.Rectifier` |
| (9)–(13) anchors, negatives, positive, (14) InfoNCE | `ops.contrast.positive_supervision` |
| (15) ℓ_sup + ℓ_u + ℓ_cp | `loss_fn` |
| (16) ℓ_r(µ), with its own SGD step | `rectifier_loss` |

The authors published no code: every choice that the paper leaves open is a field of `Options`, tagged [L] (lineage) or [D] (decided here).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from ssl_jax.core import ema, rng
from ssl_jax.core.schedules import ramp
from ssl_jax.core.step import forward, init_network, move, probabilities, weighted_terms
from ssl_jax.ops.contrast import positive_supervision
from ssl_jax.ops.cutmix import strong_view
from ssl_jax.ops.initial import init_module
from ssl_jax.ops.segmentation import ce_dice, confident_cross_entropy
from ssl_jax.ops.softmax import softmax
from ssl_jax.types import Array, Batch, Method, Metrics, PyTree, Task, TrainState


@dataclasses.dataclass(frozen=True)
class Options:
  """Keys of `config.method`.

  Attributes:
    weights: of the terms of eq. 15; `dim` is ℓ_s(𝓜(x), y), the second half of ℓ_sup [P].
    groups, prototype_std: R prototypes per class [P, Fig. 10], drawn from N(0, std²); 0.02 never leaves the symmetric start [D].
    spatial, integrate, cross_class: DIM's aggregation, see `networks.dim.DIM` (Table 6).
    mechanism, rectify, mu_init: see `networks.dim.Rectifier` (Table 7); "none" leaves pseudo-labels as they are. The last two [D].
    rectify_from_step: S [P, Fig. 12]; before it ȳ_r = ȳ and the rectifier rests.
    strong_view, cutmix_alpha, centre_crop, noise: see `ops.cutmix.strong_view`; "centre_crop" is the baseline of Table 5 [L].
    tau, tau_weak: confidence for ℓ_u and anchors; confidence for CPS [L].
    soft_target: eq. 2 as printed instead of the hard class [D].
    positive: "unassertive" (eq. 13), "mean" (MR) or "prototype" (LP) of Table 5.
    xi, xi_sampling: ξ is "fixed" [P, §4.2], or "uniform" in [0, 1] as eq. 13 says.
    temperature, anchors, negatives: of eqs. 9–14, per class [P].
    ema_decay, teacher_dropout: of the teacher [L], [D].
    student_views: "joint": both views share batch statistics [L]; "apart": running averages follow the labelled one alone [D].
    unlabelled_ramp_steps: Gaussian ramp-up of ℓ_u and ℓ_cp; 0 is the paper [D].
  """

  weights: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"supervised": 1.0, "dim": 1.0, "unlabelled": 1.0, "cps": 1.0})
  groups: int = 16
  prototype_std: float = 1.0
  spatial: Literal["conv3", "none"] = "conv3"
  integrate: Literal["conv1", "sum"] = "conv1"
  cross_class: bool = True
  mechanism: Literal["learnable_mu", "fixed", "conv", "none"] = "learnable_mu"
  rectify: Literal["logits", "probs"] = "logits"
  mu_init: float = 0.5
  rectify_from_step: int = 800
  strong_view: Literal["cutmix", "centre_crop", "none"] = "cutmix"
  cutmix_alpha: float = 4.0
  centre_crop: float = 0.75
  noise: float = 0.2
  tau: float = 0.97
  tau_weak: float = 0.7
  soft_target: bool = False
  positive: Literal["unassertive", "mean", "prototype"] = "unassertive"
  xi: float = 0.6
  xi_sampling: Literal["fixed", "uniform"] = "fixed"
  temperature: float = 0.5
  anchors: int = 256
  negatives: int = 512
  ema_decay: float = 0.99
  teacher_dropout: bool = False
  student_views: Literal["joint", "apart"] = "joint"
  unlabelled_ramp_steps: int = 0


def build(options: Options, networks: Any, optimizer: optax.GradientTransformation, task: Task) -> Method:
  """Returns the method; see `types.Method`."""
  network, cps_head = networks.backbone(), networks.cps_head()
  dim = networks.dim(spatial=options.spatial, integrate=options.integrate, cross_class=options.cross_class)
  rectifier = networks.rectifier(mechanism=options.mechanism, space=options.rectify, mu_init=options.mu_init)

  def init(key: Array, batch: Batch) -> TrainState:
    keys = jax.random.split(key, 5)
    image = batch["labelled"]["image"]
    params, stats = init_network(network, keys[0], image)
    out = network.apply({"params": params, "batch_stats": stats}, jnp.zeros(image.shape), train=False)
    prototypes = options.prototype_std * jax.random.normal(keys[1], (networks.num_classes, options.groups, networks.prototype_width))
    dim_params = init_module(dim, keys[2], prototypes, out.f2, out.f3)["params"]
    cps_params = init_module(cps_head, keys[3], out.f4)["params"]
    student = {"network": params, "dim": dim_params, "cps": cps_params}
    rectifying = init_module(rectifier, keys[4], out.logits, out.logits).get("params", {})
    opt = {"main": optimizer.init((student, prototypes)), "rectifier": optimizer.init(rectifying)}
    teacher = jax.tree.map(jnp.copy, {"network": params, "dim": dim_params, "prototypes": prototypes, "stats": stats})
    return TrainState(jnp.int32(0), {"a": student, "rectifier": rectifying}, prototypes, {"a": stats}, opt, teacher, ())

  views = 2 if options.student_views == "apart" else 1
  view: dict[str, Any] = {"kind": options.strong_view, "alpha": options.cutmix_alpha, "crop": options.centre_crop, "noise": options.noise}
  cps: dict[str, Any] = {"positive": options.positive, "temperature": options.temperature, "tau": options.tau}
  cps |= {"num_anchors": options.anchors, "num_negatives": options.negatives}
  confident = lambda prob: jnp.max(prob, axis=-1) >= options.tau

  def correction(params: PyTree, prototypes: Array, out: Any) -> Array:
    return dim.apply({"params": params}, prototypes, out.f2, out.f3)

  def pseudo_labels(state: TrainState, image: Array, key: Array | None = None) -> tuple[Array, Array, PyTree]:
    """Teacher on the weak view: probabilities before and after rectification, and its running averages."""
    teacher = state.teacher
    out, stats = forward(network, teacher["network"], teacher["stats"], image, key=key)
    before = softmax(out.logits)
    rectified = rectifier.apply(
      {"params": state.students["rectifier"]}, out.logits, correction(teacher["dim"], teacher["prototypes"], out)
    )  # Eq. (8)
    return before, jnp.where(state.step >= options.rectify_from_step, softmax(rectified), before), stats

  def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
    image_l, label_l, image_u = batch["labelled"]["image"], batch["labelled"]["label"], batch["unlabelled"]["image"]
    key_of = lambda use: rng.key_for(key, state.step, use)

    before, after, stats_t = pseudo_labels(state, image_u, key_of("dropout_t") if options.teacher_dropout else None)
    image_s, prob_u, shown = strong_view(key_of("strong"), image_u, after, **view)

    def loss_fn(trainable):
      student, prototypes = trainable
      image = jnp.concatenate([image_l, image_s])
      out, stats = forward(network, student["network"], state.stats["a"], image, key=key_of("dropout_a"), views=views)
      out_l, out_u = (jax.tree.map(lambda a, half=half: a[half], out) for half in (slice(len(label_l)), slice(len(label_l), None)))
      map_l = correction(student["dim"], prototypes, out_l)

      def cps_term():
        apply = lambda method: lambda x: cps_head.apply({"params": student["cps"]}, x, method=method)
        loss, anchors = positive_supervision(
          key_of("cps"),
          context=apply("context")(out.f4),  # not the halves joined again: several devices would exchange them
          prob=jax.lax.stop_gradient(softmax(out.logits)),
          label=jnp.concatenate([label_l, jnp.argmax(prob_u, axis=-1)]),
          reliable=jnp.concatenate([jnp.ones(label_l.shape, bool), shown & (jnp.max(prob_u, axis=-1) > options.tau_weak)]),
          prototypes=prototypes,
          project=apply("project"),
          xi=None if options.xi_sampling == "uniform" else options.xi,
          **cps,
        )
        return loss, {f"anchors_class{c}": anchors[c] for c in range(networks.num_classes)}

      terms = {
        "supervised": lambda: ce_dice(out_l.logits, label_l),
        "dim": lambda: ce_dice(map_l, label_l),
        "unlabelled": lambda: confident_cross_entropy(out_u.logits, prob_u, options.tau, shown, soft=options.soft_target),
        "cps": cps_term,
      }
      rising = ramp(state.step, options.unlabelled_ramp_steps)
      loss, metrics = weighted_terms(options.weights, terms, {"unlabelled": rising, "cps": rising})  # Eq. (15)
      return loss, (stats, metrics, (out_l.logits, map_l))

    trainable = (state.students["a"], state.prototypes)
    (student, prototypes), opt_main, (stats, metrics, seen) = move(optimizer, state.opt["main"], trainable, loss_fn)

    def rectifier_loss(params):  # Eq. (16): everything but the rectifier is given
      loss = ce_dice(rectifier.apply({"params": params}, *seen), label_l)
      return loss, loss

    rectifying = state.students["rectifier"]
    rectified, opt_r, loss_r = move(optimizer, state.opt["rectifier"], rectifying, rectifier_loss)
    started = state.step >= options.rectify_from_step
    keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(started, n, o), new, old)

    learned = {"network": student["network"], "dim": student["dim"], "prototypes": prototypes}
    averaged = ema.update({k: state.teacher[k] for k in learned}, learned, state.step, options.ema_decay)
    metrics |= {"loss_rectifier": loss_r, "confident_before": jnp.mean(confident(before)), "confident_after": jnp.mean(confident(after))}
    metrics |= {"mu": jnp.clip(rectifying["mu"], 0.0, 1.0)} if "mu" in rectifying else {}
    return dataclasses.replace(
      state,
      step=state.step + 1,
      students={"a": student, "rectifier": keep(rectified, rectifying)},
      prototypes=prototypes,
      stats={"a": stats},
      opt={"main": opt_main, "rectifier": keep(opt_r, state.opt["rectifier"])},
      teacher={**averaged, "stats": stats_t},
    ), metrics

  return Method(
    init,
    {"train": step},
    predict=lambda state, image: probabilities(network, state.students["a"]["network"], state.stats["a"], image),
    predict_also={"teacher": lambda state, image: probabilities(network, state.teacher["network"], state.teacher["stats"], image)},
    pseudo_labels=lambda state, image: {
      k: (p, confident(p)) for k, p in zip(("before", "after"), pseudo_labels(state, image)[:2], strict=True)
    },
  )
