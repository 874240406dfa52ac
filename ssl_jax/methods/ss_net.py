"""SS-Net: smoothness and class separation (Wu et al., MICCAI 2022).

One network. Its prediction must stand the noise that would change it most, and features of a class approach those of labelled voxels that
it gets right.
| equation | where |
|---|---|
| L_seg = Dice | term `supervised`, `ops.segmentation.dice_batch` |
| L_vat: Dice of p(x + r_adv) and p(x) | term `smooth`, `ops.adversarial.adversarial_noise` |
| prototypes: features of right voxels, chosen by the selector | `remember` |
| L_com: weighted distance to the prototypes | term `separate`, `ops.contrast.prototype_distance` |
| L_seg + λ(t) (L_vat + 0.1 L_com) | `core.step.weighted_terms` |

Deviations: the prediction of the step itself is the reference of L_vat, which saves a pass, and no pass on noisy images moves the running
averages [D]. The prototypes' own weights, which cancel in the published code, are left out [C].
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from ssl_jax.core import rng
from ssl_jax.core.schedules import ramp
from ssl_jax.core.step import both_halves, descend, forward, init_state, student, weighted_terms
from ssl_jax.core.voxel_heads import embed_classes, feature_width, init_chain, with_heads
from ssl_jax.ops import select
from ssl_jax.ops.adversarial import adversarial_noise
from ssl_jax.ops.consistency import dice_distance
from ssl_jax.ops.contrast import prototype_distance
from ssl_jax.ops.segmentation import dice_batch
from ssl_jax.ops.softmax import softmax
from ssl_jax.types import Array, Batch, Method, Metrics, PyTree, Task, TrainState

HEADS = ("projection", "prediction")


@dataclasses.dataclass(frozen=True)
class Options:
  """Keys of `config.method`.

  Attributes:
    weights: of the terms; `smooth` is w_max, `separate` a tenth of it [C].
    ramp: R, in units of `ramp_unit_steps`, of `smooth` and `separate` [C].
    ramp_unit_steps: steps during which their weights stay constant [C].
    xi, epsilon: ξ, step to where the adversarial direction is taken, and ε, length of the noise, over all voxels of a scan [C].
    dice: Dice loss and distance: "plain" as on the Left Atrium or "squared" as on ACDC [C], see `ops.consistency.dice_distance`.
    features: width of the heads [C].
    slots: prototypes of a class [C].
    kept: which voxels become prototypes, by the selector's score: the "lowest" [C] or the "highest" [D].
    rows: voxels of each class that are compared, drawn anew every step; the published code takes all [D].
  """

  weights: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"supervised": 1.0, "smooth": 1.0, "separate": 0.1})
  ramp: float = 40.0
  ramp_unit_steps: int = 150
  xi: float = 10.0
  epsilon: float = 10.0
  dice: Literal["plain", "squared"] = "plain"
  features: int = 32
  slots: int = 32
  kept: Literal["lowest", "highest"] = "lowest"
  rows: int = 4096


def build(options: Options, networks: Any, optimizer: optax.GradientTransformation, task: Task) -> Method:
  """Returns the method; see `types.Method`."""
  del task
  if not 0 < options.slots <= options.rows <= 1 << 15:
    raise ValueError(f"config.method.rows: must lie between slots = {options.slots} and {1 << 15}, got {options.rows}")
  network, head = networks.backbone(), networks.projection(options.features)
  selector = networks.projection(options.features, outputs=1, leak=0.2)  # one a class
  foreground, squared = range(1, networks.num_classes), options.dice == "squared"

  def init(key: Array, batch: Batch) -> TrainState:
    image = batch["labelled"]["image"]
    state = init_state({"a": network}, optimizer, key, image)
    keys = jax.random.split(jax.random.fold_in(key, 1), 3)
    made = init_chain(head, keys[:2], feature_width(network, state.students["a"], state.stats["a"], image), HEADS)
    one = lambda k: selector.init(k, jnp.zeros((2, options.features)), train=False)
    state = with_heads(state, optimizer, {**made, "selector": jax.vmap(one)(jax.random.split(keys[2], len(foreground)))})
    shape = (len(foreground), options.slots)
    return dataclasses.replace(state, memory={"features": jnp.zeros((*shape, options.features)), "valid": jnp.zeros(shape, bool)})

  def remember(state: TrainState, out: Any, label: Array, key: Array) -> PyTree:
    """Keeps features of voxels that the network gets right; a class without any keeps what it had. No gradient, inference mode."""
    right = (jnp.argmax(out.logits[: len(label)], axis=-1) == label).reshape(-1)
    voxels = jax.lax.stop_gradient(out.f4[: len(label)]).reshape(right.size, -1)
    of = lambda name: {"params": state.students[name], "batch_stats": state.stats[name]}

    def one_class(c: Array, key: Array, scorer: PyTree, old: Array, held: Array) -> tuple[Array, Array]:
      index, total = select.spread(key, right & (label.reshape(-1) == c), options.rows)
      rows = head.apply(of("projection"), voxels[index].astype(jnp.float32), train=False)
      score = selector.apply(scorer, rows, train=False)[:, 0]
      rank = jax.nn.sigmoid(score if options.kept == "highest" else -score)
      best, valid = select.most_confident(rank, jnp.arange(options.rows) < total, options.slots)
      return jnp.where(total > 0, rows[best], old), jnp.where(total > 0, valid, held)

    keys, old = jax.random.split(key, len(foreground)), state.memory
    features, valid = jax.vmap(one_class)(jnp.array(foreground), keys, of("selector"), old["features"], old["valid"])
    return {"features": features, "valid": valid}

  def separation(students: PyTree, stats: PyTree, memory: PyTree, features: Array, label: Array, key: Array) -> tuple[Array, PyTree]:
    """L_com of one half of the batch, mean over all classes of which the background adds nothing [C]; and new running averages."""
    rows, has, new = embed_classes(head, students, stats, HEADS, features, label, key, classes=foreground, count=options.rows)

    def scored(params: PyTree, running: PyTree, rows: Array, has: Array) -> tuple[Array, PyTree]:
      counted = jnp.full(options.rows, has)
      score, updated = selector.apply({"params": params, "batch_stats": running}, rows, counted, train=True, mutable=["batch_stats"])
      return jax.nn.sigmoid(score[:, 0]), updated["batch_stats"]

    weight, new["selector"] = jax.vmap(scored)(students["selector"], stats["selector"], jax.lax.stop_gradient(rows), has)
    each = jax.vmap(prototype_distance)(rows, weight, memory["features"], memory["valid"])
    counted = has & jnp.any(memory["valid"], axis=-1)
    return jnp.sum(jnp.where(counted, each, 0.0)) / networks.num_classes, {**stats, **new}

  def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
    image, label = both_halves(batch)
    key_of = lambda use: rng.key_for(key, state.step, use)

    def loss_fn(students):
      out, running = forward(network, students["a"], state.stats["a"], image, key=key_of("dropout_a"))
      prob = softmax(out.logits)
      reference = jax.lax.stop_gradient(prob)
      stats, memory = {**state.stats, "a": running}, state.memory  # `separate` changes both

      def distance(params: PyTree, noisy: Array, use: str) -> Array:
        moved, _ = forward(network, params, state.stats["a"], noisy, key=key_of(use))
        return dice_distance(softmax(moved.logits), reference, squared=squared)

      def smooth() -> Array:
        fixed = jax.lax.stop_gradient(students["a"])
        away = lambda noisy: distance(fixed, noisy, "dropout_direction")
        noise = adversarial_noise(key_of("direction"), image, away, xi=options.xi, epsilon=options.epsilon)
        return distance(students["a"], image + noise, "dropout_smooth")

      def separate() -> tuple[Array, Metrics]:
        nonlocal stats, memory
        memory = remember(state, out, label, key_of("memory"))
        total = jnp.float32(0.0)
        labels = {"labelled": label, "unlabelled": jnp.argmax(out.logits[len(label) :], axis=-1)}
        for (half, value), features in zip(labels.items(), jnp.split(out.f4, [len(label)]), strict=True):
          loss, stats = separation(students, stats, memory, features, value, key_of(f"rows_{half}"))
          total += loss
        return total, {"prototypes": jnp.mean(memory["valid"])}

      truth = jax.nn.one_hot(label, networks.num_classes)
      known = prob[: len(label)]
      terms: dict[str, Any] = {
        "supervised": lambda: dice_distance(known, truth, squared=True) if squared else dice_batch(known, label),
        "smooth": smooth,
        "separate": separate,
      }
      rising = ramp(state.step // options.ramp_unit_steps, options.ramp)
      loss, metrics = weighted_terms(options.weights, terms, {"smooth": rising, "separate": rising})
      return loss, metrics, {"stats": stats, "memory": memory}

    return descend(optimizer, state, loss_fn)

  return Method(init, {"train": step}, student(network), published_select="best")  # by Dice on the test list [C]
