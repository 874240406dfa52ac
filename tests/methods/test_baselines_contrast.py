"""SS-Net, TraCoCo and ELSNet against plain NumPy transcriptions, and a hundred steps of each on stand-ins."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import common
from ssl_jax import config, methods
from ssl_jax.core import rng
from ssl_jax.core.schedules import ramp
from ssl_jax.core.step import forward
from ssl_jax.data.phantom import make_phantom
from ssl_jax.methods import els_net, traco_co
from ssl_jax.ops import select, translate, views
from ssl_jax.ops.adversarial import adversarial_noise, unit_by_sample
from ssl_jax.ops.consistency import dice_distance, overlap_divergence
from ssl_jax.ops.contrast import prototype_contrast, prototype_distance
from ssl_jax.ops.cutmix import strong_view
from ssl_jax.ops.segmentation import confident_regional_cross_entropy
from ssl_jax.types import Task
from tests.methods.common import RNG, Pixelwise, ce_dice_numpy, normal, slice_networks, softmax

KEY, SIDE, CLASSES = jax.random.key(5), (16, 16), 3
SMALL_OPTIONS = {"els_net": {"pixels": 64, "features": 8}, "ss_net": {"rows": 2 * 16 * 16, "slots": 5, "features": 8}, "traco_co": {}}
TURN, DRAW = jax.jit(views.random_turn), jax.jit(select.draw, static_argnums=2)
KEY_OF = lambda use, step=0: rng.key_for(KEY, jnp.int32(step), use)


def half(n, seed):
  generator = np.random.default_rng(seed)
  label = generator.integers(0, CLASSES, (n, *SIDE)).astype(np.int32)
  image = (label[..., None] + generator.normal(scale=0.7, size=(n, *SIDE, 1))).astype(np.float32)
  return {"image": image, "label": label, "index": np.arange(n, dtype=np.int32)}


BATCH = {"labelled": half(2, 0), "synthetic": half(3, 1), "unlabelled": half(2, 2)}  # the label of the last is not looked at


@functools.cache
def _made(name, optimizer, changes):
  module, changes = methods.load(name), json.loads(changes)
  weights = {**module.Options().weights, **changes.pop("weights", {})}
  options = config.parse(module.Options, {**SMALL_OPTIONS[name], "weights": weights, **changes})
  method = module.build(options, slice_networks(CLASSES), optimizer(), Task(2, 10))
  steps = {phase: jax.jit(step, donate_argnums=0) for phase, step in method.steps.items()}  # donated as in a run
  return dataclasses.replace(method, init=jax.jit(method.init), steps=steps)


def descent():
  return optax.sgd(0.1)


def adam():
  return optax.adam(0.02)


def make(name, optimizer=adam, **changes):
  """A method compiled once for all tests that want it with these options."""
  return _made(name, optimizer, json.dumps(changes))


def only(name, **kept):
  return {**dict.fromkeys(methods.load(name).Options().weights, 0.0), **kept}


def started(method):
  """A state whose networks predict every class somewhere: by intensity, with some of their random parameters."""
  state = jax.jit(method.init)(jax.random.key(1), BATCH)
  students = dict(state.students)
  for name in {"a", "b"} & set(students):
    drawn = students[name]
    first = {"kernel": jnp.array([[1.0, -1.0, 1.0, -1.0]]) + 0.1 * drawn["Conv_0"]["kernel"], "bias": drawn["Conv_0"]["bias"]}
    output = jnp.array([[0.0, 0.0, 2.0], [2.0, 0.0, 0.0]] * 2) + 0.5 * drawn["output"]["kernel"]
    students[name] = {**drawn, "Conv_0": first, "output": {"kernel": output, "bias": jnp.array([0.0, 1.5, 0.0])}}
  return dataclasses.replace(state, students=students)


def run(method, state, phase="train", batch=None):
  return method.steps[phase](jax.tree.map(jnp.copy, state), batch or BATCH, KEY)


def close(found, expected, **tolerance):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **{"rtol": 1e-4, "atol": 1e-6, **tolerance}), found, expected)


def same(a, b):
  return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


# Virtual adversarial noise


def test_power_iteration_finds_the_direction_of_largest_change():
  """D(x') = Σ_b (x' − x)ᵀ A (x' − x): a step of the method is a multiplication by A."""
  image = normal(2, 3, 2, 1)
  square = normal(6, 6)
  matrix = square @ square.T
  distance = lambda moved: jnp.einsum("bi,ij,bj", (moved - image).reshape(2, 6), matrix, (moved - image).reshape(2, 6))
  noise = jax.jit(lambda n: adversarial_noise(KEY, image, distance, xi=10.0, epsilon=3.0, iterations=n), static_argnums=0)
  draw = lambda n: np.asarray(noise(n)).reshape(2, 6)
  start = np.asarray(jax.random.uniform(KEY, image.shape, minval=-0.5, maxval=0.5)).reshape(2, 6)
  np.testing.assert_allclose(draw(1), 3 * unit(start @ matrix), rtol=1e-4, atol=1e-5)
  largest = np.linalg.eigh(matrix)[1][:, -1]
  np.testing.assert_allclose(np.abs(draw(30) @ largest), 3, rtol=1e-3)
  np.testing.assert_allclose(np.linalg.norm(draw(1), axis=1), 3, rtol=1e-5)
  uphill = adversarial_noise(KEY, image, lambda moved: jnp.sum(moved @ jnp.ones(1)), xi=10.0, epsilon=3.0)
  np.testing.assert_allclose(uphill, np.full(image.shape, 3 / np.sqrt(6)), rtol=1e-5)


def test_adversarial_noise_carries_no_gradient_and_survives_tiny_and_zero_gradients():
  image = normal(2, 4, 4, 1)
  length = lambda scale: jnp.linalg.norm(
    adversarial_noise(KEY, image, lambda x: scale * jnp.sum(jnp.sin(x)), xi=1.0, epsilon=2.0).reshape(2, -1), axis=1
  )
  np.testing.assert_allclose(length(1e-20), 2, rtol=1e-5)
  assert not np.any(length(0.0))
  assert jax.grad(lambda scale: jnp.sum(length(scale)))(1.0) == 0
  assert np.isfinite(unit_by_sample(jnp.zeros((2, 3)))).all()


def test_dice_distances():
  p, q = softmax(normal(2, 4, 3, CLASSES)), softmax(normal(2, 4, 3, CLASSES))
  np.testing.assert_allclose(dice_distance(p, q), 1 - 2 * (p * q).sum() / (p.sum() + q.sum()), rtol=1e-5)
  by_class = [1 - 2 * (p[..., c] * q[..., c]).sum() / ((p[..., c] ** 2).sum() + (q[..., c] ** 2).sum()) for c in range(CLASSES)]
  np.testing.assert_allclose(dice_distance(p, q, squared=True), np.mean(by_class), rtol=1e-5)
  np.testing.assert_allclose(dice_distance(p, p, squared=True), 0, atol=1e-6)
  certain = np.eye(CLASSES)[RNG.integers(0, CLASSES, (2, 5))]
  np.testing.assert_allclose(dice_distance(certain, certain), 0, atol=1e-6)
  assert dice_distance(p, p) > 0  # plain: what is unsure pays


# SS-Net


def linear(params, x):
  return x @ np.asarray(params["kernel"]) + np.asarray(params["bias"])


def head_numpy(params, rows, leak=0.0, stats=None):
  """Linear – BatchNorm by the rows or by running averages – rectifier – linear."""
  hidden = linear(params["hidden"], rows)
  mean, var = (hidden.mean(0), hidden.var(0)) if stats is None else (np.asarray(stats["norm"]["mean"]), np.asarray(stats["norm"]["var"]))
  hidden = (hidden - mean) / np.sqrt(var + 1e-5) * np.asarray(params["norm"]["scale"]) + np.asarray(params["norm"]["bias"])
  return linear(params["output"], np.where(hidden > 0, hidden, leak * hidden))


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


@jax.jit
def _forward(params, stats, image):
  return forward(Pixelwise(CLASSES), params, stats, image, key=None)


def passed(state, image, students=None):
  return _forward((students or state.students)["a"], state.stats["a"], image)[0]


def both(batch=BATCH):
  return np.concatenate([batch["labelled"]["image"], batch["unlabelled"]["image"]])


@pytest.mark.parametrize("dice", ["plain", "squared"])
def test_ss_net_supervised_loss(dice):
  method = make("ss_net") if dice == "plain" else make("ss_net", dice=dice, weights=only("ss_net", supervised=1.0))
  state = started(method)
  prob, truth = softmax(np.asarray(passed(state, both()).logits))[:2], np.eye(CLASSES)[BATCH["labelled"]["label"]]
  size = prob + truth if dice == "plain" else prob**2 + truth**2
  each = 1 - 2 * (prob * truth).sum((0, 1, 2)) / size.sum((0, 1, 2))
  expected = each[1:].mean() if dice == "plain" else each.mean()
  np.testing.assert_allclose(run(method, state)[1]["loss_supervised"], expected, rtol=1e-4)


def test_ss_net_sums_ramps_and_moves_running_averages_once():
  method = make("ss_net")
  state = dataclasses.replace(started(method), step=jnp.int32(700))
  new, found = run(method, state)
  rising = np.exp(-5 * (1 - (700 // 150) / 40) ** 2)
  np.testing.assert_allclose(
    found["loss"], found["loss_supervised"] + rising * (found["loss_smooth"] + 0.1 * found["loss_separate"]), rtol=1e-5
  )
  close(new.stats["a"], _forward(state.students["a"], state.stats["a"], both())[1])  # noisy passes leave them alone


def test_ss_net_smoothness_and_its_gradient():
  """The noise and the reference are constants; the update equals that of the same loss with both written down."""
  method = make("ss_net", descent, weights=only("ss_net", smooth=1.0), ramp=0.0, dice="squared")
  state = started(method)
  new, found = run(method, state)
  image, reference = both(), softmax(np.asarray(passed(state, both()).logits))

  @jax.jit
  def distance(students, noisy):
    return dice_distance(jax.nn.softmax(passed(state, noisy, students).logits), reference, squared=True)

  noise = adversarial_noise(KEY_OF("direction"), image, lambda noisy: distance(state.students, noisy), xi=10.0, epsilon=10.0)
  expected, gradient = jax.jit(jax.value_and_grad(distance))(state.students, image + noise)
  np.testing.assert_allclose(found["loss_smooth"], expected, rtol=1e-4)
  close(new.students["a"], jax.tree.map(lambda p, g: p - 0.1 * g, state.students["a"], gradient["a"]), atol=1e-5)


@pytest.mark.parametrize("kept", ["lowest", "highest"])
def test_ss_net_prototypes_are_what_the_selector_ranks_first_of_right_voxels(kept):
  method = make("ss_net") if kept == "lowest" else make("ss_net", weights=only("ss_net", separate=1.0), kept=kept)
  state = started(method)
  memory = run(method, state)[0].memory
  out, label = passed(state, both()), BATCH["labelled"]["label"]
  right = np.argmax(out.logits[:2], -1) == label
  assert memory["valid"].all()
  for c in (1, 2):
    rows = np.asarray(out.f4)[:2][right & (label == c)]
    stored = head_numpy(state.students["projection"], rows, stats=state.stats["projection"])
    at = lambda tree, c=c: jax.tree.map(lambda leaf: leaf[c - 1], tree)
    score = lambda rows, at=at: head_numpy(at(state.students["selector"]), rows, 0.2, at(state.stats["selector"]))[:, 0]
    best = np.sort(score(stored))[:5] if kept == "lowest" else np.sort(score(stored))[::-1][:5]
    np.testing.assert_allclose(score(np.asarray(memory["features"][c - 1])), best, rtol=1e-4, atol=1e-5)


def test_ss_net_keeps_prototypes_of_a_class_that_is_absent():
  method = make("ss_net")
  state = started(method)
  first = run(method, state)[0]
  first = dataclasses.replace(first, students=state.students)
  without = {**BATCH, "labelled": {**BATCH["labelled"], "label": np.minimum(BATCH["labelled"]["label"], 1)}}
  second = run(method, first, batch=without)[0].memory
  assert np.any(second["features"][0] != first.memory["features"][0])
  np.testing.assert_array_equal(second["features"][1], first.memory["features"][1])
  assert not np.any(run(method, state, batch=without)[0].memory["valid"][1])


def test_ss_net_separation_equals_its_transcription():
  method = make("ss_net")
  state = started(method)
  new, found = run(method, state)
  out, expected = passed(state, both()), 0.0
  predicted = np.argmax(out.logits, -1)
  for name, label, features in (
    ("labelled", BATCH["labelled"]["label"], np.asarray(out.f4)[:2]),
    ("unlabelled", predicted[2:], np.asarray(out.f4)[2:]),
  ):
    keys = jax.random.split(KEY_OF(f"rows_{name}"), CLASSES - 1)
    index = np.concatenate([DRAW(k, label.reshape(2, -1) == c, 512)[0] for c, k in zip((1, 2), keys, strict=True)])
    np.testing.assert_array_equal(label.reshape(-1)[index], np.repeat([1, 2], 512))
    rows = head_numpy(state.students["projection"], features.reshape(-1, features.shape[-1])[index])
    rows = head_numpy(state.students["prediction"], rows).reshape(2, 512, -1)
    for c in range(2):
      scorer = jax.tree.map(lambda leaf, c=c: leaf[c], state.students["selector"])
      weight = sigmoid(head_numpy(scorer, rows[c], 0.2)[:, 0])
      distances = 1 - unit(rows[c]) @ unit(np.asarray(new.memory["features"][c])).T  # [rows, prototypes]
      expected += (distances * (len(weight) * weight / weight.sum())[:, None]).mean() / CLASSES
  np.testing.assert_allclose(found["loss_separate"], expected, rtol=1e-3)
  assert not any(same(new.students[name], state.students[name]) for name in ("projection", "prediction", "selector"))


def test_prototype_distance_pulls_rows_and_leaves_prototypes():
  rows, weight, prototypes, valid = normal(6, 4), RNG.random(6) + 0.1, normal(3, 4), np.array([True, True, False])
  distances = (1 - unit(rows) @ unit(prototypes).T)[:, :2]
  of = jax.jit(jax.value_and_grad(prototype_distance, argnums=(0, 1, 2)))
  value, gradient = of(rows, weight, prototypes, valid)
  np.testing.assert_allclose(value, (distances * (weight / weight.mean())[:, None]).mean(), rtol=1e-5)
  assert gradient[0].any() and gradient[1].any() and not gradient[2].any()
  assert of(rows - 0.1 * np.asarray(gradient[0]), weight, prototypes, valid)[0] < value
  assert gradient[1][distances.mean(1).argmax()] > 0 > gradient[1][distances.mean(1).argmin()]  # far voxels come to count less
  none = of(np.zeros_like(rows), weight, prototypes, np.zeros(3, bool))
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(none))


# TraCoCo


def test_crop_sides_are_what_networks_take():
  assert translate.crop_sides((112, 112, 80), 0.75) == (80, 80, 48)
  assert translate.crop_sides((256, 256), 0.75) == (192, 192)
  assert translate.crop_sides((16, 24, 8), 0.75) == (16, 16, 8)


def test_crops_reach_every_place_and_come_back_to_it():
  spatial, sides = (6, 5), (4, 3)
  image = normal(2, *spatial, 2)
  offsets = np.array(jax.vmap(lambda key: translate.draw_offset(key, spatial, sides))(jax.random.split(KEY, 60)))
  assert offsets.min(0).tolist() == [0, 0] and offsets.max(0).tolist() == [2, 2]
  for offset in offsets[:5]:
    crop = translate.cut(image, jnp.array(offset), sides)
    inside = (slice(None), *(slice(o, o + s) for o, s in zip(offset, sides, strict=True)))
    np.testing.assert_array_equal(crop, image[inside])
    mask = np.zeros((2, *spatial), bool)
    mask[inside] = True
    np.testing.assert_array_equal(translate.covered(jnp.array(offset), sides, spatial), mask[0])
    np.testing.assert_array_equal(translate.paste(crop, jnp.array(offset), spatial), np.where(mask[..., None], image, 0))


def test_translation_divergence_on_the_overlap():
  """Crops at (0, 1) and (2, 0): the published code's ranges within each of them are [2:4, 0:2] and [0:2, 1:3]."""
  spatial, sides, a, b = (6, 5), (4, 3), normal(2, 4, 3, CLASSES), normal(2, 4, 3, CLASSES)
  places = jnp.array([[0, 1], [2, 0]])
  whole = [translate.paste(crop, place, spatial) for crop, place in zip((a, b), places, strict=True)]
  shared = translate.covered(places[0], sides, spatial) & translate.covered(places[1], sides, spatial)
  p, q = softmax(a[:, 2:4, 0:2]), softmax(b[:, 0:2, 1:3])
  compare = jax.jit(overlap_divergence)
  divergence, negative_entropy = compare(*whole, shared)
  np.testing.assert_allclose(divergence, (q * (np.log(q) - np.log(p))).sum(-1).mean(), rtol=1e-5)
  np.testing.assert_allclose(negative_entropy, ((p * np.log(p)).sum(-1).mean() + (q * np.log(q)).sum(-1).mean()) / 2, rtol=1e-5)
  of = lambda a, b: overlap_divergence(translate.paste(a, places[0], spatial), translate.paste(b, places[1], spatial), shared)[0]
  for gradient, inside in zip(jax.jit(jax.grad(of, argnums=(0, 1)))(a, b), (np.s_[:, 2:4, 0:2], np.s_[:, 0:2, 1:3]), strict=True):
    outside = np.array(gradient)
    assert outside[inside].any()
    outside[inside] = 0
    assert not outside.any()
  nothing = compare(*whole, np.zeros(spatial, bool))
  assert all(float(v) == 0 for v in nothing)
  np.testing.assert_allclose(compare(whole[0], whole[0], shared)[0], 0, atol=1e-6)


@pytest.mark.parametrize("classes", [2, 3])
def test_confident_regional_cross_entropy(classes):
  logits, target = normal(2, 5, 4, classes), softmax(3 * normal(2, 5, 4, classes))
  prob, learned, unlearned = softmax(logits), [], []
  for index in np.ndindex(2, 5, 4):
    p, q = prob[index], target[index]
    if q.max() >= 0.65:
      learned.append(-q.max() * np.log(p[q.argmax()]))
    unlearned += [-q[c] * np.log(1 - p[c]) for c in range(classes) if q[c] < 0.1]
  found = confident_regional_cross_entropy(logits, target, 0.65, 0.1)
  np.testing.assert_allclose(found, np.mean(learned) + np.mean(unlearned), rtol=1e-4)
  if classes == 2:  # as published: the smaller probability weighs −log(1 − p) of the other class
    low, other = target.min(-1), np.take_along_axis(prob, 1 - target.argmax(-1)[..., None], -1)[..., 0]
    published = (-low * np.log(1 - other))[low < 0.1].mean()
    np.testing.assert_allclose(found, np.mean(learned) + published, rtol=1e-4)


def test_the_gradient_of_the_regional_cross_entropy():
  logits, target = normal(2, 5, 4, CLASSES), softmax(3 * normal(2, 5, 4, CLASSES))
  loss = lambda logits, target: confident_regional_cross_entropy(logits, target, 0.65, 0.1)
  of = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
  by_logits, by_target = of(logits, target)[1]
  assert not by_target.any()
  sure = target.max(-1) >= 0.65
  picked = np.take_along_axis(np.asarray(by_logits), target.argmax(-1)[..., None], -1)[..., 0]
  assert (picked[sure] < 0).all()  # descending makes the confident class likelier
  assert not np.asarray(by_logits)[(target.max(-1) < 0.65) & (target.min(-1) >= 0.1)].any()
  assert float(of(logits, np.full_like(target, 1 / CLASSES))[0]) == 0
  assert np.isfinite(of(100 * np.eye(CLASSES, dtype=np.float32)[target.argmin(-1)], target)[1][0]).all()


def constant(state, logits):
  """Both networks answer with these logits, name -> f32[C], everywhere."""
  output = lambda row: {"kernel": jnp.zeros((4, CLASSES)), "bias": jnp.array(row)}
  return dataclasses.replace(state, students={name: {**s, "output": output(logits[name])} for name, s in state.students.items()})


def test_traco_co_learns_the_others_labels_and_sums_the_terms():
  """Network a says 1 and network b says 2, everywhere: each pays for not saying what the other does."""
  method = make("traco_co", weights={"dice": 0.5})
  logits = {"a": np.float32([0, 4, 0]), "b": np.float32([0, 0, 3])}
  _, found = run(method, dataclasses.replace(constant(started(method), logits), step=jnp.int32(10)))
  crc, dice, supervised = 0.0, 0.0, 0.0
  for own, other in (("a", "b"), ("b", "a")):
    p, q = softmax(logits[own]), softmax(logits[other])
    low = [c for c in range(CLASSES) if q[c] < 0.1]
    crc += -q.max() * np.log(p[q.argmax()]) + np.mean([-q[c] * np.log(1 - p[c]) for c in low])
    target = np.eye(CLASSES)[q.argmax()]
    dice += np.mean(1 - (2 * 256 * p * target + 1e-5) / (256 * (p + target) + 1e-5))
    supervised += ce_dice_numpy(np.broadcast_to(logits[own], (2, *SIDE, CLASSES)), BATCH["labelled"]["label"])
  np.testing.assert_allclose(found["loss_crc"], crc, rtol=1e-4)
  np.testing.assert_allclose(found["loss_dice"], dice, rtol=1e-4)
  np.testing.assert_allclose(found["loss_supervised"], supervised, rtol=1e-4)
  assert found["pseudo_agree"] == 0 and found["pseudo_share"] == 1
  unsupervised = crc + 0.5 * dice + 0.3 * found["loss_translation"] + 0.1 * found["loss_entropy"]
  np.testing.assert_allclose(found["loss"], supervised + ramp(10, 40) * unsupervised, rtol=1e-4)  # a pass over the labelled scans is a step
  alone = make("traco_co", weights=only("traco_co", supervised=1.0))
  assert set(jax.eval_shape(alone.steps["train"], started(alone), BATCH, KEY)[1]) == {"loss", "loss_supervised", "overlap"}


def test_traco_co_mixes_images_with_their_labels_and_no_gradient_enters_them():
  method = make("traco_co", descent, weights=only("traco_co", crc=1.0))
  state = dataclasses.replace(started(method), step=jnp.int32(40))  # ramped up
  new, _ = run(method, state)
  unlabelled, labelled = BATCH["unlabelled"]["image"], BATCH["labelled"]["image"]
  mixed, noisy, strong = {}, {}, jax.jit(functools.partial(strong_view, kind="cutmix", alpha=4.0, crop=1.0, noise=0.2))
  prob = {name: jax.nn.softmax(_forward(state.students[name], state.stats[name], unlabelled)[0].logits) for name in "ab"}
  for name, other in traco_co.OTHER.items():
    key = KEY_OF(f"mixed_{name}", 40)
    mixed[name] = strong(key, unlabelled, prob[other])
    noisy[name] = views.uniform_noise(KEY_OF(f"noise_{name}", 40), labelled, 0.2)

  @jax.jit
  def loss(students):
    total = 0.0
    for name in "ab":
      image = jnp.concatenate([noisy[name], mixed[name][0]])
      out = _forward(students[name], state.stats[name], image)[0].logits[2:]
      total += confident_regional_cross_entropy(out, mixed[name][1], 0.65, 0.1)
    return total

  close(new.students, jax.tree.map(lambda p, g: p - 0.1 * g, state.students, jax.jit(jax.grad(loss))(state.students)), atol=1e-5)


def test_traco_co_translation_is_of_what_two_crops_share():
  """Of one network without dropout and of images without noise, the whole image as both crops agrees with itself."""
  big = jax.tree.map(lambda a: np.repeat(np.repeat(a, 2, 1), 2, 2) if a.ndim > 1 else a, BATCH)
  value = {}
  for name, changes in {"whole": {"crop": 1.0}, "shifted": {}}.items():
    method = make("traco_co", weights=only("traco_co", translation=1.0, entropy=1.0), noise=0.0, **changes)
    found = run(method, started(method), batch=big)[1]
    value[name] = float(found["loss_translation"])
    assert float(found["loss_entropy"]) < 0
    assert float(found["overlap"]) == 1 if name == "whole" else 0 < float(found["overlap"]) < 0.25
  assert abs(value["whole"]) < 1e-6 < value["shifted"]  # other surroundings change the statistics of a crop


# ELSNet


def test_prototype_contrast():
  rows, present = normal(CLASSES, 5, 4), np.array([True, False, True])
  prototypes, each = {c: unit(unit(rows[c]).mean(0)) for c in (0, 2)}, []
  for c in (0, 2):
    for z in unit(rows[c]):
      similarity = {k: np.exp(z @ m / 0.3) for k, m in prototypes.items()}
      each.append(-np.log(similarity[c] / sum(similarity.values())))
  of = jax.jit(jax.value_and_grad(lambda rows, present: prototype_contrast(rows, present, 0.3)))
  value, gradient = of(rows, present)
  np.testing.assert_allclose(value, np.mean(each), rtol=1e-5)
  gradient = np.asarray(gradient)
  assert gradient[0].any() and not gradient[1].any()
  moved = rows - 0.1 * gradient
  assert of(moved, present)[0] < value
  towards = lambda r: np.mean([unit(r[c]) @ prototypes[c] - unit(r[c]) @ prototypes[2 - c] for c in (0, 2)])
  assert towards(moved) > towards(rows)
  assert float(of(rows, np.zeros(CLASSES, bool))[0]) == 0


def test_els_net_first_stage():
  method = make("els_net")
  state = started(method)
  new, found = run(method, state, "pretrain")
  expected = found["loss_exemplar"] + found["loss_synthetic"] + 0.1 * found["loss_contrast"]
  np.testing.assert_allclose(found["loss"], expected, rtol=1e-5)
  turned = {s: TURN(KEY_OF(f"pose_{s}"), BATCH[s]["image"], BATCH[s]["label"]) for s in ("labelled", "synthetic")}
  image, label = (np.concatenate([part[i] for part in turned.values()]) for i in (0, 1))
  out = passed(state, image)
  np.testing.assert_allclose(found["loss_exemplar"], ce_dice_numpy(np.asarray(out.logits)[:2], label[:2]), rtol=1e-4)
  np.testing.assert_allclose(found["loss_synthetic"], ce_dice_numpy(np.asarray(out.logits)[2:], label[2:]), rtol=1e-4)
  keys = jax.random.split(KEY_OF("pixels"), CLASSES)
  index = np.concatenate([DRAW(k, label.reshape(5, -1) == c, 64)[0] for c, k in enumerate(keys)])
  rows = head_numpy(state.students["projection"], np.asarray(out.f4).reshape(-1, 4)[index]).reshape(CLASSES, 64, -1)
  np.testing.assert_allclose(found["loss_contrast"], prototype_contrast(rows, np.ones(CLASSES, bool), 0.1), rtol=1e-3)
  assert same(new.teacher, {"students": {"a": new.students["a"]}, "stats": {"a": new.stats["a"]}})


def test_els_net_second_stage_learns_labels_that_never_change():
  method = make("els_net")
  state = run(method, started(method), "pretrain")[0]
  image = BATCH["unlabelled"]["image"]
  labels = lambda state: method.pseudo_labels(state, image)["static"]
  before = labels(state)
  new, found = run(method, state, "selftrain")
  later = run(method, new, "selftrain")[0]
  assert same(later.teacher, state.teacher) and same(labels(later), before) and np.all(before[1])
  assert not same(later.students["a"], later.teacher["students"]["a"])
  expected = sum(w * found[f"loss_{term}"] for term, w in els_net.Options().weights.items())
  np.testing.assert_allclose(found["loss"], expected, rtol=1e-5)

  # the frozen network labels the slice as it lies; its labels are turned with it
  label = np.argmax(before[0], -1).astype(np.int32)
  np.testing.assert_allclose(found["pseudo_foreground"], (label > 0).mean(), rtol=1e-5)
  streams = {"labelled": BATCH["labelled"]["label"], "synthetic": BATCH["synthetic"]["label"], "unlabelled": label}
  turned = [TURN(KEY_OF(f"pose_{s}", 1), BATCH[s]["image"], value) for s, value in streams.items()]
  out = passed(state, np.concatenate([t[0] for t in turned]))
  np.testing.assert_allclose(found["loss_pseudo"], ce_dice_numpy(np.asarray(out.logits)[5:], np.asarray(turned[2][1])), rtol=1e-4)


def test_els_net_without_synthetic_images():
  bare = {name: value for name, value in BATCH.items() if name != "synthetic"}
  with pytest.raises(ValueError, match=r"config\.train\.batch_synthetic: .* must be positive"):
    make("els_net").init(KEY, bare)
  method = make("els_net", weights={"synthetic": 0.0})
  state = jax.eval_shape(method.init, KEY, bare)
  assert "loss_synthetic" not in jax.eval_shape(method.steps["pretrain"], state, bare, KEY)[1]


def test_who_needs_synthetic_images():
  assert {name for name in methods.names() if common.learns_from_synthetic(name)} == {"cmems", "els_net"}


# All three


@pytest.mark.parametrize(
  ("name", "options", "message"),
  [
    ("ss_net", {"rows": 4}, r"config\.method\.rows: .*slots = 5"),
    ("ss_net", {"rows": 40_000}, "32768, got 40000"),
    ("traco_co", {"crop": 0.5}, r"config\.method\.crop: .* got 0\.5"),
    ("els_net", {"temperature": 0.0}, "temperature > 0"),
    ("ss_net", {"weights": {"smoothness": 1.0}}, "no such loss term; known: separate, smooth, supervised"),
  ],
)
def test_bad_settings_are_refused(name, options, message):
  with pytest.raises(ValueError, match=message):
    method = make(name, **options)
    jax.eval_shape(method.steps["train"], jax.eval_shape(method.init, KEY, BATCH), BATCH, KEY)


@pytest.mark.parametrize(
  ("name", "weights", "terms"),
  [
    ("ss_net", {}, ("smooth", "separate")),
    ("traco_co", {"dice": 0.5}, ("crc", "translation")),
    ("els_net", {}, ("pseudo",)),
  ],
)
def test_a_hundred_steps_on_phantoms(name, weights, terms):
  """The supervised loss falls, and terms on unlabelled images are there and change."""
  source, batch = np.random.default_rng(3), {}
  for stream in BATCH:
    scans = [make_phantom(SIDE, source) for _ in BATCH[stream]["index"]]
    image, label = (np.stack(parts) for parts in zip(*scans, strict=True))
    label = np.where(label, 2, image > np.quantile(image, 0.7))  # a third class: what else is bright
    batch[stream] = {**BATCH[stream], "image": image[..., None].astype(np.float32), "label": label.astype(np.int32)}
  method = make(name, **({"weights": weights} if weights else {}))
  state, found = jax.jit(method.init)(jax.random.key(2), batch), []
  for i in range(100):
    phase = ("pretrain" if i < 50 else "selftrain") if name == "els_net" else "train"
    state, metrics = method.steps[phase](state, batch, KEY)
    found.append(jax.device_get(metrics))
  supervised = [float(m["loss_exemplar" if name == "els_net" else "loss_supervised"]) for m in found]
  assert np.mean(supervised[-10:]) < 0.8 * np.mean(supervised[:3])
  assert all(np.isfinite(value) for m in found for value in m.values())
  for term in terms:
    values = np.array([float(m[f"loss_{term}"]) for m in found if f"loss_{term}" in m])[10:]
    assert np.median(np.abs(values)) > 1e-4 and values.std() > 1e-3 * np.abs(values).mean()
