"""Softmax written out class by class against jax.nn, which reduces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.ops.softmax import log_softmax, softmax

RNG = np.random.default_rng(0)
PAIRS = {"softmax": (softmax, jax.nn.softmax), "log_softmax": (log_softmax, jax.nn.log_softmax)}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("num_classes", [1, 2, 4, 40])
def test_value_and_gradient(name, num_classes):
  own, reference = PAIRS[name]
  x, weight = (jnp.asarray(RNG.normal(scale=20, size=(3, 5, num_classes)), jnp.float32) for _ in range(2))
  np.testing.assert_allclose(own(x), reference(x), rtol=1e-6, atol=1e-7)
  gradient_of = lambda f: jax.grad(lambda x: jnp.sum(weight * f(x) ** 2))(x)
  np.testing.assert_allclose(gradient_of(own), gradient_of(reference), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", PAIRS)
def test_large_logits_neither_overflow_nor_lose_their_gradient(name):
  own, reference = PAIRS[name]
  x = jnp.array([[1e4, -1e4, 0.0], [-3e38, 0.0, 3e38]], jnp.float32)
  np.testing.assert_array_equal(own(x), reference(x))
  assert np.isfinite(jax.grad(lambda x: jnp.sum(own(x)[0] * jnp.array([1.0, 0.0, 2.0])))(x)).all()


@pytest.mark.parametrize("name", PAIRS)
def test_gradient_of_a_gradient(name):
  own, reference = PAIRS[name]
  x = jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)
  norm_of = lambda f: lambda x: jnp.sum(jax.grad(lambda x: jnp.sum(f(x)[:, 0] ** 2))(x) ** 2)
  np.testing.assert_allclose(jax.grad(norm_of(own))(x), jax.grad(norm_of(reference))(x), rtol=1e-4, atol=1e-6)
