"""Entropy minimisation, UA-MT, ICT, CPS, FixMatch and BCP against NumPy, and a hundred steps of each on phantoms."""

import dataclasses
import functools
import importlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import ndimage

from ssl_jax import config, data
from ssl_jax.core import rng
from ssl_jax.core.step import forward
from ssl_jax.experiment import open_experiment
from ssl_jax.ops import cutmix, views
from ssl_jax.ops.components import largest_per_class
from ssl_jax.ops.consistency import cross_pseudo_supervision, mean_squared
from ssl_jax.ops.segmentation import normalised_entropy
from ssl_jax.types import Task
from tests.helpers import tiny_config
from tests.methods.common import RNG, Pyramid, ce_dice_numpy, nll, normal, small_networks, softmax

SIDE, CLASSES, STEPS, KEY = (8, 8, 4), 3, 10, jax.random.key(5)
NETWORK = Pyramid(CLASSES)
# The unlabelled term of each, and a threshold that a network of two layers can reach.
METHODS = {"entropy_min": "entropy", "ua_mt": "consistency", "ict": "consistency", "cps": "cps", "fixmatch": "pseudo", "bcp": "pseudo"}
REACHABLE = {"fixmatch": {"threshold": 0.7}}


def build(name, networks, optimizer, **options):
  module = importlib.import_module(f"ssl_jax.methods.{name}")
  weights = {**module.Options().weights, **options.pop("weights", {})}
  return module.build(config.parse(module.Options, {"weights": weights, **options}), networks, optimizer, Task(2, STEPS))


def batch_of(size):
  index = np.arange(size, dtype=np.int32)
  labelled = {"image": normal(size, *SIDE, 1), "label": RNG.integers(0, CLASSES, (size, *SIDE)).astype(np.int32), "index": index}
  return {"labelled": labelled, "unlabelled": {"image": normal(size, *SIDE, 1), "index": index}}


@functools.cache
def first_state(name):
  return jax.jit(build(name, small_networks(CLASSES), optax.sgd(0.1)).init)(jax.random.key(0), batch_of(2))


def one_step(name, size=2, step=0, phase=None, **options):
  """Returns batch, state before, state after, metrics; the teacher differs from the student."""
  method = build(name, small_networks(CLASSES), optax.sgd(0.1), **options)
  batch = batch_of(size)
  state = first_state(name)
  teacher = {**state.teacher, "students": jax.tree.map(lambda x: 1.5 * x, state.teacher["students"])} if state.teacher else {}
  state = dataclasses.replace(state, teacher=teacher, step=jnp.int32(step))
  new, metrics = jax.jit(method.steps[phase or next(iter(method.steps))])(state, batch, KEY)
  return batch, state, new, {name: np.asarray(value) for name, value in metrics.items()}


def key_of(use, step=0):
  return rng.key_for(KEY, jnp.int32(step), use)


@functools.partial(jax.jit, static_argnames="views")
def passed(params, stats, image, key, views):
  return forward(NETWORK, params, stats, image, key=key, views=views)


def run(params, stats, image, key, views=1):
  out, stats = passed(params, stats, image, key, views)
  return np.asarray(out.logits), stats


def student_logits(state, image, use="dropout_a", name="a", step=0):
  return run(state.students[name], state.stats[name], image, key_of(use, step))[0]


def both(batch):
  return np.concatenate([batch["labelled"]["image"], batch["unlabelled"]["image"]])


def close(found, expected):
  np.testing.assert_allclose(found, expected, rtol=2e-4)


# Functions on arrays


def test_entropy_is_0_where_sure_and_1_where_undecided():
  prob = softmax(normal(2, *SIDE, CLASSES))
  close(normalised_entropy(prob), -(prob * np.log(prob + 1e-6)).sum(-1) / np.log(CLASSES))
  np.testing.assert_allclose(normalised_entropy(jnp.full((1, 4), 0.25)), 1, atol=1e-5)
  sure = jnp.array([[0.0, 1.0, 0.0]])
  np.testing.assert_allclose(normalised_entropy(sure), 0, atol=1e-5)
  assert np.isfinite(jax.grad(lambda p: normalised_entropy(p).sum())(sure)).all()


def test_mean_squared_is_the_published_masked_mean():
  prob, target = (softmax(normal(2, *SIDE, 2)) for _ in range(2))
  mask = RNG.random((2, *SIDE)) < 0.3
  squared = (prob - target) ** 2
  close(mean_squared(prob, target), squared.mean())
  close(mean_squared(prob, target, mask), (mask[..., None] * squared).sum() / (2 * mask.sum() + 1e-16))
  assert mean_squared(prob, target, np.zeros_like(mask)) == 0
  to_prob, to_target = jax.grad(mean_squared, argnums=(0, 1))(prob, target, mask)
  close(to_prob, mask[..., None] * (prob - target) / mask.sum())
  assert not to_target.any()


def test_mixup_weighs_each_sample():
  first, second = normal(3, 4, 4, 1), normal(3, 4, 4, 1)
  factor = np.array([0.0, 0.25, 1.0], np.float32)
  mixed = np.asarray(views.mixup(factor, first, second))
  np.testing.assert_allclose(mixed[1], 0.75 * first[1] + 0.25 * second[1], rtol=1e-6)
  np.testing.assert_array_equal(mixed[::2], [first[0], second[2]])


def largest_numpy(logits):
  label = logits.argmax(-1)
  kept = np.zeros_like(label)
  for (b, one), c in itertools.product(enumerate(label), range(1, logits.shape[-1])):
    parts, _ = ndimage.label(one == c, np.ones((3,) * one.ndim))
    if parts.any():
      kept[b][parts == 1 + np.bincount(parts.flat)[1:].argmax()] = c
  return kept


@pytest.mark.parametrize("shape", [(2, 12, 12), (2, 6, 6, 6)])
def test_largest_component_of_every_class(shape):
  logits = ndimage.gaussian_filter(normal(*shape, CLASSES), (0, *(0.7,) * (len(shape) - 1), 0))
  found = np.asarray(largest_per_class(logits))
  np.testing.assert_array_equal(found, largest_numpy(logits))
  assert set(np.unique(found)) == set(range(CLASSES)) and (found != logits.argmax(-1)).any()


def test_cross_pseudo_supervision_pulls_each_network_to_the_others_class():
  logits = [normal(2, *SIDE, CLASSES) for _ in "ab"]
  gradients = jax.grad(cross_pseudo_supervision, argnums=(0, 1))(*logits)
  for own, other, gradient in zip(logits, reversed(logits), gradients, strict=True):
    target = np.eye(CLASSES)[other.argmax(-1)]  # hard, so nothing flows back through it
    np.testing.assert_allclose(gradient, (softmax(own) - target) / target[..., 0].size, atol=1e-6)


# Entropy minimisation


@pytest.mark.parametrize(("samples", "first"), [("all", 0), ("unlabelled", 2)])
def test_entropy_min(samples, first):
  batch, state, new, metrics = one_step("entropy_min", step=300, samples=samples, weights={"supervised": 0.0, "entropy": 50.0})
  entropy = lambda state: -(p := softmax(student_logits(state, both(batch), step=300)[first:])) * np.log(p + 1e-6)
  mean = lambda state: entropy(state).sum(-1).mean() / np.log(CLASSES)
  close(metrics["loss_entropy"], mean(state))
  close(metrics["loss"], 50 * np.exp(-5 * (1 - 2 / 40) ** 2) * metrics["loss_entropy"])  # step 300 is the second unit of 150
  moved = dataclasses.replace(new, stats=state.stats)
  assert mean(moved) < mean(state)


# UA-MT


def test_ua_mt_follows_the_teacher_where_it_is_sure():
  step, options = 5, {"passes": 4, "threshold": 0.8}
  batch, state, new, metrics = one_step("ua_mt", step=step, ramp=0.0, **options)
  params, image = state.teacher["students"]["a"], batch["unlabelled"]["image"]
  noisy = jax.jit(lambda key, image: views.gaussian_noise(key, image, 0.1, 0.2))
  target, stats = run(params, state.teacher["stats"]["a"], noisy(key_of("noise", step), image), key_of("dropout_t", step))
  passes = []
  for key in jax.random.split(key_of("passes", step), 2):
    key_noise, key_dropout = jax.random.split(key)
    logits, stats = run(params, stats, noisy(key_noise, np.concatenate([image, image])), key_dropout)
    passes += [softmax(logits[:2]), softmax(logits[2:])]
  mean = np.mean(passes, axis=0)
  entropy = -(mean * np.log(mean + 1e-6)).sum(-1)
  sure = entropy < (0.8 + 0.2 * np.exp(-5 * (1 - step / STEPS) ** 2)) * np.log(CLASSES)
  assert 0.02 < sure.mean() < 0.98
  close(metrics["sure_share"], sure.mean())
  squared = (softmax(student_logits(state, both(batch), step=step)[2:]) - softmax(target)) ** 2
  close(metrics["loss_consistency"], (sure[..., None] * squared).sum() / (CLASSES * sure.sum()))
  close(metrics["loss"], metrics["loss_supervised"] + 0.1 * metrics["loss_consistency"])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new.teacher["stats"]["a"], stats)  # of all passes in turn


# ICT


def test_ict_predicts_the_mixture_of_predictions():
  batch, state, _, metrics = one_step("ict", size=4)
  first, second = np.split(batch["unlabelled"]["image"], 2)
  factor = np.asarray(jax.random.beta(key_of("mix"), 0.2, 0.2, (2,))).reshape(2, 1, 1, 1, 1)
  mix = lambda a, b: (1 - factor) * a + factor * b
  image = np.concatenate([batch["labelled"]["image"], mix(first, second)])
  teacher = run(state.teacher["students"]["a"], state.teacher["stats"]["a"], batch["unlabelled"]["image"], key_of("dropout_t"))[0]
  logits = student_logits(state, image)
  close(metrics["loss_consistency"], ((softmax(logits[4:]) - mix(*np.split(softmax(teacher), 2))) ** 2).mean())
  close(metrics["loss_supervised"], ce_dice_numpy(logits[:4], batch["labelled"]["label"]))


# CPS


@pytest.mark.parametrize(("samples", "first"), [("unlabelled", 2), ("all", 0)])
def test_cps(samples, first):
  batch, state, _, metrics = one_step("cps", samples=samples, ramp=0.0)
  a, b = (student_logits(state, both(batch), f"dropout_{name}", name) for name in "ab")
  close(metrics["loss_cps"], (nll(a, b.argmax(-1)) + nll(b, a.argmax(-1)))[first:].mean())
  label = batch["labelled"]["label"]
  close(metrics["loss_supervised"], ce_dice_numpy(a[:2], label) + ce_dice_numpy(b[:2], label))
  close(metrics["loss"], metrics["loss_supervised"] + 0.1 * metrics["loss_cps"])
  assert (a != b).any()


# FixMatch


def fixmatch_parts(batch, state, kind, jitter):
  """The labelled and strong images, and the weak view's probabilities moved along."""
  weak, stats = run(state.students["a"], state.stats["a"], batch["unlabelled"]["image"], None)
  view = {"kind": kind, "alpha": 4.0, "crop": 0.75, "noise": 0.2}
  image, target, shown = jax.jit(functools.partial(cutmix.strong_view, **view))(
    key_of("strong"), batch["unlabelled"]["image"], softmax(weak)
  )
  image = np.concatenate([batch["labelled"]["image"], jax.jit(views.colour_jitter, static_argnums=2)(key_of("colour"), image, jitter)])
  return image, stats, np.asarray(target), np.asarray(shown)


@pytest.mark.parametrize(("kind", "jitter"), [("cutmix", 0.5), ("centre_crop", 0.0)])
def test_fixmatch_learns_confident_classes_on_the_strong_view(kind, jitter):
  options = {"strong_view": kind, "colour_jitter": jitter, "threshold": 0.6}
  batch, state, new, metrics = one_step("fixmatch", **options, weights={"supervised": 0.0})
  image, stats, target, shown = fixmatch_parts(batch, state, kind, jitter)
  logits, _ = run(state.students["a"], stats, image, key_of("dropout_a"))
  confident = target.max(-1) >= 0.6
  assert 0.05 < confident.mean() < 0.95 and shown.all() == (kind == "cutmix")
  close(metrics["pseudo_share"], confident.mean())
  close(metrics["loss_pseudo"], (confident * shown * nll(logits[2:], target.argmax(-1))).mean())

  def constant_target(params):
    out, _ = forward(NETWORK, params, stats, image, key=key_of("dropout_a"))
    picked = jnp.sum(jax.nn.log_softmax(out.logits[2:]) * np.eye(CLASSES)[target.argmax(-1)], -1)
    return -jnp.mean(picked * confident * shown)

  expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.students["a"], jax.jit(jax.grad(constant_target))(state.students["a"]))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), new.students["a"], expected)


# BCP


def region_numpy(logits, label, region):
  prob, target = softmax(logits) * region[..., None], np.eye(CLASSES)[label] * region[..., None]
  dice = 1 - (2 * (prob * target).sum((1, 2, 3)) + 1e-5) / (prob.sum((1, 2, 3)) + target.sum((1, 2, 3)) + 1e-5)
  return 0.5 * (nll(logits, label)[:, region].mean() + dice.mean())


def test_bcp_pastes_both_ways_and_weighs_by_origin():
  batch, state, new, metrics = one_step("bcp", size=4, step=200, phase="selftrain")
  box = np.asarray(cutmix.box_anywhere(key_of("box", 200), SIDE, 2 / 3))
  assert box.sum() == 5 * 5 * 2
  (x1, x2), (u1, u2) = (np.split(batch[half]["image"], 2) for half in ("labelled", "unlabelled"))
  y1, y2 = np.split(batch["labelled"]["label"], 2)
  teacher = state.teacher["students"]["a"], state.teacher["stats"]["a"]
  z1, z2 = np.split(largest_numpy(run(*teacher, batch["unlabelled"]["image"], key_of("dropout_t", 200), views=2)[0]), 2)
  outside = np.where(box[..., None], u1, x1)
  inside = np.where(box[..., None], x2, u2)
  out, stats = run(state.students["a"], state.stats["a"], outside, key_of("dropout_out", 200))
  in_, stats = run(state.students["a"], stats, inside, key_of("dropout_in", 200))
  close(metrics["loss_supervised"], region_numpy(out, y1, ~box) + region_numpy(in_, y2, box))
  close(metrics["loss_pseudo"], region_numpy(out, z1, box) + region_numpy(in_, z2, ~box))
  close(metrics["loss"], metrics["loss_supervised"] + 0.5 * metrics["loss_pseudo"])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new.stats["a"], stats)
  average = jax.tree.map(lambda t, s: 0.99 * t + 0.01 * s, state.teacher["students"], new.students)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new.teacher["students"], average)


def test_bcp_pretrains_on_labelled_scans_and_hands_its_student_over_as_teacher():
  batch, state, new, metrics = one_step("bcp", size=4, phase="pretrain")
  box = np.asarray(cutmix.box_anywhere(key_of("box"), SIDE, 2 / 3))
  (x1, x2), (y1, y2) = (np.split(batch["labelled"][part], 2) for part in ("image", "label"))
  logits = student_logits(state, np.where(box[..., None], x2, x1))
  close(metrics["loss"], ce_dice_numpy(logits, np.where(box, y2, y1)))
  assert "loss_pseudo" not in metrics
  jax.tree.map(np.testing.assert_array_equal, new.teacher, {"students": new.students, "stats": new.stats})


# All


@pytest.mark.parametrize(
  ("name", "size", "options", "message"),
  [
    ("ua_mt", 2, {"passes": 3}, r"config\.method\.passes: must be an even number"),
    ("ua_mt", 2, {"threshold": 0.0}, r"config\.method\.threshold: a share of ln C"),
    ("ict", 3, {}, r"config\.train\.batch_unlabelled: .* must be even; got 3"),
    ("ict", 2, {"alpha": 0.0}, r"config\.method\.alpha: must be positive"),
    ("fixmatch", 2, {"threshold": 1.5}, r"config\.method\.threshold: must lie in 0 to 1"),
    ("fixmatch", 2, {"colour_jitter": -1.0}, r"config\.method\.colour_jitter: must not be negative"),
    ("bcp", 2, {"box_size": 1.0}, r"config\.method\.box_size: must lie between 0 and 1"),
    ("bcp", 3, {}, r"config\.train\.batch_labelled: .* got 3 and 3"),
  ],
)
def test_bad_settings_are_refused(name, size, options, message):
  with pytest.raises(ValueError, match=message):
    build(name, small_networks(CLASSES), optax.sgd(0.1), **options).init(jax.random.key(0), batch_of(size))


@pytest.fixture(scope="module")
def phantoms():
  cfg = tiny_config("supervised")
  experiment = open_experiment(cfg)
  sizes = {"batch_labelled": 2, "batch_unlabelled": 2, "batch_synthetic": 0}
  where = {"seed": 0, "start_step": 0, "num_steps": 10, "num_threads": 0, "synthetic": None}
  return jax.tree.map(jnp.asarray, list(data.batches(cfg.data, experiment.source, experiment.split, **sizes, **where)))


@pytest.mark.parametrize("name", METHODS)
def test_a_hundred_steps_on_phantoms(name, phantoms):
  method = build(name, small_networks(), optax.sgd(0.05, 0.9), **REACHABLE.get(name, {}))
  state = jax.jit(method.init)(jax.random.key(0), phantoms[0])
  seen = {}
  for phase, step in method.steps.items():
    step = jax.jit(step, donate_argnums=0)
    for batch in itertools.islice(itertools.cycle(phantoms), 100):
      state, metrics = step(state, batch, KEY)
      seen.setdefault(phase, []).append(metrics)
  series = lambda phase, name: np.array([metrics[name] for metrics in seen[phase]])
  first, last = list(seen)[0], list(seen)[-1]
  supervised, unlabelled = series(first, "loss_supervised"), series(last, f"loss_{METHODS[name]}")
  assert np.isfinite(series(last, "loss")).all()
  assert supervised[-20:].mean() < 0.9 * supervised[:10].mean()
  assert unlabelled.min() >= 0 and unlabelled.max() > 1e-4 and unlabelled.std() > 0.02 * unlabelled.mean()
