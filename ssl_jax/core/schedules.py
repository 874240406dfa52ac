"""Schedules over the training step."""

from collections.abc import Callable

import jax.numpy as jnp

from ssl_jax.types import Array, OptimConfig


def ramp(t: Array | float, length: float) -> Array:
  """Gaussian ramp-up exp(−5 (1 − min(t, T)/T)²); 1 when T = 0.

  Args:
    t: current time, in the unit of `length`.
    length: T >= 0.

  Source: Laine and Aila, temporal ensembling; used by every method here [L].
  """
  if length == 0:
    return jnp.float32(1.0)
  return jnp.exp(-5.0 * (1.0 - jnp.clip(jnp.asarray(t, jnp.float32) / length, 0.0, 1.0)) ** 2)


def learning_rate(cfg: OptimConfig, num_steps: int) -> Callable[[Array], Array]:
  """Returns step -> learning rate.

  `constant`; `poly`: lr · (1 − step/num_steps)^power; `step`: lr · factor^⌊max(step − from, 0)/every⌋.
  """
  if cfg.schedule == "constant":
    return lambda step: jnp.full_like(step, cfg.lr, jnp.float32)
  if cfg.schedule == "step":
    return lambda step: cfg.lr * cfg.step_factor ** (jnp.maximum(step - cfg.step_from, 0) // cfg.step_every)
  return lambda step: cfg.lr * (1.0 - jnp.clip(step / num_steps, 0.0, 1.0)) ** cfg.poly_power
