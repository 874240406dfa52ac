"""URPC, MC-Net, MC-Net+ and MCF against NumPy transcriptions, and the networks with several heads that they need."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssl_jax import config, methods
from ssl_jax.core import rng
from ssl_jax.core.step import forward
from ssl_jax.data.phantom import make_phantom
from ssl_jax.networks import vnet
from ssl_jax.networks.factory import Networks
from ssl_jax.networks.heads import ScaleHeads, drop_strongest, scale_noise
from ssl_jax.networks.unet import UNet2D, UNet3D
from ssl_jax.networks.vnet import VNet
from ssl_jax.ops import consistency
from ssl_jax.types import InputError, NetworkConfig, Task
from tests.methods.common import ce_dice_numpy, nll, normal, slice_networks, small_networks, softmax

NAMES = ("urpc", "mc_net", "mc_net_plus", "mcf")
SHAPE = (2, 8, 8, 4)


def sharpened(p, temperature=0.1):
  power = p.astype(np.float64) ** (1 / temperature)
  return power / power.sum(-1, keepdims=True)


def dice_numpy(prob, label):
  """Of the foreground classes, over the whole batch."""
  target = np.eye(prob.shape[-1])[label]
  terms = [1 - (2 * (prob[..., c] * target[..., c]).sum() + 1e-8) / (prob[..., c] + target[..., c]).sum() for c in range(1, prob.shape[-1])]
  return np.mean(terms)


def mutual_numpy(heads):
  p = [softmax(h) for h in heads]
  return sum(((p[i] - sharpened(p[j])) ** 2).mean() for i, j in itertools.permutations(range(len(p)), 2))


def pyramid_numpy(heads):
  p = [softmax(h.astype(np.float64)) for h in heads]
  mean = sum(p) / len(p)
  total = 0.0
  for q in p:
    variance = (mean * np.log(mean / q)).sum(-1, keepdims=True)
    total += ((mean - q) ** 2 * np.exp(-variance)).mean() / (np.exp(-variance).mean() + 1e-8) + variance.mean()
  return total / len(p)


def review_numpy(logits, other, label):
  errors = []
  for at in np.ndindex(label.shape):
    if logits[at].argmax() != other[at].argmax():
      target = np.arange(logits.shape[-1]) == label[at]
      errors.append(0.5 * ((softmax(logits[at]) - target) ** 2).sum())
  return np.mean(errors)


@pytest.mark.parametrize("count", [2, 3])
def test_mutual_consistency(count):
  heads = [normal(*SHAPE, 3) for _ in range(count)]
  np.testing.assert_allclose(consistency.mutual_consistency(heads, 0.1), mutual_numpy(heads), rtol=1e-4)
  assert all(np.abs(g).max() > 0 for g in jax.grad(lambda h: consistency.mutual_consistency(h, 0.1))(heads))
  sure = [20 * np.eye(3, dtype=np.float32)[np.zeros(SHAPE, int)]] * count
  np.testing.assert_allclose(consistency.mutual_consistency(sure, 0.1), 0, atol=1e-6)  # agreement without doubt costs nothing


def test_pyramid_consistency():
  heads = [normal(*SHAPE, 3) for _ in range(4)]
  loss_and_grad = jax.jit(jax.value_and_grad(consistency.pyramid_consistency))
  loss, grads = loss_and_grad(heads)
  np.testing.assert_allclose(loss, pyramid_numpy(heads), rtol=1e-4)
  np.testing.assert_allclose(loss_and_grad([heads[0]] * 4)[0], 0, atol=1e-6)
  assert all(np.abs(g).max() > 0 for g in grads)
  nearer = [h - 10 * g for h, g in zip(heads, grads, strict=True)]
  spread = lambda heads: np.var([softmax(np.asarray(h)) for h in heads], axis=0).mean()
  assert spread(nearer) < spread(heads)
  opposed = [jnp.asarray([[[[300.0, -300.0]]]]), jnp.asarray([[[[-300.0, 300.0]]]])]
  loss, grads = loss_and_grad(opposed)
  assert np.isfinite(loss) and np.isfinite(grads).all()


@pytest.mark.parametrize("classes", [2, 3])
def test_error_where_different(classes):
  logits, other, label = normal(*SHAPE, classes), normal(*SHAPE, classes), np.random.default_rng(1).integers(0, classes, SHAPE)
  function = consistency.error_where_different
  np.testing.assert_allclose(function(logits, other, label), review_numpy(logits, other, label), rtol=1e-4)
  if classes == 2:  # the published form
    different = logits.argmax(-1) != other.argmax(-1)
    published = (different * (softmax(logits)[..., 1] - label) ** 2).sum() / different.sum()
    np.testing.assert_allclose(function(logits, other, label), published, rtol=1e-4)
  both_grads = jax.jit(jax.grad(function, argnums=(0, 1)))
  grad, of_other = both_grads(logits, other, label)
  assert ((np.abs(grad).max(-1) > 0) == (logits.argmax(-1) != other.argmax(-1))).all() and not of_other.any()
  right = np.take_along_axis(np.asarray(grad), label[..., None], -1)
  assert (right <= 0).all()  # the label's class rises
  assert function(logits, logits, label) == 0 and not both_grads(logits, logits, label)[0].any()


def build(name, make=small_networks, classes=2, **options):
  module = methods.load(name)
  return module.build(config.parse(module.Options, options), make(classes), optax.sgd(0.1, 0.9), Task(4, 100))


def batch_of(image, label):
  half, index = len(image) // 2, np.arange(len(image) // 2, dtype=np.int32)
  labelled = {"image": image[:half], "label": label[:half].astype(np.int32), "index": index}
  return {"labelled": labelled, "unlabelled": {"image": image[half:], "index": index}}


@functools.cache
def compiled(name, classes=2, only=None):
  """A method, its first state, a batch, and its compiled step; `only` this term may count."""
  weights = methods.load(name).Options().weights
  method = build(name, classes=classes, weights=weights if only is None else {term: float(term == only) for term in weights})
  image = normal(4, *SHAPE[1:], 1)
  batch = batch_of(image, np.digitize(image[..., 0], [0.0, 1.0][: classes - 1]))
  state = jax.jit(method.init)(jax.random.key(0), batch)
  return method, state, batch, jax.jit(method.steps["train"])


def output_of(network, state, batch, name="a"):
  """What the student saw in the first step: the same dropout."""
  key = rng.key_for(jax.random.key(1), state.step, f"dropout_{name}")
  image = np.concatenate([batch["labelled"]["image"], batch["unlabelled"]["image"]])
  return jax.jit(lambda s: forward(network, s.students[name], s.stats[name], image, key=key)[0])(state)


@pytest.mark.parametrize("name", ["urpc", "mc_net", "mc_net_plus"])
def test_losses_of_heads(name):
  extra = {"urpc": {"scales": True}, "mc_net": {"further": ("x",)}, "mc_net_plus": {"further": ("x", "y")}}[name]
  method, state, batch, step = compiled(name, classes=3)
  metrics = step(state, batch, jax.random.key(1))[1]
  heads = [np.asarray(h) for h in output_of(small_networks(3).backbone(**extra), state, batch).heads]
  assert len(heads) == {"urpc": 4, "mc_net": 2, "mc_net_plus": 3}[name]
  label = batch["labelled"]["label"]
  if name == "urpc":
    expected = np.mean([ce_dice_numpy(h[:2], label) for h in heads]), pyramid_numpy([h[2:] for h in heads])
    weights = 1.0, 0.1
  else:
    expected = sum(dice_numpy(softmax(h[:2]), label) for h in heads), mutual_numpy(heads)
    weights = 0.5, 1.0
  np.testing.assert_allclose((metrics["loss_supervised"], metrics["loss_consistency"]), expected, rtol=1e-3)
  total = weights[0] * expected[0] + weights[1] * np.exp(-5) * expected[1]  # the ramp begins at exp(−5)
  np.testing.assert_allclose(metrics["loss"], total, rtol=1e-3)
  prob = [softmax(np.asarray(h)) for h in evaluated(state, batch, small_networks(3).backbone(**extra))]
  np.testing.assert_allclose(jax.jit(method.predict)(state, batch["labelled"]["image"]), prob[0], atol=1e-5)
  np.testing.assert_allclose(method.predict_also["mean"](state, batch["labelled"]["image"]), np.mean(prob, axis=0), atol=1e-5)
  assert build(name, evaluated="mean").predict_also.keys() == {"first"}


def evaluated(state, batch, network):
  variables = {"params": state.students["a"], "batch_stats": state.stats["a"]}
  return network.apply(variables, batch["labelled"]["image"], train=False).heads


def test_the_consistency_rises():
  _, state, batch, step = compiled("mc_net", classes=3)
  for at, expected in ((149, np.exp(-5.0)), (150 * 20, np.exp(-5 * 0.25)), (150 * 60, 1.0)):
    found = step(dataclasses.replace(state, step=jnp.int32(at)), batch, jax.random.key(1))[1]
    np.testing.assert_allclose((found["loss"] - 0.5 * found["loss_supervised"]) / found["loss_consistency"], expected, rtol=1e-3)


def test_losses_of_mcf():
  method, state, batch, step = compiled("mcf", classes=3)
  metrics = step(state, batch, jax.random.key(1))[1]
  pair = {"a": small_networks(3).backbone(), "b": small_networks(3).backbone(residual=True)}
  a, b = (np.asarray(output_of(network, state, batch, name).logits) for name, network in pair.items())
  label = batch["labelled"]["label"]
  dice = [dice_numpy(softmax(x[:2]), label) for x in (a, b)]
  np.testing.assert_allclose(metrics["loss_supervised"], sum(nll(x[:2], label).mean() for x in (a, b)) + sum(dice), rtol=1e-4)
  expected = review_numpy(a[:2], b[:2], label) + review_numpy(b[:2], a[:2], label)
  np.testing.assert_allclose(metrics["loss_rectification"], expected, rtol=1e-4)
  better, worse = (a, b) if dice[0] < dice[1] else (b, a)
  assert metrics["a_teaches"] == (dice[0] < dice[1])
  expected = ((softmax(worse[2:]) - sharpened(softmax(better[2:]))) ** 2).mean()
  np.testing.assert_allclose(metrics["loss_consistency"], expected, rtol=1e-3)
  np.testing.assert_allclose(metrics["different"], (a[2:].argmax(-1) != b[2:].argmax(-1)).mean(), rtol=1e-5)
  total = metrics["loss_supervised"] + 0.5 * metrics["loss_rectification"] + 0.1 * np.exp(-5) * metrics["loss_consistency"]
  np.testing.assert_allclose(metrics["loss"], total, rtol=1e-5)
  image = batch["labelled"]["image"]
  each = [method.predict_also[f"network_{name}"](state, image) for name in "ab"]
  np.testing.assert_allclose(jax.jit(method.predict)(state, image), np.mean(each, axis=0), atol=1e-6)


@pytest.mark.parametrize("winner", ["a", "b"])
def test_the_network_with_the_lower_dice_loss_teaches_and_does_not_learn(winner):
  _, state, batch, step = compiled("mcf", only="consistency")
  batch = {**batch, "labelled": {**batch["labelled"], "label": np.ones_like(batch["labelled"]["label"])}}
  students = {
    name: {**s, "output": {**s["output"], "bias": jnp.array([0.0, 1.0]) if name == winner else jnp.array([1.0, 0.0])}}
    for name, s in state.students.items()
  }
  for s in students.values():
    s["output"]["kernel"] = 0.1 * s["output"]["kernel"]
  state = dataclasses.replace(state, students=students)
  new, metrics = step(state, batch, jax.random.key(1))
  assert metrics["a_teaches"] == (winner == "a")
  changed = {name: bool(np.any(new.students[name]["output"]["bias"] != students[name]["output"]["bias"])) for name in "ab"}
  assert changed == {"a": winner == "b", "b": winner == "a"}
  loser = "b" if winner == "a" else "a"
  assert new.students[loser]["output"]["bias"][1] > students[loser]["output"]["bias"][1]  # towards the teacher's class


@pytest.mark.parametrize("name", NAMES)
def test_a_hundred_steps_on_phantoms(name):
  pairs = [make_phantom((16, 16, 16), np.random.default_rng(i)) for i in range(4)]
  image, label = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
  image = image.reshape(4, 16, 16, 16, 1).astype(np.float32)
  image, label = image[:, :, :, 8], label[:, :, :, 8]  # a slice is enough
  method, batch = build(name, slice_networks, ramp=0.0), batch_of(image, label)
  state = jax.jit(method.init)(jax.random.key(0), batch)
  walk = lambda state, _: method.steps["train"](state, batch, jax.random.key(1))
  _, metrics = jax.jit(lambda state: jax.lax.scan(walk, state, None, 100))(state)
  assert metrics["loss_supervised"][-10:].mean() < 0.8 * metrics["loss_supervised"][:5].mean()
  assert (metrics["loss_consistency"] > 0).all() and metrics["loss_consistency"].std() > 1e-4


@pytest.mark.parametrize(
  ("name", "network", "options", "message"),
  [
    ("mc_net", {}, {"further": ()}, "config.method.further: needs at least one"),
    ("mc_net_plus", {}, {"further": ("cubic",)}, "config.method.further: no decoder 'cubic'"),
    ("mc_net", {"name": "unet3d"}, {}, "config.network.name: 'unet3d' has no 'further'"),
    ("mcf", {"name": "unet3d"}, {}, "config.network.name: 'unet3d' has no 'residual'"),
  ],
)
def test_bad_settings_are_refused(name, network, options, message):
  with pytest.raises(InputError, match=message):
    build(name, lambda classes: Networks(NetworkConfig(**network), classes), **options)


FLAT = np.random.default_rng(0).normal(size=(2, 16, 16, 1)).astype(np.float32)


def drawn(network):
  """Variables of a network from NumPy, since drawing each by its own key takes long to compile."""
  shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), FLAT, train=False))
  generator = np.random.default_rng(2)
  return jax.tree.map(lambda a: np.abs(generator.normal(size=a.shape)).astype(np.float32) * 0.5 - 0.1 * (len(a.shape) > 1), shapes)


@pytest.mark.parametrize("kind", [VNet, UNet2D])
def test_each_decoder_is_that_of_a_network_of_its_own(kind, monkeypatch):
  """The first keeps all names, so its checkpoints fit; the others differ by a prefix alone."""
  monkeypatch.setattr(vnet, "ENCODER_BLOCKS", (1, 1, 1, 1, 1))
  monkeypatch.setattr(vnet, "DECODER_BLOCKS", (1, 1, 1, 1))
  network = kind(2, 2, dropout=0.0)
  both = network.clone(further=("trilinear",), scales=True)
  variables = drawn(both)
  of_first = lambda tree: {k: v for k, v in tree.items() if not k.startswith(("branch2_", "scales"))}
  of_second = lambda tree: {**of_first(tree), **{k[8:]: v for k, v in tree.items() if k.startswith("branch2_")}}
  first, second = ({c: of(tree) for c, tree in variables.items()} for of in (of_first, of_second))
  run = jax.jit(lambda net, v: net.apply(v, FLAT, train=False), static_argnums=0)
  heads = run(both, variables).heads
  np.testing.assert_allclose(heads[0], run(network, first).logits, rtol=1e-4)
  np.testing.assert_allclose(heads[1], run(network.clone(upsample="trilinear"), second).logits, rtol=1e-4)
  assert not np.allclose(heads[0], heads[1], rtol=1e-2)
  alone = jax.eval_shape(lambda: network.init(jax.random.key(0), FLAT, train=False))
  assert jax.tree.map(lambda a: a.shape, alone) == jax.tree.map(lambda a: a.shape, first)
  assert len(heads) == 5 and {h.shape for h in heads} == {(2, 16, 16, 2)}
  if kind is UNet2D:  # nearest: blocks of one value
    for head, block in zip(heads[2:], (2, 4, 8), strict=True):
      blocks = np.asarray(head).reshape(2, 16 // block, block, 16 // block, block, 2)
      assert np.ptp(np.ptp(blocks, axis=4), axis=2).max() == 0 and np.ptp(head, axis=1).max() > 0


@pytest.mark.parametrize("network", [VNet(3, 2, scales=True), UNet3D(3, 2, scales=True), VNet(3, 2, residual=True)], ids=str)
def test_shapes_in_three_dimensions(network):
  image = jax.ShapeDtypeStruct((1, 16, 32, 16, 2), jnp.float32)
  variables = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, train=False), image)
  out = jax.eval_shape(lambda v, x: network.apply(v, x, train=False), variables, image)
  assert out.logits.shape == (1, 16, 32, 16, 3) and out.bottleneck.shape == (1, 1, 2, 1, 32)
  if getattr(network, "residual", False):
    assert len(variables["params"]) == 2 * (1 + 2 * 16 + 4) + 2 * (9 + 4) + 1  # a ResNet-34's convolutions, and the V-Net's decoder
  else:
    assert [head.shape for head in out.heads] == [(1, 16, 32, 16, 3)] * 4


def test_a_residual_block_whose_branch_is_silent_passes_its_input_on(monkeypatch):
  monkeypatch.setattr(vnet, "DECODER_BLOCKS", (1, 1, 1, 1))
  monkeypatch.setattr(vnet, "RESIDUAL_BLOCKS", (1, 2, 2, 1, 1))
  network = VNet(2, 2, residual=True)
  variables = drawn(network)
  second = lambda k: "block1" in k and k.endswith("norm1")
  muted = {k: jax.tree.map(jnp.zeros_like, v) if second(k) else v for k, v in variables["params"].items()}
  run = jax.jit(lambda net, v: net.apply(v, FLAT, train=False).logits, static_argnums=0)
  found, full = run(network, {**variables, "params": muted}), run(network, variables)
  assert not np.allclose(found, full, rtol=1e-2)
  monkeypatch.setattr(vnet, "RESIDUAL_BLOCKS", (1, 1, 1, 1, 1))
  shallow = {c: {k: v for k, v in tree.items() if "block1" not in k} for c, tree in variables.items()}
  np.testing.assert_allclose(run(network.clone(dropout=0.1), shallow), found, rtol=1e-4)  # another network, so that it is traced again


def test_a_residual_unet_whose_branches_are_silent_is_five_small_convolutions():
  network, x = UNet2D(2, 2, residual=True), FLAT
  variables = drawn(network)
  params = {
    k: jax.tree.map(jnp.zeros_like, v) if k.startswith("encoder") and k.endswith("_norm1") else v for k, v in variables["params"].items()
  }
  found = jax.jit(lambda v: network.apply(v, FLAT, train=False).bottleneck)({**variables, "params": params})
  for level in range(1, 6):
    x = x if level == 1 else x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).max((2, 4))
    layer, norm, old = (
      variables[c][f"encoder{level}_short{n}"] for c, n in (("params", ""), ("params", "_norm"), ("batch_stats", "_norm"))
    )
    x = (x @ layer["kernel"] + layer["bias"] - old["mean"]) / np.sqrt(old["var"] + 1e-5) * norm["scale"] + norm["bias"]
    x = np.where(x > 0, x, 0.01 * x)
  np.testing.assert_allclose(found, x, rtol=1e-3, atol=1e-5)


def test_perturbations_of_the_scales():
  x = np.abs(normal(3, 8, 8, 4))
  kept = np.asarray(drop_strongest(jax.random.key(0), x))
  strength = x.mean(-1)
  lost = (kept == 0).all(-1)
  for sample in range(3):
    assert lost[sample].any() and not lost[sample].all()
    assert strength[sample][lost[sample]].min() > strength[sample][~lost[sample]].max()
    assert strength[sample][~lost[sample]].max() < 0.9 * strength[sample].max()
    assert strength[sample][lost[sample]].min() >= 0.7 * strength[sample].max()
  np.testing.assert_array_equal(kept[~lost], x[~lost])
  factor = np.asarray(scale_noise(jax.random.key(0), x)) / x
  assert 0.7 <= factor.min() < 0.75 and 1.25 < factor.max() <= 1.3
  np.testing.assert_allclose(factor[0], factor[1], rtol=1e-4)


def test_scales_are_perturbed_in_training_only():
  rng = np.random.default_rng(0)  # many voxels near the strongest, so that another share of it drops others
  levels = [rng.uniform(0.5, 1.0, (1, 8 * 2**k, 8 * 2**k, 4)).astype(np.float32) for k in range(3)]
  heads = ScaleHeads(2, mode="nearest")
  variables = jax.jit(heads.init, static_argnums=2)(jax.random.key(0), levels, False)
  run = jax.jit(lambda key, perturbed: heads.apply(variables, levels, perturbed, rngs={"dropout": jax.random.key(key)}), static_argnums=1)
  plain = run(0, False)
  for level, (x, found) in enumerate(zip(levels, plain, strict=True), start=1):
    layer = variables["params"][f"level{level}"]
    expected = (x @ np.asarray(layer["kernel"]) + layer["bias"]).repeat(2 ** (4 - level), 1).repeat(2 ** (4 - level), 2)
    np.testing.assert_allclose(found, expected, atol=1e-5)
  jax.tree.map(np.testing.assert_array_equal, plain, run(1, False))
  for unperturbed, *others in zip(plain, *(run(key, True) for key in range(3)), strict=True):
    assert all(np.abs(unperturbed - x).max() > 1e-4 for x in others)
    assert any(np.abs(others[0] - x).max() > 1e-4 for x in others[1:])
