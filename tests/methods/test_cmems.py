"""CMEMS's equations against plain NumPy transcriptions, and what each switch changes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssl_jax import config
from ssl_jax.core import rng
from ssl_jax.core.step import forward
from ssl_jax.methods import cmems
from ssl_jax.networks.factory import Networks
from ssl_jax.ops import views
from ssl_jax.ops.segmentation import ce_dice
from ssl_jax.types import InputError, NetworkConfig, Task
from tests.methods.common import RNG, Pixelwise, ce_dice_numpy, nll, normal, slice_networks, softmax

SIDE, CLASSES = (8, 8), 3


def batch():
  half = lambda n, seed: {"image": np.random.default_rng(seed).random((n, *SIDE, 1), np.float32), "index": np.arange(n, dtype=np.int32)}
  with_label = lambda n, seed: {**half(n, seed), "label": np.random.default_rng(seed).integers(0, CLASSES, (n, *SIDE)).astype(np.int32)}
  return {"labelled": with_label(2, 0), "synthetic": with_label(3, 1), "unlabelled": half(2, 2)}


BATCH, KEY = batch(), jax.random.key(5)


def make(**changes):
  weights = {**cmems.Options().weights, **changes.pop("weights", {})}
  options = config.parse(cmems.Options, {"weights": weights, "threshold": 0.34, **changes})
  return options, cmems.build(options, slice_networks(CLASSES), optax.sgd(0.1), Task(1, 10))


@pytest.fixture(scope="module")
def start():
  return jax.jit(make()[1].init)(jax.random.key(0), BATCH)


STEPS = {}


def metrics_of(start, batch=BATCH, **changes):
  step = STEPS.setdefault(repr(changes), jax.jit(make(**changes)[1].steps["train"]))
  return step(start, batch, KEY)[1]


@functools.cache
def pose(name, stream):
  key = jax.random.fold_in(jax.random.fold_in(rng.key_for(KEY, jnp.int32(0), "pose"), ord(name)), cmems.STREAMS.index(stream))
  return views.draw_pose(key, len(BATCH[stream]["image"]), square=True)


@functools.cache
def weak(name, stream):
  return views.turn_image(BATCH[stream]["image"], pose(name, stream))


@functools.partial(jax.jit, static_argnames=("perturb",))
def forward_one(student, stats, image, key, perturb):
  return forward(Pixelwise(CLASSES), student, stats, image, key=key, perturb=perturb)[0].logits


def logits(state, name, image, perturb=0.0, use="dropout_strong"):
  key = rng.key_for(KEY, jnp.int32(0), f"{use}_{name}")
  return np.asarray(forward_one(state.students[name], state.stats[name], image, key, perturb))


def strong(options, name):
  view = jax.jit(lambda key, image: cmems.strong_view(key, image, options))
  return view(rng.key_for(KEY, jnp.int32(0), f"strong_{name}"), weak(name, "unlabelled"))


def masked_ce_dice(out, label, mask):
  prob, target = softmax(out) * mask[..., None], np.eye(CLASSES)[label] * mask[..., None]
  dice = 1 - (2 * (prob * target).sum((1, 2)) + 1e-5) / (prob.sum((1, 2)) + target.sum((1, 2)) + 1e-5)
  return 0.5 * ((nll(out, label) * mask).mean() + dice.mean())


def numpy_pseudo(start, name, threshold=0.34):
  prob = softmax(logits(start, name, weak(name, "unlabelled")))
  return prob.argmax(-1), prob.max(-1) >= threshold


def test_eqs_2_and_6_supervised_terms(start):
  terms = {"exemplar": "labelled", "synthetic": "synthetic"}
  expected = dict.fromkeys(terms, 0.0)
  for name in "ab":
    image = np.concatenate([weak(name, stream) for stream in terms.values()])
    out = np.split(logits(start, name, image), [2])
    for part, (term, stream) in zip(out, terms.items(), strict=True):
      expected[term] += ce_dice_numpy(part, np.asarray(views.turn_label(BATCH[stream]["label"], pose(name, stream))))
  found = metrics_of(start)
  for term, value in expected.items():
    np.testing.assert_allclose(found[f"loss_{term}"], value, rtol=1e-4)


def test_eq_3_pseudo_labels_above_the_threshold():
  prob = softmax(normal(2, *SIDE, CLASSES))
  label, counted = cmems.pseudo_label(prob, 0.5, "ignore")
  np.testing.assert_array_equal(label, prob.argmax(-1))
  np.testing.assert_array_equal(counted, prob.max(-1) >= 0.5)
  printed, everywhere = cmems.pseudo_label(prob, 0.5, "background")
  np.testing.assert_array_equal(printed, np.where(prob.max(-1) >= 0.5, prob.argmax(-1), 0))
  assert np.all(everywhere)


def test_eqs_4_and_5_a_network_learns_the_others_labels_on_the_others_strong_view(start):
  options, _ = make()
  expected = 0.0
  for name, other in cmems.OTHER.items():
    expected += masked_ce_dice(logits(start, name, strong(options, other)), *numpy_pseudo(start, other))
  np.testing.assert_allclose(metrics_of(start)["loss_image"], expected, rtol=1e-4)


@pytest.mark.parametrize("kind", ["cross", "individual"])
def test_eqs_7_and_8_features_with_channels_missing(start, kind):
  expected = 0.0
  for name, other in cmems.OTHER.items():
    teacher = other if kind == "cross" else name
    out = logits(start, name, weak(teacher, "unlabelled"), perturb=0.5, use="dropout_feature")
    expected += masked_ce_dice(out, *numpy_pseudo(start, teacher))
  np.testing.assert_allclose(metrics_of(start, feature_perturbation=kind)["loss_feature"], expected, rtol=1e-4)


def test_individual_differs_from_cross(start):
  values = {kind: float(metrics_of(start, feature_perturbation=kind)["loss_feature"]) for kind in ("cross", "individual")}
  assert not np.isclose(values["cross"], values["individual"], rtol=1e-4)
  own = {whose: float(metrics_of(start, teaches=whose)["loss_image"]) for whose in ("other", "own")}
  assert not np.isclose(own["other"], own["own"], rtol=1e-4)


def test_eq_9_weights_the_terms(start):
  found = metrics_of(start, weights={"image": 0.5, "feature": 0.25})
  total = found["loss_exemplar"] + found["loss_synthetic"] + 0.5 * found["loss_image"] + 0.25 * found["loss_feature"]
  np.testing.assert_allclose(found["loss"], total, rtol=1e-6)


def test_eq_10_prediction_is_the_mean_of_both(start):
  _, method = make()
  image = BATCH["unlabelled"]["image"]
  each = [jax.jit(method.predict_also[f"network_{name}"])(start, image) for name in "ab"]
  np.testing.assert_allclose(jax.jit(method.predict)(start, image), (each[0] + each[1]) / 2, atol=1e-6)
  assert not np.allclose(each[0], each[1])  # initialised independently


def test_no_gradient_into_pseudo_labels(start):
  """The gradient equals that of the same loss with the targets as constants."""
  options, method = make(weights={"exemplar": 0.0, "synthetic": 0.0, "feature": 0.0})
  new, _ = jax.jit(method.steps["train"])(start, BATCH, KEY)
  constants = {name: [jnp.asarray(part) for part in numpy_pseudo(start, name)] for name in "ab"}
  seen = {name: strong(options, other) for name, other in cmems.OTHER.items()}

  def loss(students):
    total = 0.0
    for name, other in cmems.OTHER.items():
      out, _ = forward(Pixelwise(CLASSES), students[name], start.stats[name], seen[name], key=None)
      total += ce_dice(out.logits, *constants[other])
    return total

  expected = jax.tree.map(lambda p, g: p - 0.1 * g, start.students, jax.jit(jax.grad(loss))(start.students))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), new.students, expected)


def test_independent_views_really_differ():
  for stream in cmems.STREAMS:
    assert not np.allclose(weak("a", stream), weak("b", stream))


@pytest.mark.parametrize(("stream", "term"), [("labelled", "exemplar"), ("synthetic", "synthetic"), ("unlabelled", "image")])
def test_shared_views_change_their_stream_alone(start, stream, term):
  apart, same = metrics_of(start), metrics_of(start, same_views=(stream,))
  assert not np.isclose(apart[f"loss_{term}"], same[f"loss_{term}"], rtol=1e-4)
  if stream == "unlabelled":
    # Operation by operation: two programs may round differently.
    one_by_one = [make(same_views=views)[1].steps["train"](start, BATCH, KEY)[1] for views in ((), (stream,))]
    assert float(one_by_one[0]["loss_exemplar"]) == float(one_by_one[1]["loss_exemplar"])


def test_switched_off_terms_cost_nothing_and_need_nothing(start):
  """Table 3's first row: one labelled slice, no synthetic images, no unlabelled ones."""
  bare = {k: v for k, v in BATCH.items() if k != "synthetic"}
  found = metrics_of(start, bare, weights={"synthetic": 0.0, "image": 0.0, "feature": 0.0})
  assert set(found) == {"loss", "loss_exemplar"}


def test_no_pixel_is_confident(start):
  found = metrics_of(start, threshold=1.0)
  assert float(found["pseudo_share"]) == 0.0 and all(np.isfinite(v) for v in found.values())
  assert float(found["loss_image"]) == 0.0


def test_strong_view_switches():
  image = RNG.random((2, *SIDE, 1), np.float32)
  options, _ = make()
  results = [
    jax.jit(functools.partial(cmems.strong_view, options=dataclasses.replace(options, **changes)))(KEY, image)
    for changes in ({"colour_jitter": 0.0}, {}, {"gaussian_blur": True}, {"sharpness": True})
  ]
  np.testing.assert_array_equal(results[0], image)
  for i, one in enumerate(results):
    assert all(not np.allclose(one, other) for other in results[:i])


def test_what_cannot_be_built_is_refused(start):
  with pytest.raises(ValueError, match="same_views"):
    make(same_views=("synthetics",))
  with pytest.raises(ValueError, match="threshold"):
    make(threshold=1.5)
  with pytest.raises(ValueError, match="batch_synthetic"):
    make()[1].init(jax.random.key(0), {k: v for k, v in BATCH.items() if k != "synthetic"})
  with pytest.raises(InputError, match="feature_perturbation"):
    make(feature_perturbation="both")
  with pytest.raises(ValueError, match="unet2d"):
    cmems.build(cmems.Options(), Networks(NetworkConfig(), CLASSES), optax.sgd(0.1), Task(1, 10))
