"""Perturbations that change a prediction most."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from ssl_jax.ops import draw
from ssl_jax.ops.contrast import unit


def unit_by_sample(x: Array) -> Array:
  """Scales each sample of f32[B, ...] to length 1, however small it is; a zero sample stays zero."""
  rows = x.reshape(len(x), -1)
  largest = jnp.max(jnp.abs(rows), axis=-1, keepdims=True)
  return unit(rows / jnp.where(largest > 0, largest, 1.0)).reshape(x.shape)


def adversarial_noise(
  key: Array, image: Array, distance: Callable[[Array], Array], *, xi: float, epsilon: float, iterations: int = 1
) -> Array:
  """Finds, by power iterations, the noise of a given length that moves the prediction furthest.

  d ← U(−½, ½) scaled to length 1; d ← ∇_d D(x + ξ d) scaled to length 1, `iterations` times; r = ε d.

  Args:
    key: PRNG key.
    image: f32[B, *spatial, channels].
    distance: D, images -> f32[], how far their prediction lies from that of `image`.
    xi: ξ, length of the step at whose end the gradient is taken.
    epsilon: ε, length of the noise, over all voxels of a sample.
    iterations: of the power method.

  Returns:
    r, f32 of the image's shape; no gradient flows through it.

  Source: Miyato et al. 2018, eqs. 15–17; SS-Net's code, which starts from uniform noise [C].
  """
  direction = unit_by_sample(draw.in_rows(jax.random.uniform, key, image.shape, minval=-0.5, maxval=0.5))
  for _ in range(iterations):
    direction = unit_by_sample(jax.grad(lambda d: distance(image + xi * d))(direction))
  return jax.lax.stop_gradient(epsilon * direction)
