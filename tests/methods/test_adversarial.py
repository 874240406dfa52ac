"""DTC, SASSNet and DAN against plain NumPy transcriptions: distance maps, discriminator, losses, and who moves whom."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import ndimage
from skimage.segmentation import find_boundaries

from ssl_jax import config, methods
from ssl_jax.core.adversary import Adversary
from ssl_jax.data.phantom import make_phantom
from ssl_jax.networks.discriminator import Discriminator
from ssl_jax.ops.conv import conv4_down2
from ssl_jax.ops.distance import signed_distance, squared_distance
from ssl_jax.ops.segmentation import dice_batch
from ssl_jax.types import Task, TrainState
from tests.methods.common import RNG, SliceNetworks, ce_dice_numpy, nll, normal, slice_networks, small_networks, softmax

SIDE = (16, 16, 16)
NAMES = ("dtc", "sassnet", "dan")
ADVERSARIAL = ("sassnet", "dan")


def blobs(*shape, classes=2, smooth=2.0):
  """Labels i32[B, *spatial] of smooth regions."""
  field = ndimage.gaussian_filter(RNG.normal(size=(shape[0], classes, *shape[1:])), (0, 0, *[smooth] * (len(shape) - 1)), mode="wrap")
  return field.argmax(1).astype(np.int32)


# Distance maps


@pytest.mark.parametrize("shape", [(2, 9, 7, 5), (2, 13, 1), (1, 6, 260)])
def test_squared_distance_equals_scipy(shape):
  found = jax.jit(lambda m: squared_distance(m, len(shape) - 1))
  for share in (0.02, 0.5, 0.98):
    mask = RNG.random(shape) < share
    mask[(slice(None), *[0] * (len(shape) - 1))] = False
    expected = [np.round(ndimage.distance_transform_edt(one) ** 2) for one in mask]
    np.testing.assert_array_equal(found(mask), expected)


@pytest.mark.parametrize(("side", "dtype"), [(148, jnp.uint16), (149, jnp.int32)])
def test_the_longest_distance_is_exact(side, dtype):
  """A lone voxel in the corner of the largest square that 16 bits suffice for, and of one that is larger."""
  mask = np.ones((2, side, side), bool)
  mask[0, 0, 0] = False
  found = jax.jit(lambda m: squared_distance(m, 2))(mask)
  assert found.dtype == dtype and found[0, -1, -1] == 2 * (side - 1) ** 2
  assert (found[1] > 2 * (side - 1) ** 2).all()  # nothing lies outside the second


def compute_sdf(mask):
  """The published map of one mask, written down from its definition."""
  if not mask.any():
    return np.zeros(mask.shape)
  inside, outside = ndimage.distance_transform_edt(mask), ndimage.distance_transform_edt(~mask)
  scaled = lambda d: (d - d.min()) / (d.max() - d.min())
  return np.where(find_boundaries(mask, mode="inner"), 0.0, scaled(outside) - scaled(inside))


@pytest.mark.parametrize("shape", [(2, 12, 10, 8), (3, 20, 14)])
@pytest.mark.parametrize("classes", [2, 4])
def test_signed_distance_equals_the_published(shape, classes):
  label = blobs(*shape, classes=classes)
  label[0] = np.where(label[0] == 1, 0, label[0])  # class 1 is absent
  label[1, :2] = 1  # and touches the border, which is no boundary
  found = np.asarray(jax.jit(lambda y: signed_distance(y, classes))(label))
  assert found.shape == (*shape, classes - 1) and found.dtype == np.float32
  for c in range(1, classes):
    expected = np.stack([compute_sdf(one == c) for one in label])
    np.testing.assert_allclose(found[..., c - 1], expected, atol=1e-6)
    assert (found[..., c - 1][label == c] <= 0).all() and (found[..., c - 1][label != c] >= 0).all()
  assert not found[0, ..., 0].any() and found.min() == -1 and found.max() == 1


def test_a_class_that_fills_the_patch_has_no_distances():
  found = jax.jit(lambda y: signed_distance(y, 2))(np.ones((1, 8, 8, 8), np.int32))
  np.testing.assert_array_equal(found, np.zeros((1, 8, 8, 8, 1)))


# Discriminator


def halved_numpy(x, kernel, bias):
  """out[i] = Σ_k w[k] x[2 i − 1 + k] + b, zeros beyond the edges."""
  rank = x.ndim - 2
  padded = np.pad(x, [(0, 0), *[(1, 1)] * rank, (0, 0)])
  out = np.zeros((x.shape[0], *(s // 2 for s in x.shape[1:-1]), kernel.shape[-1])) + bias
  for tap in np.ndindex(*[4] * rank):
    out += padded[(slice(None), *(slice(k, k + s, 2) for k, s in zip(tap, x.shape[1:-1], strict=True)))] @ kernel[tap]
  return out


@pytest.mark.parametrize("shape", [(2, 8, 6, 4, 3), (2, 8, 10, 3)])
def test_conv4_down2_and_its_gradients_equal_xla(shape):
  rank = len(shape) - 2
  x, w = normal(*shape), normal(*[4] * rank, 3, 5)
  np.testing.assert_allclose(jax.jit(conv4_down2)(x, w), halved_numpy(x, w, 0.0), atol=1e-4)
  letters = "DHW"[-rank:]
  spec = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
  xla = lambda x, w: jax.lax.conv_general_dilated(x, w, (2,) * rank, [(1, 1)] * rank, dimension_numbers=spec)
  gradient = lambda f: jax.jit(jax.grad(lambda x, w: jnp.sum(jnp.sin(f(x, w))), argnums=(0, 1)))(x, w)
  for ours, theirs in zip(gradient(conv4_down2), gradient(xla), strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


def discriminator_numpy(params, prediction, image):
  params = jax.tree.map(np.asarray, params)
  leaky = lambda x: np.where(x > 0, x, 0.2 * x)
  halve = lambda x, name: halved_numpy(x, params[name]["kernel"], params[name]["bias"])
  x = leaky(halve(prediction, "prediction") + halve(image, "image"))
  for level in (2, 3, 4):
    x = leaky(halve(x, f"level{level}"))
  return x.mean(tuple(range(1, x.ndim - 1))) @ params["output"]["kernel"] + params["output"]["bias"]


@pytest.mark.parametrize("sides", [(32, 16, 16), (16, 32)])
def test_discriminator_equals_numpy_and_drops_channels_only_in_training(sides):
  network = Discriminator(width=2)
  prediction, image = normal(3, *sides, 2), normal(3, *sides, 1)
  params = jax.jit(lambda: network.init(jax.random.key(0), prediction, image, train=False)["params"])()
  both = lambda p: [network.apply({"params": p}, prediction, image, train=t, rngs={"dropout": jax.random.key(1)}) for t in (False, True)]
  found, dropped = jax.jit(both)(params)
  np.testing.assert_allclose(found, discriminator_numpy(params, prediction, image), atol=1e-5)
  assert dropped.shape == (3, 2) and np.abs(dropped - found).max() > 1e-4
  assert params["level4"]["kernel"].shape[-2:] == (8, 16)


# Losses


def test_dice_with_squares():
  prob, label = softmax(normal(2, 4, 4, 2, 3)), RNG.integers(0, 3, (2, 4, 4, 2))
  expected = 0.0
  for c in (1, 2):
    p, y = prob[..., c], label == c
    expected += 0.5 * (1 - (2 * (p * y).sum() + 1e-5) / ((p * p).sum() + (y * y).sum() + 1e-5))
  np.testing.assert_allclose(dice_batch(prob, label, 1e-5, squared=True), expected, rtol=1e-5)


def build(name, classes=2, lr=1.0, slices=True, **options):
  """A method on stand-ins, and a batch whose label can be read from the image."""
  module, networks = methods.load(name), (slice_networks if slices else small_networks)(classes)
  method = module.build(config.parse(module.Options, options), networks, optax.sgd(lr), Task(2, 10))
  sides = SIDE[:2] if slices else SIDE
  label = blobs(4, *sides, classes=classes)
  image = (label[..., None] + 0.3 * RNG.normal(size=(*label.shape, 1))).astype(np.float32)
  index = np.arange(2, dtype=np.int32)
  labelled = {"image": image[:2], "label": label[:2], "index": index}
  return method, {"labelled": labelled, "unlabelled": {"image": image[2:], "index": index}}, networks


def first_step(name, **options):
  method, batch, networks = build(name, **options)

  @jax.jit
  def both():
    state = jax.jit(method.init)(jax.random.key(0), batch)
    return state, *method.steps["train"](state, batch, jax.random.key(1))

  return *both(), batch, networks


def outputs(networks, state, batch, distance=True):
  """The network without dropout on its batch's statistics, as the NumPy transcriptions see it."""
  network = networks.with_distance() if distance else networks.backbone()
  image = np.concatenate([batch["labelled"]["image"], batch["unlabelled"]["image"]])
  variables = {"params": state.students["a"], "batch_stats": state.stats["a"]}
  return jax.jit(lambda v: network.apply(v, image, train=True, dropout=False, mutable=["batch_stats"])[0])(variables), image


@pytest.mark.parametrize("classes", [2, 3])
def test_dtc_equations(classes):
  """On the 2D stand-in, which has no dropout."""
  state, _, metrics, batch, networks = first_step("dtc", classes=classes, ramp=0.0, steepness=3.0)
  out, _ = outputs(networks, state, batch)
  prob, z, label = softmax(np.asarray(out.logits)), np.asarray(out.distance), batch["labelled"]["label"]
  target = np.stack([[compute_sdf(one == c) for one in label] for c in range(1, classes)], axis=-1)
  expected = {
    "supervised": np.mean(
      [
        1 - (2 * (prob[:2][label == c, c]).sum() + 1e-5) / ((prob[:2, ..., c] ** 2).sum() + (label == c).sum() + 1e-5)
        for c in range(1, classes)
      ]
    ),
    "distance": np.mean((z[:2] - target) ** 2),
    "consistency": np.mean((1 / (1 + np.exp(3.0 * z)) - prob[..., 1:]) ** 2),
  }
  for term, value in expected.items():
    np.testing.assert_allclose(metrics[f"loss_{term}"], value, rtol=1e-4)
  total = expected["supervised"] + 0.3 * expected["distance"] + expected["consistency"]
  np.testing.assert_allclose(metrics["loss"], total, rtol=1e-4)


def test_dtc_s_tasks_agree_where_the_distance_is_negative_inside():
  """Sure and right in both heads costs nothing; the same map with the other sign costs all."""
  method, batch, networks = build("dtc", ramp=0.0)
  state = jax.jit(method.init)(jax.random.key(0), batch)
  network = state.students["a"]["network"]
  first = {"kernel": jnp.array([[1.0, -1.0, 0.0, 0.0]]), "bias": jnp.zeros(4)}
  output = {"kernel": 99.0 * jnp.array([[-1.0, 1.0], [1.0, -1.0], [0.0, 0.0], [0.0, 0.0]]), "bias": jnp.zeros(2)}
  network = {**network, "Conv_0": first, "output": output}

  def loss(sign):
    sdf = {"output": {"kernel": sign * jnp.array([[-1.0], [1.0], [0.0], [0.0]]), "bias": jnp.zeros(1)}}
    chosen = dataclasses.replace(state, students={"a": {"network": network, "sdf": sdf}})
    return float(jax.jit(method.steps["train"])(chosen, batch, jax.random.key(1))[1]["loss_consistency"])

  assert loss(1.0) < 0.02 and loss(-1.0) > 0.98


def test_dtc_s_consistency_reaches_both_heads_and_its_ramp_starts_low():
  only = {"supervised": 0.0, "distance": 0.0, "consistency": 1.0}
  state, new, metrics, *_ = first_step("dtc", weights=only, steepness=3.0, slices=False)
  change = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), state.students["a"], new.students["a"])
  assert change["sdf"]["output"]["kernel"] > 0 and change["network"]["output"]["kernel"] > 0
  np.testing.assert_allclose(metrics["loss"], np.exp(-5) * metrics["loss_consistency"], rtol=1e-5)


def adversarial_numpy(name, networks, state, new, batch):
  """Terms of the first step from the discriminator in NumPy: the network's, before, and the discriminator's, after the network's update."""
  with_distance = name == "sassnet"
  out, image = outputs(networks, state, batch, with_distance)
  see = lambda out: np.asarray(out.distance) if with_distance else softmax(np.asarray(out.logits))
  variables = {"params": new.students["a"], "batch_stats": new.stats["a"]}
  network = networks.with_distance() if with_distance else networks.backbone()
  after = jax.jit(lambda v: network.apply(v, image, train=False))(variables)
  deceived = nll(discriminator_numpy(state.students["discriminator"], see(out)[2:], image[2:]), np.ones(2, int)).mean()
  told = nll(discriminator_numpy(state.students["discriminator"], see(after), image), np.array([1, 1, 0, 0])).mean()
  return out, deceived, told


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_adversarial_equations_and_their_order(name, monkeypatch):
  monkeypatch.setattr(SliceNetworks, "discriminator", lambda self: Discriminator(width=2, dropout=0.0))  # so that NumPy can follow
  state, new, metrics, batch, networks = first_step(name, classes=3, ramp=0.0)
  out, deceived, told = adversarial_numpy(name, networks, state, new, batch)
  np.testing.assert_allclose(metrics["loss_adversarial"], deceived, rtol=1e-4)
  np.testing.assert_allclose(metrics["loss_discriminator"], told, rtol=1e-4)  # of the network that has just moved
  label = batch["labelled"]["label"]
  if name == "dan":
    np.testing.assert_allclose(metrics["loss_supervised"], ce_dice_numpy(np.asarray(out.logits[:2]), label), rtol=1e-4)
    total = metrics["loss_supervised"] + 0.1 * deceived
  else:
    target = np.stack([[compute_sdf(one == c) for one in label] for c in (1, 2)], axis=-1)
    np.testing.assert_allclose(metrics["loss_distance"], np.mean((out.distance[:2] - target) ** 2), rtol=1e-4)
    total = metrics["loss_supervised"] + 0.3 * metrics["loss_distance"] + 0.01 * deceived
  np.testing.assert_allclose(metrics["loss"], total, rtol=1e-4)


# Who moves whom


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_neither_player_moves_the_other(name):
  weights = {**dict.fromkeys(methods.load(name).Options().weights, 0.0), "adversarial": 1.0}
  method, batch, _ = build(name, weights=weights, ramp=0.0)
  state = jax.jit(method.init)(jax.random.key(0), batch)
  step = jax.jit(lambda state, lr: build(name, lr=lr, weights=weights, ramp=0.0)[0].steps["train"](state, batch, jax.random.key(1))[0])
  change = lambda new: jax.tree.map(lambda a, b: float(np.abs(a - b).max()), state.students, new.students)
  new, kept = step(state, 1.0), step(state, 0.0)
  assert max(jax.tree.leaves(change(new)["a"])) > 0
  # Adam's first step moves a weight by its rate. The network's optimizer, of rate 1, would have moved it by its gradient.
  assert 0.9e-4 < max(jax.tree.leaves(change(new)["discriminator"])) < 1.01e-4
  assert max(jax.tree.leaves(change(kept)["discriminator"])) > 0 and not any(jax.tree.leaves(change(kept)["a"]))
  assert int(new.step) == 1 and set(new.opt) == set(new.students) == {"a", "discriminator"}


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_without_its_term_the_discriminator_rests(name):
  state, new, metrics, *_ = first_step(name, weights={**methods.load(name).Options().weights, "adversarial": 0.0})
  jax.tree.map(np.testing.assert_array_equal, new.students["discriminator"], state.students["discriminator"])
  assert not {"loss_adversarial", "loss_discriminator"} & set(metrics)


def test_the_players_pull_in_opposite_directions():
  """A discriminator that learns tells apart; a prediction that follows `deceived` makes it take unlabelled for labelled."""
  adversary = Adversary(Discriminator(width=2, dropout=0.0), lr=1e-2)
  image, prediction = np.zeros((4, 16, 16, 1), np.float32), np.zeros((4, 16, 16, 1), np.float32)
  prediction[:2] = 1.0
  empty = TrainState(jnp.int32(0), {}, (), {}, (), {}, ())
  state = jax.jit(lambda: adversary.join(empty, optax.sgd(1.0), jax.random.key(0), image, 1))()
  learn = jax.jit(lambda s: adversary.learn(s, prediction, image, 2, jax.random.key(0)))
  for _ in range(60):
    state, metrics = learn(state)
  assert metrics["loss_discriminator"] < 0.3 and metrics["discriminator_right"] == 1
  deceived = jax.jit(jax.value_and_grad(lambda p: adversary.deceived(state, p, image[2:])))
  before, gradient = deceived(prediction[2:])
  moved = prediction[2:] - 20.0 * gradient
  assert before > 1.0 and deceived(moved)[0] < before
  assert moved.mean() > 0  # towards the labelled ones


@pytest.mark.parametrize("name", NAMES)
def test_a_hundred_steps_on_phantoms(name):
  method, batch, _ = build(name, lr=0.1, **({"discriminator_lr": 1e-3} if name in ADVERSARIAL else {}), ramp=0.0)
  scans = [make_phantom((16, 16, 16), np.random.default_rng(i)) for i in range(4)]
  image, label = (np.stack(arrays)[:, :, :, 8] for arrays in zip(*scans, strict=True))  # a slice is enough
  image = image[..., None].astype(np.float32)
  batch["labelled"].update(image=image[:2], label=label[:2].astype(np.int32))
  batch["unlabelled"].update(image=image[2:])
  state, step = jax.jit(method.init)(jax.random.key(0), batch), jax.jit(method.steps["train"])
  found = []
  for _ in range(100):
    state, metrics = step(state, batch, jax.random.key(1))
    found.append({name: float(value) for name, value in metrics.items()})
  of = lambda term: np.array([metrics[f"loss_{term}"] for metrics in found])
  assert of("supervised")[-10:].mean() < 0.8 * of("supervised")[:10].mean()
  if name != "dan":
    assert of("distance")[-10:].mean() < of("distance")[:10].mean()
  unlabelled = of("consistency" if name == "dtc" else "adversarial")
  assert (unlabelled > 0).all() and unlabelled.std() > 1e-3 * unlabelled.mean()
  if name in ADVERSARIAL:
    assert of("discriminator").min() < of("discriminator")[0]


def test_a_bad_steepness_is_refused():
  with pytest.raises(ValueError, match=r"config\.method\.steepness: must be positive"):
    build("dtc", steepness=-1500.0)
