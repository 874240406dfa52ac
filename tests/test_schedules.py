"""Schedules by hand, SGD and Adam step by step."""

import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.core import optim
from ssl_jax.core.optim import sgd
from ssl_jax.core.schedules import learning_rate, ramp
from ssl_jax.types import OptimConfig


def test_ramp():
  np.testing.assert_allclose([ramp(t, 40.0) for t in (0, 20, 40, 80)], [np.exp(-5), np.exp(-1.25), 1, 1], rtol=1e-6)
  assert ramp(0, 0.0) == 1


@pytest.mark.parametrize(
  ("schedule", "expected"),
  [
    ("constant", {0: 0.1, 4999: 0.1}),
    ("poly", {0: 0.1, 5000: 0.1 * 0.5**0.9, 10000: 0.0}),
    ("step", {0: 0.1, 1999: 0.1, 4499: 0.1, 4500: 0.01, 6999: 0.01, 7000: 0.001}),
  ],
)
def test_learning_rate(schedule, expected):
  rate = learning_rate(OptimConfig(lr=0.1, schedule=schedule, step_from=2000), 10000)
  for step, value in expected.items():
    np.testing.assert_allclose(rate(jnp.int32(step)), value, rtol=1e-5, atol=1e-9)


def test_sgd_is_pytorchs():
  optimizer = sgd(OptimConfig(lr=0.1, momentum=0.9, weight_decay=0.01), 100)
  parameter, state = jnp.float32(2.0), None
  state = optimizer.init(parameter)
  value, buffer = 2.0, 0.0
  for gradient in (1.0, -0.5, 0.25):
    update, state = optimizer.update(jnp.float32(gradient), state, parameter)
    parameter = parameter + update
    buffer = 0.9 * buffer + gradient + 0.01 * value
    value -= 0.1 * buffer
    np.testing.assert_allclose(parameter, value, rtol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_is_pytorchs(decay):
  """Its update rule written out in float64; the decay enters the moments, unlike AdamW's."""
  rng = np.random.default_rng(0)
  cfg = OptimConfig(name="adam", lr=0.01, weight_decay=decay, schedule="poly")
  optimizer = optim.build(cfg, 10)
  value, mean, square = rng.normal(size=5), np.zeros(5), np.zeros(5)
  parameter = jnp.float32(value)
  state = optimizer.init(parameter)
  for step in range(6):
    gradient = rng.normal(size=5) * [1e-9, 1e-4, 1, 1, 100]  # the smallest is of the size of ε
    update, state = optimizer.update(jnp.float32(gradient), state, parameter)
    parameter = parameter + update
    g = gradient + decay * value
    mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g**2
    unbiased = mean / (1 - 0.9 ** (step + 1)), square / (1 - 0.999 ** (step + 1))
    value = value - 0.01 * (1 - step / 10) ** 0.9 * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)
    np.testing.assert_allclose(parameter, value, rtol=2e-5, atol=1e-6)


def test_the_configuration_names_the_optimizer():
  change = lambda **cfg: float((tx := optim.build(OptimConfig(lr=0.1, weight_decay=0.0, **cfg), 10)).update(5.0, tx.init(1.0), 1.0)[0])
  np.testing.assert_allclose([change(), change(name="adam")], [-0.5, -0.1], rtol=1e-5)
