"""TraCoCo: translation consistent co-training (Liu et al. 2022).

Two networks of one kind. Each must say the same of what two shifted crops share, whatever lies around it, and learns the other's confident
labels on CutMixed scans.
| equation | where |
|---|---|
| L_sup = ½ (CE + Dice) of each | term `supervised` |
| L_tra: KL of predictions on the overlap | term `translation`, `ops.consistency.overlap_divergence` |
| its regulariser, negative entropy on the overlap | term `entropy` |
| L_crc on mixed scans | term `crc`, `ops.segmentation.confident_regional_cross_entropy` |
| L_sup + λ(t) (L_crc + L_tra) | `core.step.weighted_terms` |

Deviations [D]: the shifted crops are cut from the batch's crops, both networks learn from mixed scans, only unlabelled ones are mixed, and
one pass sees labelled and mixed scans.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import optax

from ssl_jax.core import rng
from ssl_jax.core.schedules import ramp
from ssl_jax.core.step import both_halves, descend, forward, init_state, student, weighted_terms
from ssl_jax.ops import translate
from ssl_jax.ops.consistency import overlap_divergence
from ssl_jax.ops.cutmix import strong_view
from ssl_jax.ops.segmentation import ce_dice, confident_regional_cross_entropy, dice_soft
from ssl_jax.ops.softmax import softmax
from ssl_jax.ops.views import uniform_noise
from ssl_jax.types import Array, Batch, Method, Metrics, Task, TrainState

OTHER = {"a": "b", "b": "a"}


@dataclasses.dataclass(frozen=True)
class Options:
  """Keys of `config.method`.

  Attributes:
    weights: of the terms [C]; `dice`, of the other's labels on mixed scans, is used on ACDC alone.
    ramp: R, in passes over the labelled scans, of all terms but `supervised` [C].
    positive, negative: γ⁺ and γ⁻ of L_crc, from where a class is learned and below which it is unlearned [C].
    cutmix: whether boxes are swapped between unlabelled scans.
    alpha: of the Beta distribution that their sides follow [C].
    noise: U(−noise, noise) on every image [C], there of scans between 0 and 1.
    crop: sides of the shifted crops as a fraction of the patch, rounded down to a multiple of 16, at least 16 [D].
  """

  weights: Mapping[str, float] = dataclasses.field(
    default_factory=lambda: {"supervised": 1.0, "crc": 1.0, "dice": 0.0, "translation": 0.3, "entropy": 0.1}
  )
  ramp: float = 40.0
  positive: float = 0.65
  negative: float = 0.1
  cutmix: bool = True
  alpha: float = 4.0
  noise: float = 0.2
  crop: float = 0.75


def build(options: Options, networks: Any, optimizer: optax.GradientTransformation, task: Task) -> Method:
  """Returns the method; see `types.Method`."""
  if not 0.5 < options.crop <= 1:
    raise ValueError(f"config.method.crop: must lie above 0.5, or crops need not overlap, and not above 1; got {options.crop}")
  network = networks.backbone()
  taught = any(options.weights.get(term) for term in ("crc", "dice"))
  translated = any(options.weights.get(term) for term in ("translation", "entropy"))

  def init(key: Array, batch: Batch) -> TrainState:
    return init_state(dict.fromkeys(OTHER, network), optimizer, key, batch["labelled"]["image"])

  def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
    image, label = both_halves(batch)
    count, spatial, stats = len(label), label.shape[1:], dict(state.stats)
    key_of = lambda use: rng.key_for(key, state.step, use)
    noisy = lambda image, use: uniform_noise(key_of(use), image, options.noise)
    mixed: dict[str, Array] = {}
    target, prob, metrics = {}, {}, {}
    if taught:
      for name in OTHER:
        out, stats[name] = forward(network, state.students[name], stats[name], image[count:], key=key_of(f"dropout_target_{name}"))
        prob[name] = softmax(out.logits)  # no gradient
      for name, other in OTHER.items():
        view: dict[str, Any] = {"kind": "cutmix" if options.cutmix else "none", "alpha": options.alpha, "crop": 1.0, "noise": options.noise}
        mixed[name], target[name], _ = strong_view(key_of(f"mixed_{name}"), image[count:], prob[other], **view)
      sure = jnp.stack([jnp.max(p, axis=-1) >= options.positive for p in prob.values()])
      agree = jnp.argmax(prob["a"], axis=-1) == jnp.argmax(prob["b"], axis=-1)
      metrics = {"pseudo_share": jnp.mean(sure), "pseudo_agree": jnp.mean(agree)}
    sides = translate.crop_sides(spatial, options.crop)
    places = [translate.draw_offset(key_of(f"crop_{i}"), spatial, sides) for i in range(2)]
    shared = jnp.logical_and(*(translate.covered(place, sides, spatial) for place in places))

    def loss_fn(students):
      out, pairs, new = {}, {}, dict(stats)

      def run(name: str, image: Array, use: str, views: int = 1) -> Array:
        result, new[name] = forward(network, students[name], new[name], image, key=key_of(f"{use}_{name}"), views=views)
        return result.logits

      for name in OTHER:
        seen = noisy(image[:count], f"noise_{name}")
        out[name] = run(name, jnp.concatenate([seen, mixed[name]]) if taught else seen, "dropout")
        if translated:
          crops = [translate.cut(noisy(image, f"noise_{i}_{name}"), place, sides) for i, place in enumerate(places)]
          parts = jnp.split(run(name, jnp.concatenate(crops), "dropout_crops", views=2), 2)
          first, second = (translate.paste(part, place, spatial) for part, place in zip(parts, places, strict=True))
          pairs[name] = overlap_divergence(first, second, shared)
      crc = lambda name: confident_regional_cross_entropy(out[name][count:], target[name], options.positive, options.negative)
      dice = lambda name: dice_soft(softmax(out[name][count:]), jnp.argmax(target[name], axis=-1))
      terms: dict[str, Any] = {
        "supervised": lambda: sum(ce_dice(out[name][:count], label) for name in OTHER),
        "crc": lambda: sum(crc(name) for name in OTHER),
        "dice": lambda: sum(dice(name) for name in OTHER),
        "translation": lambda: sum(divergence for divergence, _ in pairs.values()),
        "entropy": lambda: sum(negative_entropy for _, negative_entropy in pairs.values()),
      }
      rising = ramp(state.step, options.ramp * max(1, task.num_labelled // count))
      return *weighted_terms(options.weights, terms, dict.fromkeys(set(terms) - {"supervised"}, rising)), {"stats": new}

    state, found = descend(optimizer, state, loss_fn)
    return state, {**found, **metrics, "overlap": jnp.mean(shared)}

  return Method(init, {"train": step}, student(network), {"network_b": student(network, "b")})  # each is evaluated alone [C]
