"""Agreement and disagreement of two networks."""

import jax
import jax.numpy as jnp
from jax import Array

from ssl_jax.ops.contrast import unit
from ssl_jax.ops.segmentation import cross_entropy


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
