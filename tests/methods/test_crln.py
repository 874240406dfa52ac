"""CRLN's equations against plain NumPy transcriptions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssl_jax import config, methods
from ssl_jax.networks.dim import DIM, CPSHead, Rectifier
from ssl_jax.ops import contrast, cutmix
from ssl_jax.ops.segmentation import ce_dice, confident_cross_entropy
from ssl_jax.types import InputError, Task
from tests.methods.common import RNG, ce_dice_numpy, nll, normal, small_networks, softmax

C, R, F, F3 = 3, 4, 8, 4


def test_eq_1_supervised_loss_with_an_absent_class():
  logits, label = normal(2, 4, 4, 2, C), RNG.integers(0, 2, (2, 4, 4, 2))
  np.testing.assert_allclose(ce_dice(logits, label), ce_dice_numpy(logits, label), rtol=1e-5)


@pytest.mark.parametrize("soft", [False, True])
def test_eq_2_unlabelled_loss(soft):
  logits, target = normal(2, 4, 4, 2, C), softmax(3 * normal(2, 4, 4, 2, C))
  shown = RNG.random((2, 4, 4, 2)) > 0.2
  mask = shown & (target.max(-1) >= 0.8)
  each = -(target * np.log(softmax(logits))).sum(-1) if soft else nll(logits, target.argmax(-1))
  assert 0 < mask.sum() < mask.size
  found = jax.jit(lambda *a: confident_cross_entropy(*a, soft=soft), static_argnums=2)(logits, target, 0.8, shown)
  np.testing.assert_allclose(found, (each * mask).sum() / mask.size, rtol=1e-5)
  assert confident_cross_entropy(logits, target, 1.1, shown, soft=soft) == 0  # nobody is that sure


def dim_setup(**options):
  module = DIM(**options)
  prototypes, f2, f3 = normal(C, R, F), normal(2, 4, 4, 2, F), normal(2, 8, 8, 4, F3)
  params = jax.jit(module.init)(jax.random.key(1), prototypes, f2, f3)["params"]
  return module, params, prototypes, f2, f3


def conv3_numpy(x, kernel, bias):
  padded = np.pad(x, [(1, 1)] * 3 + [(0, 0)])
  shape = x.shape[:3]
  out = np.zeros((*shape, kernel.shape[-1])) + bias
  for i, j, k in np.ndindex(3, 3, 3):
    out += padded[i : i + shape[0], j : j + shape[1], k : k + shape[2]] @ kernel[i, j, k]
  return out


def upsample_numpy(x):
  for axis in range(3):
    n = x.shape[axis]
    at = np.arange(2 * n) * (n - 1) / (2 * n - 1)
    low = np.minimum(np.floor(at).astype(int), n - 2)
    w = (at - low).reshape([-1 if a == axis else 1 for a in range(x.ndim)])
    x = np.take(x, low, axis) * (1 - w) + np.take(x, low + 1, axis) * w
  return x


def one_by_one(params, f):
  return f.reshape(-1, f.shape[-1]) @ np.asarray(params["kernel"]).reshape(f.shape[-1], -1) + np.asarray(params["bias"])


def test_eqs_3_to_6_dim_group_by_group():
  module, params, prototypes, f2, f3 = dim_setup()
  found = module.apply({"params": params}, prototypes, f2, f3)
  kernel = lambda name: np.asarray(params[name]["kernel"])
  for b in range(2):
    r2, r3 = one_by_one(params["conv_f2"], f2[b]), one_by_one(params["conv_f3"], f3[b])
    maps = np.zeros((C, 8, 8, 4, R))
    for i in range(R):
      p = prototypes[:, i]
      m = (p @ kernel("query_f2")) @ (r2 @ kernel("key_f2")).T / np.sqrt(F)  # Eq. (3)
      p = softmax(m) @ (r2 @ kernel("value_f2"))  # Eq. (4)
      m = (p @ kernel("query_f3")) @ (r3 @ kernel("key_f3")).T / np.sqrt(F3)  # Eq. (5)
      maps[..., i] = m.reshape(C, 8, 8, 4)
    for c in range(C):  # Eq. (6)
      spatial = conv3_numpy(maps[c], np.asarray(params["spatial"]["kernel"]), np.asarray(params["spatial"]["bias"]))
      merged = one_by_one(params["integrate"], spatial).reshape(8, 8, 4, 1)
      np.testing.assert_allclose(found[b, ..., c], upsample_numpy(merged)[..., 0], atol=2e-5)


def test_table_6_switches_of_dim():
  module, params, *inputs = dim_setup(spatial="none", integrate="sum")
  assert "spatial" not in params and "integrate" not in params
  shared = dim_setup()[1]
  split = dim_setup(cross_class=False)[1]
  assert split["spatial_class2"]["kernel"].shape == shared["spatial"]["kernel"].shape
  for options in ({"spatial": "none", "integrate": "sum"}, {"cross_class": False}):
    module, params, *inputs = dim_setup(**options)
    assert module.apply({"params": params}, *inputs).shape == (2, 16, 16, 8, C)


def test_eq_8_rectification_on_logits_and_on_probabilities():
  logits, correction, mu = normal(2, 4, 4, 2, C), normal(2, 4, 4, 2, C), 0.3
  apply = lambda **o: np.asarray(jax.nn.softmax(Rectifier(**o).apply({"params": {"mu": jnp.float32(mu)}}, logits, correction)))
  np.testing.assert_allclose(apply(), softmax(logits + 0.7 * correction), atol=1e-6)
  mixed = softmax(logits) + 0.7 * softmax(correction)
  np.testing.assert_allclose(apply(space="probs"), mixed / mixed.sum(-1, keepdims=True), atol=1e-6)


def test_eq_8_mu_is_clipped():
  logits, correction = normal(1, 2, 2, 2, C), normal(1, 2, 2, 2, C)
  out = Rectifier().apply({"params": {"mu": jnp.float32(1.7)}}, logits, correction)
  np.testing.assert_array_equal(out, logits)


def test_eq_17_fixed_rectification_has_no_parameter():
  logits, correction = normal(2, 4, 4, 2, C), normal(2, 4, 4, 2, C)
  module = Rectifier(mechanism="fixed", mu_init=0.5)
  assert not module.init(jax.random.key(0), logits, correction)
  np.testing.assert_allclose(module.apply({}, logits, correction), logits + 0.5 * correction, atol=1e-6)


def cps_inputs(batch=2, shape=(6, 6, 4), width=5):
  context, prob = normal(batch, *shape, width), softmax(2 * normal(batch, *shape, C))
  label, reliable = RNG.integers(0, C, (batch, *shape)), RNG.random((batch, *shape)) > 0.3
  weight = normal(width, F)
  return context, prob, label, reliable, normal(C, R, F), lambda rows: rows @ weight


def test_eqs_9_to_12_anchors_and_negatives_are_drawn_from_their_sets():
  context, prob, label, reliable, _, _ = cps_inputs()
  own = np.take_along_axis(prob, label[..., None], -1)[..., 0]
  anchors = reliable & (label == 1) & (own < 0.6)
  index, valid = contrast.draw(jax.random.key(0), jnp.asarray(anchors.reshape(2, -1)), 4000)
  counts = np.bincount(np.asarray(index), minlength=anchors.size)
  assert valid and set(np.flatnonzero(counts)) <= set(np.flatnonzero(anchors))
  expected = 4000 / anchors.sum()
  chi2 = ((counts[anchors.ravel()] - expected) ** 2 / expected).sum()
  assert chi2 < anchors.sum() + 5 * np.sqrt(2 * anchors.sum())  # uniform: mean k - 1, variance 2 (k - 1)


@pytest.mark.parametrize("voxels", [1, 255, 256, 257, 1000])
def test_draw_reaches_first_and_last_voxel_of_any_size(voxels):
  mask = np.zeros((3, voxels), bool)
  mask[0, 0] = mask[2, -1] = True
  index, valid = contrast.draw(jax.random.key(3), jnp.asarray(mask), 64)
  assert valid and set(np.asarray(index)) == set(np.flatnonzero(mask))
  assert not contrast.draw(jax.random.key(3), jnp.zeros((3, voxels), bool), 4)[1]


def test_eq_13_unassertive_positive():
  np.testing.assert_allclose(contrast.unassertive(np.float32([1, 2]), np.float32([3, 0]), 0.6), np.array([1 + 1.8, 2]) / 1.6, rtol=1e-6)


def test_eq_14_info_nce():
  anchors, positive, negatives = normal(5, F), normal(F), normal(7, F)
  cos = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)
  expected = np.mean(
    [
      -np.log(np.exp(cos(a, positive) / 0.5) / (np.exp(cos(a, positive) / 0.5) + sum(np.exp(cos(a, n) / 0.5) for n in negatives)))
      for a in anchors
    ]
  )
  np.testing.assert_allclose(contrast.info_nce(anchors, positive, negatives, 0.5), expected, rtol=1e-5)


@pytest.mark.parametrize("positive", ["unassertive", "mean", "prototype"])
def test_eqs_9_to_14_together(positive):
  """One voxel per set makes the draws certain, so the whole term has one value."""
  context, prob, _, _, prototypes, project = cps_inputs(batch=1, shape=(2, 2, 1))
  label, reliable = np.array([0, 1, 0, 2]).reshape(1, 2, 2, 1), np.array([1, 1, 0, 0], bool).reshape(1, 2, 2, 1)
  prob = np.full((1, 2, 2, 1, C), 1 / 3, np.float32)
  settings = {"tau": 0.9, "num_anchors": 3, "num_negatives": 2, "temperature": 0.5, "positive": positive}
  found, share = jax.jit(lambda *a: contrast.positive_supervision(jax.random.key(0), *a, prototypes, project, **settings))(
    context, prob, label, reliable
  )
  r = project(context.reshape(-1, 5))
  losses = []
  for c, (own, other) in enumerate([(0, 1), (1, 0)]):  # class 2 is not reliable anywhere: it does not count
    learned = prototypes[c].mean(0)
    target = {"mean": r[own], "prototype": learned, "unassertive": (r[own] + 0.6 * learned) / 1.6}[positive]
    losses.append(float(contrast.info_nce(r[own][None], target, np.stack([r[other]] * 2), 0.5)))
  np.testing.assert_allclose(found, np.mean(losses), rtol=1e-5)
  np.testing.assert_allclose(share, [0.25, 0.25, 0])


def test_cps_without_any_reliable_voxel_is_zero_with_zero_gradient():
  context, prob, label, reliable, prototypes, project = cps_inputs()
  settings = {"tau": 0.9, "num_anchors": 3, "num_negatives": 2, "temperature": 0.5}
  loss = lambda x, p: contrast.positive_supervision(jax.random.key(0), x, prob, label, np.zeros_like(reliable), p, project, **settings)[0]
  value, grads = jax.jit(jax.value_and_grad(loss, (0, 1)))(context, prototypes)
  assert value == 0 and all(np.isfinite(g).all() and not g.any() for g in grads)


def test_cps_gradient_flows_through_anchors_alone():
  context, prob, label, reliable, prototypes, project = cps_inputs()
  prob = np.where(label[..., None] == 1, 0.99, prob).astype(np.float32)  # class 1 has no anchor
  settings = {"tau": 0.9, "num_anchors": 50, "num_negatives": 50, "temperature": 0.5}
  loss = lambda x, p: contrast.positive_supervision(jax.random.key(0), x, prob, label, reliable, p, project, **settings)[0]
  to_context, to_prototypes = jax.jit(jax.grad(loss, (0, 1)))(context, prototypes)
  assert not to_prototypes.any()
  own = np.take_along_axis(prob, label[..., None], -1)[..., 0]
  touched = np.abs(to_context).sum(-1) > 0
  assert touched.any() and not touched[~(reliable & (own < 0.9))].any()


def test_cps_head_projects_gathered_rows_as_it_would_all():
  head, f4 = CPSHead(4, F), normal(1, 4, 4, 2, 4)
  variables = jax.jit(head.init)(jax.random.key(0), f4)
  everywhere = head.apply(variables, f4).reshape(-1, F)
  context = head.apply(variables, f4, method="context").reshape(-1, 4)
  np.testing.assert_allclose(head.apply(variables, context[3:5], method="project"), everywhere[3:5], atol=1e-5)


def test_cutmix_box_and_mixture():
  masks = jax.vmap(lambda k: cutmix.box_in_plane(k, 2, (32, 24, 4), 4.0))(jax.random.split(jax.random.key(0), 200))
  assert (np.asarray(masks).std(axis=-1) == 0).all()  # over all of Z
  rows, columns = np.asarray(masks).any(3).any(3)[..., 0], np.asarray(masks).any(2).any(3)
  assert abs(np.asarray(masks).mean() - 0.5) < 0.02  # E[1 − λ] = ½
  np.testing.assert_allclose(
    np.asarray(masks[..., 0]).sum((2, 3)), np.asarray(masks[..., 0]).any(3).sum(2) * np.asarray(masks[..., 0]).any(2).sum(2)
  )
  image = normal(2, 32, 24, 4, 1)
  mixed = cutmix.mix(masks[0], image, jnp.array([1, 0]))
  np.testing.assert_array_equal(mixed, np.where(masks[0][..., None], image[::-1], image))
  del rows, columns


def tiny(**changes):
  options = dataclasses.replace(methods.load("crln").Options(groups=2, anchors=8, negatives=8), **changes)
  method = methods.load("crln").build(options, small_networks(), optax.sgd(0.1), Task(2, 10))
  image = lambda seed: jax.random.normal(jax.random.key(seed), (2, 16, 16, 16, 1))
  label = (image(1)[..., 0] > 0).astype(jnp.int32)
  batch = {
    "labelled": {"image": image(1), "label": label, "index": jnp.arange(2)},
    "unlabelled": {"image": image(2), "index": jnp.arange(2)},
  }
  return method, jax.jit(method.init)(jax.random.key(0), batch), batch


def test_eq_16_mu_takes_its_own_step():
  method, state, batch = tiny(rectify_from_step=0)
  new, metrics = jax.jit(method.steps["train"])(state, batch, jax.random.key(5))
  moved = lambda mu: float(new.students["rectifier"]["mu"]) - mu
  # a finite difference of eq. 16 with the same prediction and correction: rebuilt from the step's own loss by moving µ
  loss_at = lambda mu: float(
    jax.jit(method.steps["train"])(
      dataclasses.replace(state, students={**state.students, "rectifier": {"mu": jnp.float32(mu)}}), batch, jax.random.key(5)
    )[1]["loss_rectifier"]
  )
  slope = (loss_at(0.6) - loss_at(0.4)) / 0.2
  assert abs(moved(0.5)) > 1e-5
  np.testing.assert_allclose(moved(0.5), -0.1 * slope, rtol=0.02)
  # and µ changes no other parameter within the step unless it changes pseudo-labels: with τ > 1 nothing is confident
  method, state, batch = tiny(rectify_from_step=0, tau=1.1, tau_weak=1.1)
  step = jax.jit(method.steps["train"])
  other = dataclasses.replace(state, students={**state.students, "rectifier": {"mu": jnp.float32(0.9)}})
  a, b = step(state, batch, jax.random.key(5))[0], step(other, batch, jax.random.key(5))[0]
  assert all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a.students["a"], b.students["a"])))


def test_rectification_starts_at_its_step_in_one_program():
  method, state, batch = tiny(rectify_from_step=1)
  step = jax.jit(method.steps["train"])
  first, metrics = step(state, batch, jax.random.key(0))
  assert metrics["confident_before"] == metrics["confident_after"] and first.students["rectifier"]["mu"] == 0.5
  second, _ = step(first, batch, jax.random.key(0))
  assert second.students["rectifier"]["mu"] != 0.5
  assert step._cache_size() == 1


def test_teacher_follows_students_dim_and_prototypes_but_keeps_its_own_statistics():
  method, state, batch = tiny()
  step = jax.jit(method.steps["train"])
  first, _ = step(state, batch, jax.random.key(0))
  close = lambda a, b: jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), a, b)
  student = first.students["a"]
  close(first.teacher["network"], student["network"])  # α = 0 at step 0
  close(first.teacher["dim"], student["dim"])
  close(first.teacher["prototypes"], first.prototypes)
  second, _ = step(first, batch, jax.random.key(0))
  half = jax.tree.map(lambda a, b: 0.5 * a + 0.5 * b, first.teacher["network"], second.students["a"]["network"])  # α = ½ at step 1
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), second.teacher["network"], half)
  assert not np.allclose(jax.tree.leaves(second.teacher["stats"])[0], jax.tree.leaves(second.stats)[0])


def test_every_term_reaches_its_parameters():
  reached = {}
  for term in ("supervised", "dim", "unlabelled", "cps"):
    weights = {name: float(name == term) for name in ("supervised", "dim", "unlabelled", "cps")}
    method, state, batch = tiny(weights=weights, tau=0.0 if term == "unlabelled" else 0.97, tau_weak=0.0)
    new, metrics = jax.jit(method.steps["train"])(state, batch, jax.random.key(0))
    assert all(np.isfinite(v) for v in metrics.values())
    changed = lambda a, b: any(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x != y).any()), a, b)))
    parts = {k: changed(new.students["a"][k], state.students["a"][k]) for k in ("network", "dim", "cps")}
    reached[term] = {k for k, v in {**parts, "prototypes": changed(new.prototypes, state.prototypes)}.items() if v}
  assert reached == {
    "supervised": {"network"},
    "dim": {"network", "dim", "prototypes"},
    "unlabelled": {"network"},
    "cps": {"network", "cps"},
  }


@pytest.mark.parametrize(
  "changes",
  [
    {"mechanism": "conv", "strong_view": "centre_crop"},
    {"mechanism": "none", "student_views": "apart", "teacher_dropout": True},
    {"mechanism": "fixed", "xi_sampling": "uniform"},
    {"rectify": "probs", "soft_target": True, "unlabelled_ramp_steps": 10},
  ],
)
def test_switches_run(changes):
  method, state, batch = tiny(rectify_from_step=0, **changes)
  new, metrics = jax.jit(method.steps["train"])(state, batch, jax.random.key(0))
  assert all(np.isfinite(v) for v in metrics.values())
  assert jax.tree.map(lambda a: (a.shape, a.dtype), new) == jax.tree.map(lambda a: (a.shape, a.dtype), state)


@pytest.mark.parametrize("key", ["mechanism", "strong_view", "positive", "spatial", "integrate", "rectify", "xi_sampling", "student_views"])
def test_unknown_switch_values_raise(key):
  with pytest.raises(InputError, match=f"config.method.{key}: no 'nonsense'"):
    config.parse(methods.load("crln").Options, {key: "nonsense"}, "config.method")


def test_unknown_loss_term_raises():
  method, state, batch = tiny(weights={"consistency": 1.0})
  with pytest.raises(ValueError, match="config.method.weights.consistency: no such loss term; known: cps, dim, supervised, unlabelled"):
    jax.eval_shape(method.steps["train"], state, batch, jax.random.key(0))
