"""Exponential moving average of parameters."""

import jax
import jax.numpy as jnp

from ssl_jax.types import Array, PyTree


def decay_at(step: Array, decay: float) -> Array:
  """Returns α = min(1 − 1/(step + 1), decay); 0 at step 0, so that the average starts at the student.

  Source: mean teacher's lineage (UA-MT) [L].
  """
  return jnp.minimum(1.0 - 1.0 / (step.astype(jnp.float32) + 1.0), decay)


def update(average: PyTree, value: PyTree, step: Array, decay: float) -> PyTree:
  """Returns θ_t ← α θ_t + (1 − α) θ_s, leaf by leaf; no gradient flows out.

  Args:
    average: EMA parameters θ_t.
    value: current parameters θ_s, the same tree.
    step: i32[], number of updates made before this one.
    decay: upper bound of α.
  """
  alpha = decay_at(step, decay)
  return jax.tree.map(lambda a, v: alpha * a + (1.0 - alpha) * jax.lax.stop_gradient(v), average, value)
