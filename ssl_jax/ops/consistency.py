"""Agreement and disagreement of several predictions of the same images."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from ssl_jax.ops.contrast import unit
from ssl_jax.ops.segmentation import cross_entropy
from ssl_jax.ops.softmax import log_softmax, softmax


def sharpen(logits: Array, temperature: float) -> Array:
  """p^{1/T} / Σ_c p_c^{1/T} of p = softmax(logits) f32[..., C], without taking powers; gradient flows through."""
  return softmax(logits / temperature)


def mean_squared(prob: Array, target: Array, mask: Array | None = None) -> Array:
  """Σ mask · (p − q)² / (C · Σ mask): the mean over the voxels that count and over classes.

  Args:
    prob: f32[B, *spatial, C]; gradient flows here.
    target: f32[B, *spatial, C] probabilities q; no gradient.
    mask: bool or f32[B, *spatial]; `None` counts every voxel.

  Returns:
    f32[]; 0 where no voxel counts.

  Source: mean teacher, Tarvainen and Valpola 2017; masked: UA-MT [C], whose two classes are C here [D].
  """
  squared = jnp.mean((prob - jax.lax.stop_gradient(target)) ** 2, axis=-1)
  return jnp.mean(squared) if mask is None else jnp.sum(mask * squared) / (jnp.sum(mask) + 1e-16)


def sharpened_consistency(logits_a: Array, logits_b: Array, temperature: float) -> Array:
  """Σ_{i≠j} mean (p_i − sharpen(p_j))², sharpen(p) = p^{1/T} / Σ_c p_c^{1/T}.

  Args:
    logits_a, logits_b: f32[B, *spatial, C] of the same images; gradient flows to both, through both factors.
    temperature: T > 0.

  Returns:
    f32[], the mean over voxels and classes, both directions added.

  Source: published code of MC-Net and CAML [C].
  """
  one_way = lambda logits, other: jnp.mean((softmax(logits) - sharpen(other, temperature)) ** 2)
  return one_way(logits_a, logits_b) + one_way(logits_b, logits_a)


def mutual_consistency(heads: Sequence[Array], temperature: float) -> Array:
  """Sum of `sharpened_consistency` over all pairs of heads f32[B, *spatial, C]; gradient flows to all.

  Source: published code of MC-Net and MC-Net+ [C].
  """
  return sum((sharpened_consistency(a, b, temperature) for a, b in itertools.combinations(heads, 2)), start=jnp.float32(0.0))


def pyramid_consistency(heads: Sequence[Array]) -> Array:
  """Mean over scales s of Σ d_s e^{−v_s} / Σ e^{−v_s} + mean v_s, d_s = (p_s − p̄)², v_s = KL(p̄ ‖ p_s), p̄ the mean over scales.

  Where a scale is far from the mean, v_s is large: such voxels count less in the first term and are drawn in by the second.

  Args:
    heads: f32[B, *spatial, C] logits each; gradient flows to all, through p̄ and v_s too.

  Returns:
    f32[]; d_s is averaged over classes, v_s summed over them.

  Source: URPC (Luo et al. 2021); published code [C].
  """
  log_prob = log_softmax(jnp.stack(heads).astype(jnp.float32))
  log_mean = jax.nn.logsumexp(log_prob, axis=0) - jnp.log(len(heads))  # finite where all heads are sure
  distance = jnp.mean((jnp.exp(log_prob) - jnp.exp(log_mean)) ** 2, axis=-1)
  variance = jnp.sum(jnp.exp(log_mean) * (log_mean - log_prob), axis=-1)
  trust, voxels = jnp.exp(-variance), tuple(range(1, variance.ndim))
  rectified = jnp.mean(distance * trust, voxels) / (jnp.mean(trust, voxels) + 1e-8)
  return jnp.mean(rectified + jnp.mean(variance, voxels))


def error_where_different(logits: Array, other: Array, label: Array) -> Array:
  """Mean of ½ Σ_c (p_c − y_c)² over the voxels where the two networks predict different classes; 0 where they nowhere do.

  Args:
    logits: f32[B, *spatial, C]; gradient flows here.
    other: f32[B, *spatial, C] of the other network; no gradient.
    label: i32[B, *spatial].

  Source: MCF, contrastive difference review. With two classes it is the published code's (p_1 − y)² [C]; for more [D].
  """
  different = jnp.argmax(logits, axis=-1) != jnp.argmax(other, axis=-1)
  target = jax.nn.one_hot(label, logits.shape[-1])
  error = 0.5 * jnp.sum((softmax(logits) - target) ** 2, axis=-1)
  return jnp.sum(different * error) / jnp.maximum(jnp.sum(different), 1)


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
  log_a, log_b = (log_softmax(logits.astype(jnp.float32)) for logits in (logits_a, logits_b))
  over = lambda each: jnp.sum(jnp.where(shared, jnp.sum(each, axis=-1), 0.0)) / (jnp.maximum(jnp.sum(shared), 1) * len(logits_a))
  return over(jnp.exp(log_b) * (log_b - log_a)), 0.5 * over(jnp.exp(log_a) * log_a + jnp.exp(log_b) * log_b)
