"""First values: drawn together they are what each parameter would have drawn for itself."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.core.step import init_network
from ssl_jax.networks.blocks import Conv
from ssl_jax.networks.factory import Networks
from ssl_jax.ops.initial import init_module, uniform
from ssl_jax.types import NetworkConfig

IMAGE = jnp.zeros((2, 16, 16, 16, 1))


class Mixed(nn.Module):
  """Layers of this library beside Flax's own, whose draws do not wait, and parameters of one shape and other bounds."""

  @nn.compact
  def __call__(self, x, *, train):
    del train
    x = Conv(3, name="first")(x) + Conv(3, size=1, name="beside")(x)
    x = nn.LayerNorm()(nn.Dense(5)(x)) + self.param("free", uniform(2.0), (5,))
    return nn.Dense(1, kernel_init=uniform(0.5))(x)


NETWORKS = {
  "vnet": (lambda: Networks(NetworkConfig(width=2), 2).backbone(cma=True), IMAGE),
  "unet2d": (lambda: Networks(NetworkConfig(name="unet2d", width=2), 2).backbone(), IMAGE[..., 0, :]),
  "mixed": (Mixed, IMAGE),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_values_are_those_of_one_draw_each(name):
  make, image = NETWORKS[name]
  network = make()
  alone = jax.jit(lambda key: network.init(key, image, train=False))(jax.random.key(3))
  together = jax.jit(lambda key: init_module(network, key, image, train=False))(jax.random.key(3))
  assert jax.tree.structure(together) == jax.tree.structure(alone)
  jax.tree.map(np.testing.assert_array_equal, together, alone)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_every_parameter_has_its_own_key_and_bound(impl):
  params = jax.jit(lambda key: init_module(Mixed(), key, IMAGE, train=False))(jax.random.key(0, impl=impl))["params"]
  bounds = {("first", "kernel"): 27**-0.5, ("first", "bias"): 27**-0.5, ("beside", "kernel"): 1.0, ("Dense_1", "kernel"): 0.5}
  for (layer, leaf), bound in bounds.items():
    values = np.abs(params[layer][leaf])
    assert 0.3 * bound < values.max() <= bound, (layer, leaf)
  assert 1.0 < np.abs(params["free"]).max() <= 2.0
  units = [np.asarray(params[layer][leaf]).ravel()[:3] / bound for (layer, leaf), bound in bounds.items()]
  assert all(not np.allclose(a, b, atol=1e-3) for i, a in enumerate(units) for b in units[:i])


def test_a_network_is_few_draws():
  """A loop of 20 rounds for each of 60 parameters, and one for its key, took XLA longer to compile than all else of a first state."""
  network = Networks(NetworkConfig(width=2), 2).backbone()
  compiled = jax.jit(lambda key: init_network(network, key, IMAGE)).lower(jax.random.key(0)).compile()
  assert compiled.as_text().count(" while(") <= 10


def test_a_layer_that_changes_what_it_draws_is_refused():
  attention = nn.MultiHeadDotProductAttention(num_heads=2, kernel_init=uniform(1.0))
  with pytest.raises(TypeError, match="drawn later"):
    init_module(attention, jax.random.key(0), jnp.zeros((1, 4, 8)))


def test_an_initializer_that_splits_its_key_is_refused():
  split = lambda key, shape, dtype: jax.random.normal(jax.random.split(key)[0], shape, dtype)
  with pytest.raises(TypeError, match="only be drawn with"):
    jax.jit(lambda: init_module(nn.Dense(2, kernel_init=split), jax.random.key(0), jnp.zeros((1, 4)))).lower()
