"""The 2D U-Net against the published PyTorch code, and its own rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import networks
from ssl_jax.interop import torch_weights
from ssl_jax.interop.torch_weights import load_unet2d, load_weights
from ssl_jax.networks.unet import UNet2D
from ssl_jax.ops import conv
from ssl_jax.ops.initial import init_module
from ssl_jax.types import InputError, NetworkConfig
from tests.helpers import ROOT

IMAGE = np.random.default_rng(0).normal(size=(4, 32, 16, 1)).astype(np.float32)
DECODERS = {"trilinear": "bilinear", "transpose": "transpose"}  # ours and the oracle's


def oracle_of(upsample):
  oracle = np.load(ROOT / "tests" / "data" / f"unet2d_{DECODERS[upsample]}.npz")
  return oracle, {key.removeprefix("sd/"): oracle[key] for key in oracle.files if key.startswith("sd/")}


@pytest.mark.parametrize("upsample", DECODERS)
def test_inference_matches_the_published_code(upsample, monkeypatch):
  monkeypatch.setattr(conv, "_SMALL", 0)
  oracle, weights = oracle_of(upsample)
  network, x = UNet2D(num_classes=4, width=2, upsample=upsample), np.moveaxis(oracle["x"], 1, -1)
  variables = load_unet2d(weights)
  out = jax.jit(lambda v: network.apply(v, x, train=False))(variables)
  expected = np.moveaxis(oracle["eval_logits"], 1, -1)
  np.testing.assert_allclose(out.logits, expected, atol=2e-6)  # untrained, its logits vary by 6e-4 within an image
  assert [f.shape for f in out[1:]] == [(2, 16, 12, 8), (2, 32, 24, 4), (2, 64, 48, 2), (2, 4, 3, 32)]
  init = jax.eval_shape(lambda: network.init(jax.random.key(0), x, train=False))
  assert jax.tree.map(lambda a: (a.shape, a.dtype), variables) == jax.tree.map(lambda a: (a.shape, a.dtype), dict(init))


@pytest.fixture(scope="module", params=["transpose", "trilinear"])
def small(request):
  """A width-2 network, its variables, and its passes, compiled once per decoder: (key) -> output."""
  network = UNet2D(num_classes=3, width=2, upsample=request.param)
  variables = jax.jit(lambda key: init_module(network, key, IMAGE, train=False))(jax.random.key(0))
  run = jax.jit(
    lambda key, dropout, perturb: network.apply(variables, IMAGE, train=True, dropout=dropout, perturb=perturb, rngs={"dropout": key}),
    static_argnums=(1, 2),
  )
  return network, variables, run


def test_gradients_reach_every_parameter_and_running_averages_follow(small):
  network, variables, _ = small

  def loss(params, key):
    out, new = network.apply({**variables, "params": params}, IMAGE, train=True, mutable=["batch_stats"], rngs={"dropout": key})
    return jnp.mean(out.logits**2), new["batch_stats"]

  grads, stats = jax.jit(jax.grad(loss, has_aux=True))(variables["params"], jax.random.key(1))
  for path, grad in jax.tree_util.tree_leaves_with_path(grads):
    assert np.isfinite(grad).all(), path
    assert np.abs(grad).max() > 0 or "conv" in str(path), path  # a bias before BatchNorm has none
  changed = jax.tree.map(lambda old, new: not np.array_equal(old, new), variables["batch_stats"], stats)
  assert len(jax.tree.leaves(changed)) == 2 * 18 and all(jax.tree.leaves(changed))


def test_perturbation_drops_channels_for_the_decoder_whatever_dropout_says(small):
  _, _, run = small
  plain = run(jax.random.key(0), False, 0.0)
  lost, other, again = (run(jax.random.key(k), False, 0.5) for k in (0, 1, 0))
  level_5, full = (np.asarray(out.bottleneck).reshape(4, -1, 32) for out in (lost, plain))
  off = (level_5 == 0).all(1)
  assert 0.25 < off.mean() < 0.75 and not np.array_equal(off[0], off[1])  # whole channels, drawn for every sample
  np.testing.assert_allclose(level_5.swapaxes(1, 2)[~off], 2 * full.swapaxes(1, 2)[~off], rtol=1e-4, atol=1e-6)
  assert jnp.array_equal(lost.logits, again.logits)
  assert not jnp.array_equal(lost.logits, other.logits) and not jnp.array_equal(lost.logits, plain.logits)


def test_every_encoder_level_is_perturbed():
  """A decoder that sees one skip alone still changes with the key."""
  network = UNet2D(num_classes=2, width=2, upsample="nearest")
  variables = jax.jit(lambda key: init_module(network, key, IMAGE[:1], train=False))(jax.random.key(0))
  run = jax.jit(
    lambda params, key: network.apply({**variables, "params": params}, IMAGE[:1], train=False, perturb=0.5, rngs={"dropout": key})
  )
  keys = [jax.random.key(k) for k in range(4)]
  for level in range(1, 5):
    params = dict(variables["params"])
    up = params[f"decoder{level}_up"]  # nothing comes from below
    params[f"decoder{level}_up"] = jax.tree.map(jnp.zeros_like, up)
    logits = [np.asarray(run(params, key).logits) for key in keys]
    assert any(not np.allclose(logits[0], x, atol=1e-7) for x in logits[1:]), level


def test_dropout_only_when_asked_and_by_key(small):
  _, _, run = small
  a, b = (run(jax.random.key(k), True, 0.0).logits for k in range(2))
  assert not jnp.array_equal(a, b)
  np.testing.assert_array_equal(run(jax.random.key(0), False, 0.0).logits, run(jax.random.key(1), False, 0.0).logits)


def test_dropout_rates_of_the_levels():
  """The share of zeros behind each encoder level's dropout: the published rates."""
  network = UNet2D(num_classes=2, width=4, dropout=0.5)
  x = np.random.default_rng(1).normal(size=(8, 32, 32, 1)).astype(np.float32)

  @jax.jit
  def dropped(key):
    rngs, mutable = {"params": key, "dropout": key}, ["params", "intermediates", "batch_stats"]
    return network.apply({}, x, train=True, rngs=rngs, capture_intermediates=True, mutable=mutable)[1]["intermediates"]

  found = dropped(jax.random.key(1))
  shares = [float(np.mean(np.asarray(found[f"encoder{i}_dropout"]["__call__"][0]) == 0)) for i in range(1, 6)]
  np.testing.assert_allclose(shares, [0.05, 0.1, 0.2, 0.3, 0.5], rtol=0.12)


def test_views_have_statistics_of_their_own(small):
  network, variables, _ = small
  run = lambda x, views: network.apply(variables, x, train=True, dropout=False, views=views, mutable=["batch_stats"])
  both, stats = jax.jit(lambda: run(IMAGE, 2))()
  first, first_stats = jax.jit(lambda: run(IMAGE[:2], 1))()
  np.testing.assert_allclose(both.logits[:2], first.logits, atol=1e-4)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), stats, first_stats)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (
      lambda net: net.init(jax.random.key(0), jnp.zeros((1, 16, 24, 1)), train=False),
      r"config.data.patch: .*multiple of 16; got \(16, 24\)",
    ),
    (lambda net: net.init(jax.random.key(0), jnp.zeros((3, 16, 16, 1)), train=False, views=2), "2 views need equal"),
  ],
)
def test_wrong_shapes_are_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call(UNet2D(2, 2))


def test_it_is_found_by_name():
  cfg = NetworkConfig(name="unet2d", width=4, upsample="trilinear", dropout=0.25, dtype="bfloat16")
  network = networks.build(cfg, num_classes=5)
  assert network == UNet2D(num_classes=5, width=4, upsample="trilinear", dropout=0.25, dtype=jnp.dtype("bfloat16"))
  with pytest.raises(InputError, match="config.network.name: 'unet2d' has no 'cma'"):
    networks.build(cfg, num_classes=2, cma=True)
  variables = jax.eval_shape(lambda: network.init(jax.random.key(0), IMAGE, train=False))
  out = jax.eval_shape(lambda v: network.apply(v, IMAGE, train=False), variables)
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
  assert (out.logits.dtype, out.f4.dtype) == (jnp.float32, jnp.bfloat16)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda w: w.pop("decoder.up2.conv.conv_conv.4.bias"), "up2.conv.conv_conv.4.bias: missing"),
    (lambda w: w.pop("encoder.in_conv.conv_conv.0.weight"), "in_conv.conv_conv.0.weight .* not the weights of a 2D U-Net"),
    (lambda w: w.update({"decoder.up5.up.bias": np.zeros(3)}), "up5.up.bias: unknown; the 2D U-Net"),
    (lambda w: w.update({"decoder.out_conv.bias": np.zeros(3)}), r"out_conv.bias: has shape \(3,\)"),
  ],
)
def test_wrong_weights_are_named(change, message):
  _, weights = oracle_of("transpose")
  change(weights)
  with pytest.raises(InputError, match=message):
    load_unet2d(weights)


@pytest.mark.parametrize("upsample", DECODERS)
def test_the_command_knows_a_unet(upsample, tmp_path, capsys):
  _, weights = oracle_of(upsample)
  np.savez(tmp_path / "published.npz", **weights)
  assert torch_weights.main([str(tmp_path / "published.npz"), str(tmp_path / "ours.npz")]) == 0
  assert "2D U-Net of width 2, 1 channel(s), 4 classes, upsample " + upsample in capsys.readouterr().out
  jax.tree.map(np.testing.assert_array_equal, load_weights(tmp_path / "ours.npz"), load_unet2d(weights))
