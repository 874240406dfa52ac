"""Agreement and disagreement of two networks."""

import jax
import jax.numpy as jnp
from jax import Array

from ssl_jax.ops.contrast import unit
from ssl_jax.ops.segmentation import cross_entropy


def sharpened_consistency(logits_a: Array, logits_b: Array, temperature: float) -> Array:
  """Σ_{i≠j} mean (p_i − sharpen(p_j))², sharpen(p) = p^{1/T} / Σ_c p_c^{1/T}.

  Args:
    logits_a, logits_b: f32[B, *spatial, C] of the same images; gradient flows to both, through both factors.
    temperature: T > 0.

  Returns:
    f32[], the mean over voxels and classes, both directions added.

  Source: published code of MC-Net and CAML [C].
  """
  sharpen = lambda logits: jax.nn.softmax(logits / temperature)  # p^{1/T} / Σ p^{1/T} without taking powers
  one_way = lambda logits, other: jnp.mean((jax.nn.softmax(logits) - sharpen(other)) ** 2)
  return one_way(logits_a, logits_b) + one_way(logits_b, logits_a)


def cross_pseudo_supervision(logits_a: Array, logits_b: Array) -> Array:
  """Cross-entropy of each network against the other's hard prediction, both directions added; targets carry no gradient.

  Args:
    logits_a, logits_b: f32[B, *spatial, C].

  Source: Chen et al. 2021; CAML, eq. 1 [P].
  """
  return cross_entropy(logits_a, jnp.argmax(logits_b, axis=-1)) + cross_entropy(logits_b, jnp.argmax(logits_a, axis=-1))


def feature_discrepancy(features: Array, other: Array) -> Array:
  """1 + mean over positions of cos(f, stop(f')): 0 where two networks see opposite things, 2 where they see the same.

  Args:
    features: f32[B, *spatial, F]; gradient flows here.
    other: f32[B, *spatial, F]; no gradient.

  Source: CML, eq. 1; mean of cosines over positions [C].
  """
  features, other = features.astype(jnp.float32), jax.lax.stop_gradient(other).astype(jnp.float32)
  return 1.0 + jnp.mean(jnp.sum(unit(features) * unit(other), axis=-1))


def dice_distance(prob: Array, other: Array, *, squared: bool = False) -> Array:
  """Soft Dice distance of two predictions, over the voxels of the whole batch.

  Plain: 1 − 2Σpq/(Σp + Σq), one sum over voxels and classes; 0 only where both are certain and equal.
  Squared: mean over classes of 1 − 2Σpq/(Σp² + Σq²); 0 where they are equal.

  Args:
    prob, other: f32[B, *spatial, C] probabilities; gradient flows to both.
    squared: which of the two.

  Source: code of SS-Net, plain on the Left Atrium, squared on ACDC [C].
  """
  axes = None if not squared else tuple(range(prob.ndim - 1))
  size = prob**2 + other**2 if squared else prob + other
  return jnp.mean(1.0 - (2.0 * jnp.sum(prob * other, axes) + 1e-8) / (jnp.sum(size, axes) + 1e-8))


def overlap_divergence(logits_a: Array, logits_b: Array, shared: Array) -> tuple[Array, Array]:
  """Compares two predictions where both saw the image.

  Args:
    logits_a, logits_b: f32[B, *spatial, C]; gradient flows to both.
    shared: bool[*spatial], the overlap.

  Returns:
    KL(p_b ‖ p_a) and the mean of both predictions' Σ_c p log p, each a mean over the overlap's voxels in nats, 0 without any.

  Source: TraCoCo, translation consistency.
  """
  log_a, log_b = (jax.nn.log_softmax(logits.astype(jnp.float32)) for logits in (logits_a, logits_b))
  over = lambda each: jnp.sum(jnp.where(shared, jnp.sum(each, axis=-1), 0.0)) / (jnp.maximum(jnp.sum(shared), 1) * len(logits_a))
  return over(jnp.exp(log_b) * (log_b - log_a)), 0.5 * over(jnp.exp(log_a) * log_a + jnp.exp(log_b) * log_b)
