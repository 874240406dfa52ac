"""CAML: Correlation-Aware Mutual Learning (Gao et al., MICCAI 2023).

Two students, no teacher. The vanilla one (a) segments; the auxiliary one (b) sees other samples through
cross-sample mutual attention (CMA).
A memory bank holds features of labelled voxels that both got right.
| equation | where |
|---|---|
| CMA, §2.2 | `networks.attention.CrossSampleAttention` |
| (1) L = L_s + λ_c l_c + λ_o l_o | `loss_fn` |
| L_s: Dice of both | `ops.segmentation.dice_batch` |
| l_c: sharpened consistency [C], cross pseudo supervision [P] | `ops.consistency` |
| (2) S, correlation with stored features | `ops.correlation.correlation` |
| (3) l_o, their consistency | `ops.correlation.correlation_consistency`, both by `omni_correlation_consistency` |
| bank and drawing, §2.3 | `core.bank` |

Deviation: the authors' code reads the auxiliary network's labelled features in the wrong memory order, which mixes voxels and channels of
half of what it stores; here both halves are projections of the same voxel, as the paper says.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from ssl_jax.core import bank, rng
from ssl_jax.core.schedules import ramp
from ssl_jax.core.step import descend, forward, init_network, probabilities, weighted_terms
from ssl_jax.core.voxel_heads import embed, feature_width, init_chain
from ssl_jax.ops import select
from ssl_jax.ops.consistency import cross_pseudo_supervision, sharpened_consistency
from ssl_jax.ops.correlation import omni_correlation_consistency
from ssl_jax.ops.segmentation import dice_batch
from ssl_jax.ops.softmax import softmax
from ssl_jax.types import Array, Batch, Method, Metrics, PyTree, Task, TrainState

HEADS = ("projection", "prediction")
COEFFICIENTS = {
  "official": {"supervised": 0.5, "consistency": 1.0, "occ": 0.05},  # [C]
  "paper": {"supervised": 1.0, "consistency": 1.0, "occ": 0.1},  # [P]
}


@dataclasses.dataclass(frozen=True)
class Options:
  """Keys of `config.method`.

  Attributes:
    variant: "official" is what made the published numbers [C]; "paper" its text: other coefficients, l_c, similarity and ramp-up [P].
    weights: factors on the variant's coefficients; 0 switches a term off (`occ`: Table 2).
    cma: whether the auxiliary network attends across samples (Table 2).
    ramp: R: 40, 20, 15 for 4, 8, 16 labelled scans, in units of `ramp_unit_steps` [C]; [P] ramps over the whole run.
    ramp_unit_steps: steps during which the weights stay constant [C].
    sharpening: T of l_c [C].
    temperature: of the correlations [C]; [P] leaves it open.
    features: width of the heads [P].
    rows: unlabelled voxels per class, the most confident ones [P].
    columns: stored features per class and step [P].
    slots: N, what the bank holds per scan and class [D].
    occ_batchnorm: the heads' BatchNorm statistics over the "selected" rows [D] or over "all" voxels on which both agree [C].
  """

  variant: Literal["official", "paper"] = "official"
  weights: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"supervised": 1.0, "consistency": 1.0, "occ": 1.0})
  cma: bool = True
  ramp: float = 20.0
  ramp_unit_steps: int = 150
  sharpening: float = 0.1
  temperature: float = 0.1
  features: int = 64
  rows: int = 12800
  columns: int = 256
  slots: int = 2048
  occ_batchnorm: Literal["selected", "all"] = "selected"


def build(options: Options, networks: Any, optimizer: optax.GradientTransformation, task: Task) -> Method:
  """Returns the method; see `types.Method`."""
  if options.columns > options.slots:
    raise ValueError(f"config.method.columns: at most config.method.slots = {options.slots}, got {options.columns}")
  pair = {"a": networks.backbone(), "b": networks.backbone(upsample="trilinear", **({"cma": True} if options.cma else {}))}
  head = networks.projection(options.features)
  num_classes, official = networks.num_classes, options.variant == "official"

  def init(key: Array, batch: Batch) -> TrainState:
    students, stats = {}, {}
    for name, network in pair.items():
      keys = jax.random.split(jax.random.fold_in(key, ord(name)), 3)
      image = batch["labelled"]["image"]
      params, running = init_network(network, keys[0], image)
      made = init_chain(head, keys[1:], feature_width(network, params, running, image), HEADS)
      students[name] = {"network": params, **{part: variables["params"] for part, variables in made.items()}}
      stats[name] = {"network": running, **{part: variables["batch_stats"] for part, variables in made.items()}}
    memory = bank.empty(task.num_labelled, num_classes, options.slots, options.features)
    return TrainState(jnp.int32(0), students, (), stats, optimizer.init(students), {}, memory)

  def remember(state: TrainState, out: PyTree, batch: Batch, key: Array) -> bank.Bank:
    """Stores projections of labelled voxels that both networks got right: mean of the two, inference mode, no gradient (§2.3)."""
    label, index = batch["labelled"]["label"], batch["labelled"]["index"]
    count = len(label)
    right = jnp.all(jnp.stack([jnp.argmax(o.logits[:count], axis=-1) == label for o in out.values()]), axis=0).reshape(count, -1)
    keys = jax.random.split(key, (count, num_classes))
    of_class = lambda k, mask, value: select.spread(k, mask & (value[0] == value[1]), options.slots)
    of_case = lambda k, mask, values: jax.vmap(lambda k, c: of_class(k, mask, (values, c)))(k, jnp.arange(num_classes))
    slot, population = jax.vmap(of_case)(keys, right, label.reshape(count, -1))

    def projected(name: str) -> Array:
      voxels = jax.lax.stop_gradient(out[name].f4[:count]).reshape(count, right.shape[1], -1)
      rows = jnp.take_along_axis(voxels, slot.reshape(count, -1, 1), axis=1).astype(jnp.float32)
      variables = {"params": state.students[name]["projection"], "batch_stats": state.stats[name]["projection"]}
      return head.apply(variables, rows.reshape(-1, rows.shape[-1]), train=False)

    features = 0.5 * (projected("a") + projected("b"))
    return bank.replace(state.memory, index, features.reshape(*slot.shape, -1), population)

  def confident_rows(out: PyTree, count: int) -> tuple[Array, Array, Array]:
    """Unlabelled voxels on which both agree, per class the most confident of network a: index, whether it counts; and all of them."""
    prob = jax.lax.stop_gradient(softmax(out["a"].logits[count:])).reshape(-1, num_classes)
    predicted = jnp.argmax(prob, axis=-1)
    same = predicted == jnp.argmax(out["b"].logits[count:], axis=-1).reshape(-1)
    pick = lambda c: select.most_confident(jnp.max(prob, axis=-1), same & (predicted == c), options.rows)
    index, counted = jax.vmap(pick)(jnp.arange(num_classes))
    return index.reshape(-1), (counted & (jnp.sum(counted, axis=1, keepdims=True) > 1)).reshape(-1), same

  def omni_correlation(
    students: PyTree, state: TrainState, out: PyTree, memory: bank.Bank, count: int, key: Array
  ) -> tuple[Array, PyTree, Metrics]:
    """Returns l_o, the heads' running averages, and metrics."""
    index, counted, same = confident_rows(out, count)
    columns, enough = bank.draw(memory, key, options.columns)
    valid = jnp.repeat(enough, options.columns)
    rows, stats = {}, {}
    for name in pair:
      voxels = out[name].f4[count:].astype(jnp.float32)
      voxels = voxels.reshape(-1, voxels.shape[-1])
      if options.occ_batchnorm == "all":
        z, stats[name] = embed(head, students[name], state.stats[name], HEADS, voxels, same)
        rows[name] = z[index]
      else:
        rows[name], stats[name] = embed(head, students[name], state.stats[name], HEADS, select.take(voxels, index), counted)
    loss = omni_correlation_consistency(  # Eqs. (2), (3)
      rows["a"], rows["b"], columns.reshape(-1, options.features), valid, counted, options.temperature, cosine=not official
    )
    return loss, stats, {"occ_rows": jnp.mean(counted), "occ_classes": jnp.sum(enough)}

  def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
    image = jnp.concatenate([batch["labelled"]["image"], batch["unlabelled"]["image"]])
    label = batch["labelled"]["label"]
    key_of = lambda use: rng.key_for(key, state.step, use)

    def loss_fn(students):
      out, stats, memory = {}, {}, state.memory
      for name, network in pair.items():
        params, running = students[name]["network"], state.stats[name]["network"]
        out[name], running = forward(network, params, running, image, key=key_of(f"dropout_{name}"))
        stats[name] = {**state.stats[name], "network": running}

      def occ_term():
        nonlocal memory
        memory = remember(state, out, batch, key_of("bank_fill"))
        loss, heads, metrics = omni_correlation(students, state, out, memory, len(label), key_of("bank_draw"))
        for name in pair:
          stats[name] |= heads[name]
        return loss, metrics

      logits = (out["a"].logits, out["b"].logits)
      terms = {
        "supervised": lambda: sum(dice_batch(softmax(x[: len(label)]), label) for x in logits),
        "consistency": lambda: (
          sharpened_consistency(*logits, temperature=options.sharpening) if official else cross_pseudo_supervision(*logits)
        ),
        "occ": occ_term,
      }
      rising = ramp(state.step // options.ramp_unit_steps, options.ramp) if official else ramp(state.step, task.num_steps)
      coefficients = {name: jnp.float32(value) for name, value in COEFFICIENTS[options.variant].items()}
      scale = {**coefficients, "consistency": coefficients["consistency"] * rising, "occ": coefficients["occ"] * rising}
      loss, metrics = weighted_terms(options.weights, terms, scale)  # Eq. (1)
      return loss, metrics, {"stats": stats, "memory": memory}

    return descend(optimizer, state, loss_fn)

  segment = lambda name: (
    lambda state, image: probabilities(pair[name], state.students[name]["network"], state.stats[name]["network"], image)
  )
  return Method(init, {"train": step}, segment("a"), {"auxiliary": segment("b")})
