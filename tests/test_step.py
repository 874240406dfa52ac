"""Pieces of the training step that no method's own test reaches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.core import step

PARTS = {"x": np.linspace(-1, 1, 4 * 5 * 3, dtype=np.float32).reshape(4, 5, 3), "weight": np.array([1, 0.5, 0, 2], np.float32)}
PARAMS = {"w": np.full((3, 2), 0.3, np.float32), "b": np.array([0.1, -0.2], np.float32)}


def loss_fn(params, carry, part):
  y = jnp.tanh(part["x"] @ params["w"] + params["b"])
  return part["weight"] * jnp.sum(y * y) * (1 + carry), (carry + jnp.mean(part["x"]), {"mean": jnp.mean(y)})


def one_sum(params):
  total, carry, means = 0.0, jnp.float32(0.5), []
  for i in range(4):
    loss, (carry, metrics) = loss_fn(params, carry, {name: array[i] for name, array in PARTS.items()})
    total, means = total + loss, [*means, metrics["mean"]]
  return total, (carry, {"mean": jnp.stack(means)})


@pytest.fixture(params=[0, 1 << 20], ids=["loop", "unrolled"])
def large_part(request, monkeypatch):
  monkeypatch.setattr(step, "_LARGE_PART", request.param)
  return request.param


def test_in_turn_is_the_sum_of_the_parts_with_its_gradient(large_part):
  in_turn = lambda params: step.in_turn(loss_fn, params, jnp.float32(0.5), PARTS)
  close = lambda a, b: jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)
  close(jax.jit(in_turn)(PARAMS), one_sum(PARAMS))
  close(*(jax.jit(jax.value_and_grad(fn, has_aux=True))(PARAMS) for fn in (in_turn, one_sum)))
  close(*(jax.jit(jax.grad(lambda p, fn=fn: 3 * fn(p)[0]))(PARAMS) for fn in (in_turn, one_sum)))
  assert str(jax.make_jaxpr(in_turn)(PARAMS)).count("scan[") == 1


def test_large_parts_need_the_memory_of_one(large_part):
  def deep(params, carry, part):
    for _ in range(6):
      part = jnp.tanh(part @ params)
    return jnp.sum(part), (carry, {})

  given = jnp.eye(64), jnp.zeros(()), jnp.ones((8, 4096, 64))
  total = jax.jit(jax.value_and_grad(lambda *args: step.in_turn(deep, *args), has_aux=True))
  needs = total.lower(*given).compile().memory_analysis().temp_size_in_bytes
  together = 8 * 6 * given[2][0].nbytes
  assert (needs < together / 4) == (large_part == 0)


def test_a_weight_of_no_term_is_named():
  with pytest.raises(ValueError, match=r"config\.method\.weights\.psuedo: no such loss term; known: pseudo, supervised"):
    step.require_known({"psuedo": 1.0}, ("supervised", "pseudo"))
