"""Draws in rows against JAX's own, and dropout by its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.ops import draw

KEY = jax.random.key(3)


@pytest.mark.parametrize("sampler", [jax.random.normal, jax.random.uniform])
def test_rows_change_no_value(sampler):
  shape = (2, 5, 3, 4, 1)
  np.testing.assert_array_equal(draw.in_rows(sampler, KEY, shape), sampler(KEY, shape))


@pytest.mark.parametrize(("rate", "dropped"), [(0.05, 13), (0.3, 77), (0.5, 128), (0.0001, 1), (0.9999, 255)])
@pytest.mark.parametrize("shape", [(4, 64, 64, 16), (3, 1, 50021)])
def test_dropout_drops_the_rate_keeps_the_expectation_and_passes_the_gradient_where_it_kept(rate, dropped, shape):
  share, x = dropped / 256, jnp.full(shape, 2.0)
  found, pull = jax.vjp(lambda x: draw.dropout(KEY, x, rate), x)
  np.testing.assert_allclose(np.unique(found), [0, 2 / (1 - share)], rtol=1e-6)
  error = np.sqrt(share * (1 - share) / found.size)
  assert abs(np.mean(found == 0) - share) < 4 * error
  np.testing.assert_array_equal(pull(x)[0], found)
  assert len(np.unique(np.asarray(found == 0).reshape(shape[0], -1), axis=0)) == shape[0]  # every sample its own


def test_dropout_of_neighbours_is_independent():
  dropped = np.asarray(draw.dropout(KEY, jnp.ones((1, 2**16)), 0.5)).ravel() == 0
  for lag in range(1, 9):
    assert abs(np.mean(dropped[lag:] == dropped[:-lag]) - 0.5) < 4 * 0.5 / np.sqrt(dropped.size - lag)


def test_without_a_rate_nothing_is_drawn_and_bfloat16_stays():
  x = jnp.ones((2, 3), jnp.bfloat16)
  assert draw.dropout(KEY, x, 0.0) is x and draw.dropout(KEY, x, 0.4).dtype == jnp.bfloat16
