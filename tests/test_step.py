"""Pieces of the training step that no method's own test reaches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.core import step

X = np.linspace(-1, 1, 4 * 5 * 3, dtype=np.float32).reshape(4, 5, 3)
PARTS = [{"x": x, "weight": np.float32(weight)} for x, weight in zip(X, (1, 0.5, 0, 2), strict=True)]
PARAMS = {"w": np.full((3, 2), 0.3, np.float32), "b": np.array([0.1, -0.2], np.float32)}


def loss_fn(params, carry, part):
  y = jnp.tanh(part["x"] @ params["w"] + params["b"])
  return part["weight"] * jnp.sum(y * y) * (1 + carry), (carry + jnp.mean(part["x"]), {"mean": jnp.mean(y)})


def one_sum(params, parts):
  total, carry, means = 0.0, jnp.float32(0.5), []
  for part in parts:
    loss, (carry, metrics) = loss_fn(params, carry, part)
    total, means = total + loss, [*means, metrics["mean"]]
  return total, (carry, {"mean": jnp.stack(means)})


@pytest.mark.parametrize("alike", [True, False])
def test_in_turn_is_the_sum_of_the_parts_with_its_gradient(alike):
  parts = PARTS if alike else [*PARTS, {"x": X[0, :2], "weight": np.float32(3)}]
  in_turn = lambda params: step.in_turn(loss_fn, params, jnp.float32(0.5), parts)
  together = lambda params: one_sum(params, parts)
  close = lambda a, b: jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)
  close(jax.jit(in_turn)(PARAMS), together(PARAMS))
  close(*(jax.jit(jax.value_and_grad(fn, has_aux=True))(PARAMS) for fn in (in_turn, together)))
  close(*(jax.jit(jax.grad(lambda p, fn=fn: 3 * fn(p)[0]))(PARAMS) for fn in (in_turn, together)))
  assert ("scan[" in str(jax.make_jaxpr(in_turn)(PARAMS))) == alike


def test_parts_need_the_memory_of_one():
  def deep(params, carry, part):
    for _ in range(24):
      part = jnp.tanh(part @ params)
    return jnp.sum(part), (carry, {})

  given = jnp.eye(64), jnp.zeros(()), list(jnp.ones((8, 4096, 64)))
  total = jax.jit(jax.value_and_grad(lambda *args: step.in_turn(deep, *args), has_aux=True))
  needs = total.lower(*given).compile().memory_analysis().temp_size_in_bytes
  together = 8 * 24 * given[2][0].nbytes
  assert needs < together / 4


def test_a_weight_of_no_term_is_named():
  with pytest.raises(ValueError, match=r"config\.method\.weights\.psuedo: no such loss term; known: pseudo, supervised"):
    step.require_known({"psuedo": 1.0}, ("supervised", "pseudo"))
