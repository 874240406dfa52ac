"""CAML's equations against plain NumPy transcriptions, its bank against a NumPy re-run, and published numbers."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from ssl_jax import config, methods
from ssl_jax.core import bank, rng
from ssl_jax.core import step as core_step
from ssl_jax.interop.caml import load_caml
from ssl_jax.methods import caml
from ssl_jax.networks.factory import Networks
from ssl_jax.networks.heads import Projection
from ssl_jax.networks.vnet import VNet
from ssl_jax.ops import correlation as correlations
from ssl_jax.ops import select
from ssl_jax.ops.consistency import cross_pseudo_supervision, sharpened_consistency
from ssl_jax.ops.correlation import correlation, correlation_consistency, omni_correlation_consistency
from ssl_jax.ops.segmentation import dice_batch
from ssl_jax.types import InputError, NetworkConfig, Task
from tests.helpers import ROOT
from tests.methods.common import RNG, Pyramid, normal, small_networks, softmax

DATA = ROOT / "tests" / "data"


def channels_last(array):
  return np.moveaxis(array, 1, -1)


@pytest.fixture(scope="module")
def losses():
  return np.load(DATA / "losses.npz")


# Published numbers


def test_dice_equals_the_published(losses):
  prob = softmax(channels_last(losses["binary_logits"]))
  np.testing.assert_allclose(dice_batch(prob, losses["binary_labels"].astype(np.int32)), losses["caml_dice"], rtol=1e-5)


def test_consistency_equals_the_published(losses):
  a, b = channels_last(losses["binary_logits"]), channels_last(losses["binary_logits_2"])
  np.testing.assert_allclose(sharpened_consistency(a, b, 0.1), losses["caml_consistency_T0_1"], rtol=1e-5)


def test_selection_correlation_and_loss_equal_the_published(losses):
  confidence, label, memory = losses["occ_conf"], losses["occ_label"], losses["occ_memory"]
  picked = [select.most_confident(confidence, label == c, 32) for c in range(2)]
  assert all(valid.all() for _, valid in picked)
  index = np.concatenate([i for i, _ in picked])
  columns, valid = memory.reshape(-1, memory.shape[-1]), np.ones(32, bool)
  s_v, s_a = (correlation(losses[f"occ_feat_{n}"][index], columns, valid, 0.1, False) for n in "va")
  np.testing.assert_allclose(s_v, losses["occ_corr_v"], rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(s_a, losses["occ_corr_a"], rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(correlation_consistency(s_v, s_a, np.ones(64, bool)), losses["occ_loss"], rtol=1e-5)


def test_the_pair_equals_the_published_in_training_mode():
  oracle = np.load(DATA / "caml_dual_train.npz")
  weights = load_caml({k.removeprefix("sd/"): oracle[k] for k in oracle.files if k.startswith("sd/")})
  image = channels_last(oracle["x"])
  for name, suffix, network in (("a", "v", VNet(2, 2)), ("b", "a", VNet(2, 2, upsample="trilinear", cma=True))):
    variables = {collection: tree[name]["network"] for collection, tree in weights.items()}
    apply = jax.jit(lambda v, x, network=network: network.apply(v, x, train=True, dropout=False, mutable=["batch_stats"])[0])
    out = apply(variables, image)
    kept = (slice(None), *[slice(None, None, 2)] * 3)  # the file holds every second voxel, for its size
    np.testing.assert_allclose(out.logits[kept], channels_last(oracle[f"logits_{suffix}"]), atol=1e-3)
    np.testing.assert_allclose(out.f4[kept], channels_last(oracle[f"features_{suffix}"]), atol=1e-3)


def test_the_imported_tree_is_that_of_the_method():
  oracle = np.load(DATA / "caml_dual_train.npz")
  weights = load_caml({k.removeprefix("sd/"): oracle[k] for k in oracle.files if k.startswith("sd/")})
  method, batch = build(networks=Networks(NetworkConfig(width=2), 2))
  state = jax.eval_shape(lambda: method.init(jax.random.key(0), batch))
  shapes = lambda tree: jax.tree.map(lambda a: a.shape, tree)
  assert shapes(weights["params"]) == shapes(dict(state.students))
  assert shapes(weights["batch_stats"]) == shapes(dict(state.stats))


def test_foreign_weights_are_refused_by_name():
  oracle = np.load(DATA / "caml_dual_train.npz")
  weights = {k.removeprefix("sd/"): oracle[k] for k in oracle.files if k.startswith("sd/")}
  with pytest.raises(InputError, match="prediction_head2.3.bias of the state dict is missing"):
    load_caml({k: v for k, v in weights.items() if k != "prediction_head2.3.bias"})
  with pytest.raises(InputError, match="encoder3.block_one.conv.0.weight: unknown"):
    load_caml({**weights, "encoder3.block_one.conv.0.weight": np.zeros(3)})


# Equations


def pooled(x, cosine):
  return x / np.linalg.norm(x, axis=-1, keepdims=True) if cosine else x


@pytest.mark.parametrize("cosine", [False, True])
def test_eq_2_correlation(cosine):
  rows, columns, valid = normal(5, 4), normal(6, 4), np.array([1, 1, 0, 1, 0, 1], bool)
  similarity = pooled(rows, cosine) @ pooled(columns, cosine).T / 0.5
  expected = np.zeros((5, 6))
  expected[:, valid] = softmax(similarity[:, valid])
  np.testing.assert_allclose(jax.jit(correlation, static_argnums=(3, 4))(rows, columns, valid, 0.5, cosine), expected, rtol=1e-5, atol=1e-7)


def test_eq_3_correlation_consistency():
  s_v, s_a, counted = softmax(normal(5, 6)), softmax(normal(5, 6)), np.array([1, 0, 1, 1, 0], bool)
  expected = -(s_a * np.log(s_v + 1e-8)).sum(-1)[counted].mean()
  np.testing.assert_allclose(jax.jit(correlation_consistency)(s_v, s_a, counted), expected, rtol=1e-5)
  assert correlation_consistency(s_v, s_a, np.zeros(5, bool)) == 0


@pytest.mark.parametrize("elements", [1, 12, 18, 1000])  # blocks of 1, 2, 3 and all 5 rows
def test_eq_2_and_3_in_blocks_are_those_of_all_rows(elements, monkeypatch):
  monkeypatch.setattr(correlations, "_CACHED", elements)
  rows, columns = (normal(5, 4), normal(5, 4)), normal(6, 4)
  valid, counted = np.array([1, 1, 0, 1, 0, 1], bool), np.array([1, 0, 1, 1, 0], bool)

  def at_once(rows):
    return correlation_consistency(*(correlation(z, columns, valid, 0.5, True) for z in rows), counted)

  in_blocks = lambda rows, counted: omni_correlation_consistency(*rows, columns, valid, counted, 0.5, True)
  found, expected = jax.value_and_grad(in_blocks)(rows, counted), jax.value_and_grad(at_once)(rows)
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), found, expected)
  assert in_blocks(rows, np.zeros(5, bool)) == 0


def test_eq_3_without_any_stored_feature_is_zero_and_so_is_its_gradient():
  rows, columns = normal(5, 4), normal(6, 4)

  def loss(rows):
    return omni_correlation_consistency(rows, rows, columns, jnp.zeros(6, bool), jnp.ones(5, bool), 0.1, False)

  value, gradient = jax.value_and_grad(loss)(rows)
  assert value == 0 and not gradient.any()


def test_paper_consistency_is_cross_entropy_with_the_others_prediction():
  a, b = normal(2, 4, 4, 3), normal(2, 4, 4, 3)
  nll = lambda x, y: -np.log(np.take_along_axis(softmax(x), y[..., None], -1)).mean()
  np.testing.assert_allclose(cross_pseudo_supervision(a, b), nll(a, b.argmax(-1)) + nll(b, a.argmax(-1)), rtol=1e-5)
  # a target carries no gradient: b's own term pulls b towards a's classes, whatever a's probabilities are
  gradient = jax.grad(lambda b, a: cross_pseudo_supervision(a, b))
  np.testing.assert_allclose(gradient(b, a), gradient(b, 5 * a), rtol=1e-6)


def test_dice_of_an_empty_class_is_finite():
  prob, label = softmax(normal(2, 4, 4, 3)), np.zeros((2, 4, 4), np.int32)
  value, gradient = jax.value_and_grad(dice_batch)(prob, label)
  np.testing.assert_allclose(value, 1.0, rtol=1e-6)
  assert np.isfinite(gradient).all()


# Heads


def test_head_normalises_by_the_rows_that_count():
  head, rows, counted = Projection(8), normal(20, 4), np.arange(20) < 12
  variables = jax.jit(partial(head.init, train=False))(jax.random.key(0), rows)
  z, new = head.apply(variables, rows, counted, train=True, mutable=["batch_stats"])
  p = variables["params"]
  hidden = rows @ p["hidden"]["kernel"] + p["hidden"]["bias"]
  mean, var = hidden[:12].mean(0), hidden[:12].var(0)
  expected = np.maximum((hidden - mean) / np.sqrt(var + 1e-5), 0) @ p["output"]["kernel"] + p["output"]["bias"]
  np.testing.assert_allclose(z, expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(new["batch_stats"]["norm"]["mean"], 0.1 * mean, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(new["batch_stats"]["norm"]["var"], 0.9 + 0.1 * var * 12 / 11, rtol=1e-4)
  z, new = head.apply(variables, rows, np.zeros(20, bool), train=True, mutable=["batch_stats"])
  assert np.isfinite(z).all()
  assert (new["batch_stats"]["norm"]["mean"] == 0).all() and (new["batch_stats"]["norm"]["var"] == 1).all()


# Choosing voxels


@pytest.mark.parametrize(("size", "share"), [(700, 0.5), (700, 0.02), (300, 1.0), (40, 0.0)])
def test_spread_draws_distinct_voxels_of_the_mask(size, share):
  mask = RNG.random(size) < share
  index, total = jax.jit(select.spread, static_argnums=2)(jax.random.key(1), mask, 64)
  kept = np.asarray(index)[: min(64, mask.sum())]
  assert total == mask.sum() and len(set(kept)) == len(kept) and mask[kept].all()
  if mask.sum() <= 64:
    np.testing.assert_array_equal(kept, np.flatnonzero(mask))


def test_taken_rows_have_the_gradient_of_indexing():
  voxels, index, weight = RNG.normal(size=(9, 4)).astype(np.float32), np.array([3, 0, 3, 8, 3]), RNG.normal(size=(5, 4)).astype(np.float32)
  loss = lambda rows_of: jax.jit(jax.value_and_grad(lambda voxels: jnp.sum(weight * rows_of(voxels) ** 2)))(voxels)
  (value, gradient), (expected, expected_gradient) = loss(lambda v: select.take(v, index)), loss(lambda v: v[index])
  assert value == expected
  np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-6)
  half = jax.grad(lambda voxels: jnp.sum(select.take(voxels, index)).astype(jnp.float32))(voxels.astype(jnp.bfloat16))
  assert half.dtype == jnp.bfloat16 and half[3, 0] == 3 and half[1, 0] == 0


def test_spread_favours_no_voxel():
  mask = np.ones(100, bool)
  draws = jax.jit(jax.vmap(lambda key: select.spread(key, mask, 64)[0]))(jax.random.split(jax.random.key(0), 4000))
  counts = np.bincount(np.asarray(draws).ravel(), minlength=100)
  assert abs(counts - 2560).max() < 5 * np.sqrt(4000 * 0.64 * 0.36)


def test_most_confident_puts_what_is_missing_last():
  index, valid = select.most_confident(np.array([0.5, 0.9, 0.7, 0.9]), np.array([1, 1, 0, 1], bool), 4)
  np.testing.assert_array_equal(index[:3], [1, 3, 0])
  np.testing.assert_array_equal(valid, [1, 1, 1, 0])


# The bank


def filled_bank(populations, slots=32, width=3):
  """L cases of two classes; slot k of case l and class c holds the features (l, c, k)."""
  cases = len(populations)
  grid = np.stack(np.meshgrid(np.arange(cases), np.arange(2), np.arange(slots), indexing="ij"), -1).astype(np.float32)
  return bank.replace(bank.empty(cases, 2, slots, width), np.arange(cases), grid, np.asarray(populations, np.int32))


def test_bank_draws_in_proportion_to_the_voxels_behind_a_slot():
  populations = np.array([[320, 40], [64, 10], [3200, 0]])
  held = filled_bank(populations)
  first = jax.jit(jax.vmap(lambda key: bank.draw(held, key, 1)[0][:, 0]))(jax.random.split(jax.random.key(0), 20_000))
  for c in range(2):
    valid = np.minimum(populations[:, c], 32)
    expected = np.concatenate([np.full(v, p / v) for p, v in zip(populations[:, c], valid, strict=True) if v])
    slot = np.asarray(first[:, c]).astype(int)
    position = np.cumsum([0, *valid[:-1]])[slot[:, 0]] + slot[:, 2]
    observed = np.bincount(position, minlength=valid.sum())
    assert (slot[:, 1] == c).all()
    assert scipy.stats.chisquare(observed, expected / expected.sum() * 20_000).pvalue > 1e-3


def test_bank_draws_without_replacement_and_anew_each_time():
  held = filled_bank([[100, 100], [100, 100]])
  draws = [np.asarray(bank.draw(held, jax.random.key(k), 40)[0]) for k in range(2)]
  assert all(len({tuple(row) for row in draw[c]}) == 40 for draw in draws for c in range(2))
  assert not np.array_equal(*draws)


def test_a_class_with_too_few_features_is_not_enough():
  _, enough = bank.draw(filled_bank([[20, 10], [20, 0]]), jax.random.key(0), 30)
  np.testing.assert_array_equal(enough, [True, False])
  features, enough = bank.draw(bank.empty(3, 2, 32, 3), jax.random.key(0), 8)
  assert not enough.any() and np.isfinite(features).all()


def test_of_a_case_twice_in_a_batch_the_later_stays_and_others_are_kept():
  held = filled_bank([[5, 5], [6, 6], [7, 7]])
  new = jnp.stack([jnp.full((2, 32, 3), v) for v in (1.0, 2.0)])
  after = bank.replace(held, jnp.array([1, 1]), new, jnp.array([[40, 3], [0, 50]]))
  assert (after["features"][1] == 2).all()
  np.testing.assert_array_equal(after["population"], [[5, 5], [0, 50], [7, 7]])
  np.testing.assert_array_equal(after["valid"], [[5, 5], [0, 32], [7, 7]])
  np.testing.assert_array_equal(after["features"][2], held["features"][2])


# The method


def build(networks=None, batch_size=2, **options):
  settings = {"rows": 64, "columns": 16, "slots": 32, "features": 8, **options}
  networks = networks or small_networks()
  method = caml.build(config.parse(caml.Options, settings), networks, optax.sgd(1.0), Task(num_labelled=3, num_steps=100))
  # Not `normal`, whose numbers depend on the tests before: of one image in thirty no feature reaches network b's gradient.
  image = np.random.default_rng(0).normal(size=(2 * batch_size, 16, 16, 16, 1)).astype(np.float32)
  label = (image[:batch_size, ..., 0] > 0.5).astype(np.int32)
  labelled = {"image": image[:batch_size], "label": label, "index": np.array([2, 0], np.int32)}
  return method, {"labelled": labelled, "unlabelled": {"image": image[batch_size:], "index": np.array([3, 4], np.int32)}}


@cache
def start():
  """A first state, of every setting here, whose networks predict both classes, and often the same one."""
  method, batch = build()
  state = jax.jit(method.init)(jax.random.key(0), batch)
  bright = {"kernel": jnp.array([[1.0, -1.0]]), "bias": jnp.zeros(2)}  # bright voxels lie in the first channel, dark ones in the second
  output = {"kernel": jnp.array([[-3.0, 3.0], [3.0, -3.0]]), "bias": jnp.zeros(2)}
  students = {n: {**s, "network": {**s["network"], "Conv_0": bright, "output": output}} for n, s in state.students.items()}
  return dataclasses.replace(state, students=students)


def weights(**given):
  return {**{"supervised": 0.0, "consistency": 0.0, "occ": 0.0}, **given}


def moved(before, after):
  """Names of the parts whose parameters a step has changed."""
  flat = jax.tree_util.tree_leaves_with_path(jax.tree.map(lambda a, b: bool(np.any(a != b)), before, after))
  return {tuple(str(getattr(k, "key", k)) for k in path) for path, changed in flat if changed}


NETWORKS = {("a", "network"), ("b", "network")}
HEADS = {(n, h) for n in "ab" for h in ("projection", "prediction")}


@pytest.mark.parametrize(
  ("term", "parts", "output"), [("supervised", NETWORKS, True), ("consistency", NETWORKS, True), ("occ", NETWORKS | HEADS, False)]
)
@pytest.mark.parametrize("variant", ["official", "paper"])
def test_the_gradient_of_each_term_is_finite_and_reaches_what_it_should(term, parts, output, variant):
  method, batch = build(variant=variant, weights=weights(**{term: 1.0}), ramp=0.0)
  state = start()
  new, metrics = jax.jit(method.steps["train"])(state, batch, jax.random.key(1))
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((new.students, metrics)))
  changed = moved(state.students, new.students)
  assert {path[:2] for path in changed} == parts
  assert any(path[2] == "output" for path in changed if path[1] == "network") == output
  assert any(path[2] == "cma" for path in changed if path[0] == "b")
  if term != "occ":  # a term that is off leaves no trace
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), state.memory, new.memory))


def test_eq_1_sums_the_terms_with_the_variants_coefficients():
  for variant, coefficient in caml.COEFFICIENTS.items():
    method, batch = build(variant=variant, ramp_unit_steps=1, ramp=50.0)
    state = dataclasses.replace(start(), step=jnp.int32(20))
    metrics = jax.jit(method.steps["train"])(state, batch, jax.random.key(1))[1]
    rising = np.exp(-5 * (1 - 20 / (50 if variant == "official" else 100)) ** 2)
    expected = coefficient["supervised"] * metrics["loss_supervised"]
    expected += rising * (coefficient["consistency"] * metrics["loss_consistency"] + coefficient["occ"] * metrics["loss_occ"])
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    assert metrics["loss_occ"] > 0


def test_without_attention_the_auxiliary_network_is_a_plain_one():
  method, batch = build(cma=False)
  assert "cma" not in jax.eval_shape(lambda: method.init(jax.random.key(0), batch)).students["b"]["network"]


def test_heads_see_only_what_occ_batchnorm_says():
  stats = {}
  for mode in ("selected", "all"):
    method, batch = build(occ_batchnorm=mode, ramp=0.0)
    state = start()
    stats[mode] = jax.jit(method.steps["train"])(state, batch, jax.random.key(1))[0].stats["a"]["projection"]["norm"]["mean"]
  assert not np.allclose(stats["selected"], stats["all"], rtol=1e-3)


def test_bank_after_k_steps_equals_a_numpy_re_run():
  """The same rule voxel by voxel: who is right, which ranks, projections by running averages, overwriting by case."""
  method, batch = build(ramp=0.0)
  network = {"a": Pyramid(), "b": Pyramid(cma=True)}
  state, step = start(), jax.jit(method.steps["train"])
  forward = {
    n: jax.jit(lambda params, stats, x, k, net=net: core_step.forward(net, params, stats, x, key=k)[0]) for n, net in network.items()
  }
  key, slots, expected = jax.random.key(1), 32, {}
  for k in range(3):
    batch["labelled"]["index"] = np.array([[2, 0], [1, 1], [0, 2]][k], np.int32)
    image = np.concatenate([batch["labelled"]["image"], batch["unlabelled"]["image"]])
    dropout = {n: rng.key_for(key, state.step, f"dropout_{n}") for n in "ab"}
    out = {n: forward[n](state.students[n]["network"], state.stats[n]["network"], image, dropout[n]) for n in "ab"}
    keys = jax.random.split(rng.key_for(key, state.step, "bank_fill"), (2, 2))
    for i, case in enumerate(batch["labelled"]["index"]):
      label = batch["labelled"]["label"][i].ravel()
      right = np.all([np.argmax(out[n].logits[i], -1).ravel() == label for n in "ab"], axis=0)
      for c in range(2):
        voxels = np.flatnonzero(right & (label == c))
        rank = spread_numpy(keys[i, c], len(voxels), slots)
        rows = [project_numpy(state, n, np.asarray(out[n].f4[i]).reshape(-1, 2)[voxels[rank]]) for n in "ab"]
        expected[int(case), c] = (np.mean(rows, axis=0), len(voxels))
    state, _ = step(state, batch, key)
  for case in range(3):
    for c in range(2):
      features, population = expected[case, c]
      assert state.memory["population"][case, c] == population
      assert state.memory["valid"][case, c] == min(population, slots)
      np.testing.assert_allclose(state.memory["features"][case, c, : len(features)], features, rtol=1e-3, atol=1e-4)


def spread_numpy(key, total, count):
  if total <= count:
    return np.arange(total)
  key_turn, key_in_run = jax.random.split(key)
  start = np.array([k * (total // count) + (k * (total % count)) // count for k in range(count + 1)])
  rank = start[:-1] + np.asarray(jax.random.randint(key_in_run, (count,), 0, np.diff(start)))
  return (rank + int(jax.random.randint(key_turn, (), 0, total))) % total


def project_numpy(state, name, rows):
  p, s = state.students[name]["projection"], state.stats[name]["projection"]["norm"]
  hidden = rows @ p["hidden"]["kernel"] + p["hidden"]["bias"]
  hidden = (hidden - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["norm"]["scale"] + p["norm"]["bias"]
  return np.maximum(hidden, 0) @ p["output"]["kernel"] + p["output"]["bias"]


def test_published_state_beyond_the_networks_is_small():
  method = methods.load("caml").build(caml.Options(), Networks(NetworkConfig(), 2), optax.sgd(0.01, momentum=0.9), Task(16, 15000))
  half = {"image": jax.ShapeDtypeStruct((2, 112, 112, 80, 1), jnp.float32), "index": jax.ShapeDtypeStruct((2,), jnp.int32)}
  state = jax.eval_shape(lambda key: method.init(key, {"labelled": half, "unlabelled": half}), jax.random.key(0))
  size = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
  assert 0 < size(state.memory) <= 200e6


def test_more_columns_than_slots_is_refused():
  with pytest.raises(ValueError, match="config.method.columns: at most config.method.slots = 8, got 16"):
    build(slots=8)
