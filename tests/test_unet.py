"""The 3D U-Net: shapes, statistics per sample, the skip's place, pooling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import networks
from ssl_jax.networks.blocks import InstanceNorm, max_pool2
from ssl_jax.networks.unet import UNet3D
from ssl_jax.ops.initial import init_module
from ssl_jax.types import InputError, NetworkConfig

IMAGE = np.random.default_rng(0).normal(size=(2, 16, 32, 16, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def small():
  network = UNet3D(num_classes=3, width=2)
  variables = jax.jit(lambda key: init_module(network, key, IMAGE, train=False))(jax.random.key(0))
  return variables, jax.jit(lambda v, x: network.apply(v, x, train=False))


def test_outputs_have_the_widths_that_methods_expect(small):
  variables, apply = small
  out = apply(variables, IMAGE)
  assert out.logits.shape == (2, 16, 32, 16, 3)
  assert (out.f2.shape, out.f3.shape, out.f4.shape) == ((2, 4, 8, 4, 8), (2, 8, 16, 8, 4), (2, 16, 32, 16, 2))
  assert out.bottleneck.shape == (2, 1, 2, 1, 32)
  assert set(variables) == {"params"}  # no running averages
  assert variables["params"]["decoder1_conv0"]["kernel"].shape == (3, 3, 3, 16 + 32, 16)  # skip and upsampled, concatenated


def test_a_samples_prediction_depends_on_no_other(small):
  variables, apply = small
  both, one = apply(variables, IMAGE), apply(variables, IMAGE[1:])
  np.testing.assert_allclose(both.logits[1:], one.logits, atol=1e-3)


def test_gain_and_offset_of_the_image_do_not_matter_inside(small):
  """InstanceNorm removes them after the first convolution, but for the zero padding at the border."""
  variables, apply = small
  params = {**variables["params"], "encoder1_conv0": {"kernel": jnp.ones((3, 3, 3, 1, 2)) / 27, "bias": jnp.zeros(2)}}
  a, b = (apply({"params": params}, x).logits for x in (IMAGE, 5 * IMAGE))
  np.testing.assert_allclose(a, b, atol=2e-2)


def test_dropout_only_when_asked(small):
  variables, _ = small
  network = UNet3D(num_classes=3, width=2)
  run = jax.jit(lambda key, dropout: network.apply(variables, IMAGE, train=True, dropout=dropout, rngs={"dropout": key}), static_argnums=1)
  a, b = (run(jax.random.key(k), True).logits for k in range(2))
  assert not jnp.array_equal(a, b)
  np.testing.assert_array_equal(run(jax.random.key(0), False).logits, run(jax.random.key(1), False).logits)


def test_instance_norm_with_relu():
  x = 3 * IMAGE + 2
  expected = np.maximum((x - x.mean((1, 2, 3), keepdims=True)) / np.sqrt(x.var((1, 2, 3), keepdims=True) + 1e-5), 0)
  np.testing.assert_allclose(InstanceNorm().apply({}, x), expected, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 6, 4, 3), (1, 4, 6, 2, 3)])
def test_max_pool(shape):
  x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
  blocks = x.reshape(shape[0], *(n for side in shape[1:-1] for n in (side // 2, 2)), shape[-1])
  expected = blocks.max(tuple(range(2, 2 * len(shape) - 3, 2)))
  np.testing.assert_array_equal(max_pool2(x), expected)
  assert np.asarray(jax.grad(lambda x: jnp.sum(max_pool2(x)))(x)).sum() == expected.size


def test_it_is_found_by_name_and_refuses_what_only_v_net_has():
  network = networks.build(NetworkConfig(name="unet3d", width=4, dropout=0.3), num_classes=2)
  assert isinstance(network, UNet3D) and network.width == 4
  with pytest.raises(InputError, match="config.network.name: 'unet3d' has no 'cma'"):
    networks.build(NetworkConfig(name="unet3d"), num_classes=2, cma=True)


def test_sides_must_be_multiples_of_16():
  with pytest.raises(ValueError, match=r"config.data.patch: .*multiple of 16; got \(16, 24, 16\)"):
    UNet3D(2, 2).init(jax.random.key(0), jnp.zeros((1, 16, 24, 16, 1)), train=False)
