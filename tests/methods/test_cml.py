"""CML's equations against plain NumPy transcriptions and published numbers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssl_jax import config
from ssl_jax.methods import cml
from ssl_jax.ops.consistency import feature_discrepancy
from ssl_jax.ops.cutmix import box_anywhere, paste
from ssl_jax.ops.segmentation import ce_dice
from ssl_jax.types import Task
from tests.helpers import ROOT
from tests.methods.common import RNG, ce_dice_numpy, normal, small_networks

SIDE = (8, 8, 4)


def channels_last(array):
  return np.moveaxis(array, 1, -1)


@pytest.fixture(scope="module")
def losses():
  return np.load(ROOT / "tests" / "data" / "losses.npz")


def test_discrepancy_equals_the_published(losses):
  a, b = channels_last(losses["cml_feat_a"]), channels_last(losses["cml_feat_b"])
  np.testing.assert_allclose(feature_discrepancy(a, b), losses["cml_discrepancy"], rtol=1e-5)


@pytest.mark.parametrize("kind", ["binary", "multi"])
def test_supervised_loss_equals_the_published(losses, kind):
  logits, label = channels_last(losses[f"{kind}_logits"]), losses[f"{kind}_labels"].astype(np.int32)
  np.testing.assert_allclose(ce_dice(logits, label), losses[f"cml_supervised_{kind}"], rtol=1e-5)


def test_eqs_1_and_2_discrepancy_and_its_gradient():
  a, b = normal(2, 2, 2, 1, 5), normal(2, 2, 2, 1, 5)
  cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
  np.testing.assert_allclose(feature_discrepancy(a, b), 1 + cosine.mean(), rtol=1e-5)
  assert jax.grad(feature_discrepancy, argnums=0)(a, b).any()
  assert not jax.grad(feature_discrepancy, argnums=1)(a, b).any()
  np.testing.assert_allclose(feature_discrepancy(a, 3 * a), 2, rtol=1e-6)
  np.testing.assert_allclose(feature_discrepancy(a, -a), 0, atol=1e-6)
  assert np.isfinite(jax.grad(feature_discrepancy)(np.zeros_like(a), b)).all()


def test_eq_5_the_box_has_its_size_and_every_place():
  boxes = np.asarray(jax.jit(jax.vmap(lambda key: box_anywhere(key, (12, 9, 6), 2 / 3)))(jax.random.split(jax.random.key(0), 600)))
  for axis, (size, side) in enumerate(((12, 8), (9, 6), (6, 4))):
    profile = boxes.any(tuple(a for a in (1, 2, 3) if a != axis + 1))
    assert (profile.sum(1) == side).all()
    counts = np.bincount(profile.argmax(1), minlength=size - side + 1)
    assert counts.min() > 0.6 * 600 / (size - side + 1)
  assert (boxes.sum((1, 2, 3)) == 8 * 6 * 4).all()


def test_eqs_6_and_8_cutmix_of_images_and_labels():
  box = RNG.random(SIDE) < 0.5
  u, v = normal(2, *SIDE, 3), normal(2, *SIDE, 3)
  mask = 1 - box.astype(np.float32)  # the paper's M, 0 inside
  np.testing.assert_allclose(paste(box, u, v), u * mask[..., None] + v * (1 - mask[..., None]))
  y, z = (RNG.integers(0, 3, (2, *SIDE)) for _ in range(2))
  np.testing.assert_array_equal(paste(box, y, z), y * (1 - box) + z * box)


@pytest.mark.parametrize("mode", ["cml", "cfl", "cps"])
def test_eqs_3_and_9_targets(mode):
  box, mask = (inside := RNG.random(SIDE) < 0.5), 1 - inside.astype(int)
  pseudo = {n: RNG.integers(0, 2, (4, *SIDE)) for n in "ab"}
  found = cml.targets(box, pseudo, mode)
  for own, other in (("a", "b"), ("b", "a")):
    inner = pseudo[own] if mode == "cml" else pseudo[other]
    np.testing.assert_array_equal(found[own], pseudo[other][:2] * mask + inner[2:] * (1 - mask))


def build(batch_size=4, **options):
  method = cml.build(config.parse(cml.Options, options), small_networks(), optax.sgd(1.0), Task(4, 10))
  image = normal(2 * batch_size, *SIDE, 1)
  label = (image[:batch_size, ..., 0] > 0).astype(np.int32)
  index = np.arange(batch_size, dtype=np.int32)
  labelled = {"image": image[:batch_size], "label": label, "index": index}
  return method, {"labelled": labelled, "unlabelled": {"image": image[batch_size:], "index": index}}


@functools.cache
def first_state():
  """Of every setting here, as none changes parameters or averages."""
  method, batch = build()
  return jax.jit(method.init)(jax.random.key(0), batch)


def moved(before, after):
  """Names of the parts whose parameters a step has changed."""
  flat = jax.tree_util.tree_leaves_with_path(jax.tree.map(lambda a, b: bool(np.any(a != b)), before, after))
  return {tuple(str(getattr(k, "key", k)) for k in path) for path, changed in flat if changed}


def weights(**given):
  return {**{"supervised": 0.0, "pseudo": 0.0, "discrepancy": 0.0}, **given}


@pytest.mark.parametrize(("term", "output"), [("supervised", True), ("pseudo", True), ("discrepancy", False)])
def test_the_gradient_of_each_term_is_finite_and_reaches_what_it_should(term, output):
  method, batch = build(weights=weights(**{term: 1.0}))
  state = first_state()
  new, metrics = jax.jit(method.steps["selftrain"])(state, batch, jax.random.key(1))
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((new.students, metrics)))
  changed = moved(state.students, new.students)
  assert {path[0] for path in changed} == {"a", "b"}
  assert any("output" in path for path in changed) == output


def with_logits(state, foreground):
  """Both networks predict this class everywhere."""
  output = {"kernel": jnp.zeros((2, 2)), "bias": jnp.array([-5.0, 5.0] if foreground else [5.0, -5.0])}
  return dataclasses.replace(state, students={n: {**s, "output": output} for n, s in state.students.items()})


@pytest.mark.parametrize("foreground", [False, True])
def test_all_agree(foreground):
  method, batch = build()
  state = with_logits(first_state(), foreground)
  new, metrics = jax.jit(method.steps["selftrain"])(state, batch, jax.random.key(1))
  assert metrics["pseudo_agree"] == 1 and metrics["pseudo_foreground"] == float(foreground)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((new.students, metrics)))


def test_all_disagree():
  method, batch = build()
  state = first_state()
  state = dataclasses.replace(state, students={"a": with_logits(state, True).students["a"], "b": with_logits(state, False).students["b"]})
  new, metrics = jax.jit(method.steps["selftrain"])(state, batch, jax.random.key(1))
  assert metrics["pseudo_agree"] == 0
  # network a says 1, b says 0; each learns the other's label outside the box and its own inside
  inside = int(2 / 3 * 8) ** 2 * int(2 / 3 * 4) / np.prod(SIDE)
  label = lambda own: np.where(np.arange(1000) < round(1000 * inside), own, 1 - own)[None, :, None, None]
  logits = lambda own: np.broadcast_to([-5.0, 5.0] if own else [5.0, -5.0], (1, 1000, 1, 1, 2))
  expected = sum(ce_dice_numpy(logits(own), label(own)) for own in (0, 1))
  np.testing.assert_allclose(metrics["loss_pseudo"], expected, rtol=2e-3)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((new.students, metrics)))


@pytest.mark.parametrize("phase", ["pretrain", "selftrain"])
def test_eqs_4_and_11_sum_the_terms(phase):
  method, batch = build(weights={"supervised": 1.0, "pseudo": 0.5, "discrepancy": 0.2})
  state = first_state()
  metrics = jax.jit(method.steps[phase])(state, batch, jax.random.key(1))[1]
  expected = metrics["loss_supervised"] + 0.2 * metrics["loss_discrepancy"] + (0.5 * metrics["loss_pseudo"] if phase == "selftrain" else 0)
  np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
  assert ("loss_pseudo" in metrics) == (phase == "selftrain")


def test_eq_7_on_mixed_labels():
  """A network that is sure of class 0 pays for the foreground that the box let in."""
  method, batch = build(weights=weights(supervised=1.0))
  batch["labelled"]["label"] = np.concatenate([np.zeros((2, *SIDE), np.int32), np.ones((2, *SIDE), np.int32)])
  state = with_logits(first_state(), False)
  metrics = jax.jit(method.steps["pretrain"])(state, batch, jax.random.key(1))[1]
  label = np.zeros((2, *SIDE), int)
  label[:, : int(2 / 3 * 8), : int(2 / 3 * 8), : int(2 / 3 * 4)] = 1  # any place costs the same
  logits = np.broadcast_to([5.0, -5.0], (2, *SIDE, 2))
  np.testing.assert_allclose(metrics["loss_supervised"], 2 * ce_dice_numpy(logits, label), rtol=1e-4)


def test_cps_drops_the_discrepancy():
  method, batch = build(mode="cps")
  state = first_state()
  assert "loss_discrepancy" not in jax.jit(method.steps["selftrain"])(state, batch, jax.random.key(1))[1]


def test_pseudo_labels_keep_the_largest_component_only():
  """The image itself is the logit: of its two bright blobs the smaller one must not be learned."""
  method, batch = build(weights=weights(pseudo=1.0))
  image = -np.ones((4, *SIDE, 1), np.float32)
  image[:, 1:6, 1:6] = 1
  image[:, 7, 7] = 1
  batch["unlabelled"]["image"] = image
  state = first_state()
  students = {}
  for n, s in state.students.items():
    first = {"kernel": jnp.array([[1.0, -1.0]]), "bias": jnp.zeros(2)}
    output = {"kernel": 9.0 * jnp.array([[-1.0, 1.0], [1.0, -1.0]]), "bias": jnp.array([0.1, -0.1])}
    students[n] = {**s, "Conv_0": first, "output": output}
  state = dataclasses.replace(state, students=students)
  found = [float(jax.jit(method.steps["selftrain"])(state, batch, jax.random.key(k))[1]["pseudo_foreground"]) for k in range(3)]
  # dropout blanks the bright channel of some scans; the others show the larger blob and nothing else
  scans = 4 * np.array(found) * np.prod(SIDE) / (25 * 4)
  np.testing.assert_allclose(scans, scans.round(), atol=1e-4)
  assert scans.max() >= 1


def test_shared_weights_are_one_network_seen_twice():
  method, batch = build(shared_weights=True)
  state = jax.jit(method.init)(jax.random.key(1), batch)  # predicts both classes, 0 only one
  assert set(state.students) == set(state.stats) == {"a"} and not method.predict_also
  new, metrics = jax.jit(method.steps["selftrain"])(state, batch, jax.random.key(1))
  assert metrics["pseudo_agree"] < 1  # dropout differs between the two passes
  assert moved(state.students, new.students)


@pytest.mark.parametrize(
  ("options", "logits"),
  [({}, True), ({"variant": "paper"}, False), ({"average": "probabilities"}, False), ({"variant": "paper", "average": "logits"}, True)],
)
def test_prediction_averages_both_networks(options, logits):
  method, batch = build(**options)
  state = first_state()
  image = 4 * batch["labelled"]["image"]
  a, b = (np.asarray(jax.jit(method.predict_also[f"network_{n}"])(state, image)) for n in "ab")
  expected = np.sqrt(a * b) / np.sqrt(a * b).sum(-1, keepdims=True) if logits else (a + b) / 2
  np.testing.assert_allclose(jax.jit(method.predict)(state, image), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("batch_size", "options", "message"), [(3, {}, "must be even; got 3"), (4, {"cutmix_size": 1.0}, "between 0 and")])
def test_bad_settings_are_refused(batch_size, options, message):
  with pytest.raises(ValueError, match=message):
    method, batch = build(batch_size, **options)
    method.init(jax.random.key(0), batch)


def test_the_halves_of_a_batch_may_differ_in_size():
  method, batch = build()
  batch["labelled"] = {name: array[:2] for name, array in batch["labelled"].items()}
  state = jax.jit(method.init)(jax.random.key(0), batch)
  new, metrics = jax.jit(method.steps["selftrain"])(state, batch, jax.random.key(1))
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((new.students, metrics)))
