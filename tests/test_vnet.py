"""V-Net against the published PyTorch code, and its own rules."""

import functools
import math
import os
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import networks
from ssl_jax.interop.torch_weights import load_vnet
from ssl_jax.networks import attention
from ssl_jax.networks.blocks import BatchNorm
from ssl_jax.networks.vnet import VNet
from ssl_jax.ops import conv, order
from ssl_jax.ops.initial import init_module
from ssl_jax.types import InputError, NetworkConfig

DATA = pathlib.Path(__file__).parent / "data"
IMAGE = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 16, 16, 1)), jnp.float32)


def channels_last(a):
  return np.moveaxis(a, 1, -1)


@pytest.fixture(scope="module", params=[("transpose", 0), ("trilinear", conv._SMALL)], ids=["transpose, all fast", "trilinear, as is"])
def published(request):
  """The oracle, and what our network makes of the same weights and input: once with the CPU's own convolutions at every level."""
  upsample, small = request.param
  oracle = np.load(DATA / f"vnet_{upsample}.npz")
  variables = load_vnet({key.removeprefix("sd/"): oracle[key] for key in oracle.files if key.startswith("sd/")})
  network = VNet(num_classes=2, width=2, upsample=upsample, dropout=0.0)
  x = jnp.asarray(channels_last(oracle["x"]))

  def train_loss(params):
    out, new = network.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
    return jnp.mean(out.logits**2), (out.logits, new["batch_stats"])

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(conv, "_SMALL", small)
    (loss, (logits, stats)), grads = jax.jit(jax.value_and_grad(train_loss, has_aux=True))(variables["params"])
    # The oracle's averages are those after this very pass, but it was evaluated before: new = 0.9 old + 0.1 batch, solved for old.
    earlier = jax.tree.map(lambda old, new: (old - (new - 0.9 * old)) / 0.9, variables["batch_stats"], stats)
    evaluated = jax.jit(lambda v: network.apply(v, x, train=False))({**variables, "batch_stats": earlier})
  return {"oracle": oracle, "variables": variables, "eval": evaluated, "loss": loss, "logits": logits, "stats": stats, "grads": grads}


def test_inference_matches_the_published_code(published):
  """And so do the running averages of every layer, from which the evaluated ones are computed."""
  oracle, found = published["oracle"], published["eval"]
  np.testing.assert_allclose(found.logits, channels_last(oracle["eval_logits"]), atol=1e-4)
  np.testing.assert_allclose(found.f4, channels_last(oracle["eval_features"]), atol=1e-4)
  assert [f.shape for f in found[1:]] == [(2, 8, 8, 4, 8), (2, 16, 16, 8, 4), (2, 32, 32, 16, 2), (2, 2, 2, 1, 32)]


def test_training_pass_and_gradients_match_the_published_code(published):
  oracle, grads = published["oracle"], published["grads"]
  np.testing.assert_allclose(published["logits"], channels_last(oracle["train_logits"]), atol=1e-3)
  np.testing.assert_allclose(published["loss"], oracle["train_loss_mean_sq"], rtol=1e-3)
  for torch_name, name in (("encoder.block_one.conv.0", "encoder1_conv0"), ("decoder.block_six.conv.0", "decoder1_conv0")):
    expected = np.transpose(oracle[f"grad/{torch_name}.weight"], (2, 3, 4, 1, 0))
    np.testing.assert_allclose(grads[name]["kernel"], expected, atol=1e-3 * np.abs(expected).max())


def test_running_averages_of_the_first_layer(published):
  """0.9 of the old value and 0.1 of the batch's, its variance unbiased."""
  variables = published["variables"]
  layer = variables["params"]["encoder1_conv0"]
  x = jnp.asarray(channels_last(published["oracle"]["x"]))
  y = np.asarray(conv._xla(x, jnp.asarray(layer["kernel"])) + layer["bias"], np.float64).reshape(-1, 2)
  old, new = variables["batch_stats"]["encoder1_norm0"], published["stats"]["encoder1_norm0"]
  np.testing.assert_allclose(new["mean"], 0.9 * old["mean"] + 0.1 * y.mean(0), atol=1e-5)
  np.testing.assert_allclose(new["var"], 0.9 * old["var"] + 0.1 * y.var(0, ddof=1), rtol=1e-4)


def test_running_variance_is_unbiased_and_of_the_first_view():
  x = jnp.asarray([[1.0], [3.0], [10.0], [30.0]]).reshape(4, 1, 1, 1)
  norm, bias = BatchNorm(), jnp.zeros(1)
  variables = norm.init(jax.random.key(0), x, bias, False)
  for views, mean, var in ((1, 11.0, 526 / 3), (2, 2.0, 2.0)):
    y, new = norm.apply(variables, x, bias, True, views, mutable=["batch_stats"])
    np.testing.assert_allclose(new["batch_stats"]["mean"], 0.1 * mean, rtol=1e-6)
    np.testing.assert_allclose(new["batch_stats"]["var"], 0.9 + 0.1 * var, rtol=1e-6)
    np.testing.assert_allclose(y.reshape(views, -1).mean(1), 0.0, atol=1e-5)
  assert jnp.array_equal(norm.apply(variables, x, bias, True), norm.apply(variables, x, bias, True, mutable=["batch_stats"])[0])


def test_a_bias_in_front_of_batch_norm_counts_as_if_it_had_been_added():
  x, bias = jax.random.normal(jax.random.key(0), (4, 6, 6, 3)), jnp.asarray([-2.0, 0.5, 3.0])
  norm = BatchNorm(relu=True)
  variables = norm.init(jax.random.key(0), x, bias, False)
  apart, added = (norm.apply(variables, *given, True, 2, mutable=["batch_stats"]) for given in ((x, bias), (x + bias, 0 * bias)))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), apart, added)
  assert np.abs(apart[1]["batch_stats"]["mean"] - 0.1 * bias).max() < 0.1
  trained = {**variables, **apart[1]}
  np.testing.assert_allclose(norm.apply(trained, x, bias, False), norm.apply(trained, x + bias, 0 * bias, False), atol=1e-5)


@pytest.fixture(scope="module")
def small():
  """A width-2 network with dropout, its variables, and its training pass, compiled once: (variables, key) -> output."""
  network = VNet(num_classes=3, width=2)
  variables = jax.jit(lambda key: init_module(network, key, IMAGE, train=False))(jax.random.key(0))
  # conftest.py turns fusion emitters off; without them rounding exceeds the bounds below.
  is_off = "xla_cpu_use_fusion_emitters=false" in os.environ.get("XLA_FLAGS", "")
  as_users_do = {"compiler_options": {"xla_cpu_use_fusion_emitters": True}} if is_off else {}
  dropped = jax.jit(lambda v, key: network.apply(v, IMAGE, train=True, rngs={"dropout": key}), **as_users_do)
  teacher = jax.jit(
    lambda v, key: network.apply(v, IMAGE, train=True, dropout=False, mutable=["batch_stats"], rngs={"dropout": key})[0], **as_users_do
  )
  return network, variables, dropped, teacher


def test_initialisation_is_pytorchs(small):
  params = small[1]["params"]
  fan_in = {"encoder1_conv0": 27, "encoder3_conv1": 8 * 27, "encoder2_down": 2 * 8, "decoder1_up": 16 * 8, "output": 2}
  for name, fan in fan_in.items():
    bound = 1 / np.sqrt(fan)
    for leaf in ("kernel", "bias"):
      values = np.abs(params[name][leaf])
      assert values.max() <= bound
      if values.size > 100:
        np.testing.assert_allclose(values.mean(), bound / 2, rtol=0.15)
        assert values.max() > 0.95 * bound
  assert (params["encoder1_norm0"]["scale"] == 1).all() and (params["encoder1_norm0"]["bias"] == 0).all()
  assert len(params) == 2 * (12 + 9 + 8) + 1  # 12 + 9 blocks and 8 changes of resolution, each with a BatchNorm, and the output


def test_dropout_drops_whole_channels(small):
  _, variables, dropped, _ = small
  out, other, again = (dropped(variables, jax.random.key(seed)) for seed in (0, 1, 0))
  level_5 = np.asarray(out.bottleneck).reshape(2, -1, 32)
  off = (level_5 == 0).all(1)
  assert 0.2 < off.mean() < 0.8
  assert not jnp.array_equal(off[0], off[1])  # drawn for every sample
  assert not jnp.array_equal(out.logits, other.logits)
  assert jnp.array_equal(out.logits, again.logits)


def test_teacher_mode_is_deterministic_and_uses_batch_statistics(small):
  network, variables, dropped, teacher = small
  first, second = (teacher(variables, jax.random.key(seed)) for seed in (0, 1))
  assert jnp.array_equal(first.logits, second.logits)
  scaled = jax.tree.map(lambda a: 7.0 * a + 1.0, variables["batch_stats"])
  assert jnp.array_equal(first.logits, teacher({**variables, "batch_stats": scaled}, jax.random.key(0)).logits)
  kept = np.asarray(dropped(variables, jax.random.key(0)).bottleneck)
  full = np.broadcast_to(first.bottleneck, kept.shape)
  np.testing.assert_allclose(kept[kept != 0], 2.0 * full[kept != 0], rtol=1e-4)  # what stays is scaled by 1 / (1 − ½)


@pytest.mark.parametrize("upsample", ["transpose", "trilinear", "nearest"])
@pytest.mark.parametrize("spatial", [(32, 16), (16, 16, 32)], ids=str)
def test_shapes_in_two_and_three_dimensions(upsample, spatial):
  network = VNet(num_classes=3, width=2, upsample=upsample)
  x = jax.ShapeDtypeStruct((2, *spatial, 4), jnp.float32)
  variables = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, train=False), x)
  out = jax.eval_shape(lambda v, x: network.apply(v, x, train=False), variables, x)
  assert out.logits.shape == (2, *spatial, 3)
  assert out.f2.shape == (2, *(s // 4 for s in spatial), 8)
  assert out.f3.shape == (2, *(s // 2 for s in spatial), 4)
  up = variables["params"]["decoder1_up"]
  kernel = up["kernel"] if upsample == "transpose" else up["conv"]["kernel"]
  assert kernel.shape == (*((2 if upsample == "transpose" else 3),) * len(spatial), 32, 16)


def test_two_dimensional_training_pass():
  """Its first layer is the 3D one of a single slice, where 3³ kernels act through their middle plane only."""
  network = VNet(num_classes=2, width=2, upsample="nearest", dropout=0.0)
  x = IMAGE[:, :, :, 0]
  variables = jax.jit(lambda key: init_module(network, key, x, train=False))(jax.random.key(1))
  out, new = jax.jit(lambda v: network.apply(v, x, train=True, mutable=["batch_stats"]))(variables)
  assert out.logits.shape == (2, 32, 16, 2) and np.isfinite(out.logits).all()
  first = variables["params"]["encoder1_conv0"]
  deep = jnp.zeros((3, 3, 3, 1, 2)).at[:, :, 1].set(first["kernel"])
  mean = (conv._xla(x[:, :, :, None], deep) + first["bias"]).mean((0, 1, 2, 3))
  np.testing.assert_allclose(new["batch_stats"]["encoder1_norm0"]["mean"], 0.1 * mean, atol=1e-5)


def test_bfloat16_keeps_parameters_and_logits_in_float32():
  network = VNet(num_classes=2, width=2, dtype=jnp.bfloat16)
  variables = jax.eval_shape(lambda: network.init(jax.random.key(0), IMAGE, train=False))
  out = jax.eval_shape(lambda v: network.apply(v, IMAGE, train=False), variables)
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
  assert (out.logits.dtype, out.f4.dtype) == (jnp.float32, jnp.bfloat16)


def test_sides_must_be_multiples_of_16():
  with pytest.raises(ValueError, match=r"config.data.patch: .*multiple of 16; got \(16, 24, 16\)"):
    VNet(2, 2).init(jax.random.key(0), jnp.zeros((1, 16, 24, 16, 1)), train=False)


def test_views_must_divide_the_batch():
  with pytest.raises(ValueError, match="2 views need equal"):
    VNet(2, 2).init(jax.random.key(0), jnp.zeros((3, 16, 16, 1)), train=False, views=2)


def test_build():
  network = networks.build(NetworkConfig(width=4, upsample="nearest", dtype="bfloat16", dropout=0.25), num_classes=5)
  assert network == VNet(num_classes=5, width=4, upsample="nearest", dropout=0.25, dtype=jnp.dtype("bfloat16"))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"name": "vnt"}, "config.network.name: no 'vnt'; did you mean 'vnet'?"),
    ({"width": 0}, "config.network: needs width >= 1 and 0 <= dropout < 1, got 0 and 0.5"),
    ({"dropout": 1.0}, "got 16 and 1.0"),
  ],
)
def test_build_refuses(changes, message):
  with pytest.raises(InputError) as caught:
    networks.build(NetworkConfig(**changes), num_classes=2)
  assert message in str(caught.value)


def test_attention_drops_weights_at_its_rate():
  ones = jnp.ones((2, 64, 4, 8))
  attend = functools.partial(attention.attend, ones, ones, ones, jax.random.key(0))
  for rate in (0.5, 0.1):  # a sum of 64 independent weights (1/64)/(1 − rate), each kept with 1 − rate
    out = attend(rate)[..., 0]
    assert abs(out.mean() - 1) < 0.03 and abs(out.std() / math.sqrt(rate / (1 - rate) / 64) - 1) < 0.1
  np.testing.assert_array_equal(attend(0.5, deterministic=True), nn.dot_product_attention(ones, ones, ones))


@pytest.mark.parametrize("deterministic", [False, True])
def test_attention_of_one_sample_after_the_other_is_that_of_all(deterministic, monkeypatch):
  arrays = tuple(np.random.default_rng(i).normal(size=(3, 8, 2, 4)).astype(np.float32) for i in range(3))

  def attend(arrays):
    out = attention.attend(*arrays, jax.random.key(0), 0.5, deterministic)
    return jnp.sum(jnp.sin(out)), out

  run = lambda: jax.value_and_grad(attend, has_aux=True)(arrays)
  expected = run()
  monkeypatch.setattr(order, "_LARGE", 1)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), run(), expected)
