"""Supervised segmentation losses, their confidence-masked forms, and entropy."""

import math

import jax
import jax.numpy as jnp
from jax import Array

from ssl_jax.ops.softmax import log_softmax, softmax


def cross_entropy(logits: Array, label: Array, mask: Array | None = None) -> Array:
  """Mean over all voxels of −log softmax(logits)[label], voxels outside `mask` counting as 0.

  Args:
    logits: f32[B, *spatial, C]; gradient flows here.
    label: i32[B, *spatial], values 0..C-1.
    mask: bool or f32[B, *spatial]; `None` keeps every voxel.

  Returns:
    f32[] in nats. The divisor is the number of all voxels, masked or not.
  """
  log_prob = log_softmax(logits.astype(jnp.float32))
  picked = jax.nn.one_hot(label, logits.shape[-1], dtype=log_prob.dtype) * log_prob
  return -jnp.sum(picked if mask is None else picked * mask[..., None]) / label.size


def confident_cross_entropy(logits: Array, target: Array, threshold: float, counted: Array, *, soft: bool = False) -> Array:
  """Mean over all voxels of 1[max target ≥ τ] · CE(logits, target).

  Args:
    logits: f32[B, *spatial, C]; gradient flows here.
    target: f32[B, *spatial, C] pseudo-label probabilities.
    threshold: τ.
    counted: bool[B, *spatial], voxels that may count at all.
    soft: compare with the probabilities instead of with their largest class.

  Source: CRLN, eq. 2; FixMatch.
  """
  mask = counted & (jnp.max(target, axis=-1) >= threshold)
  if not soft:
    return cross_entropy(logits, jnp.argmax(target, axis=-1), mask)
  return -jnp.mean(mask * jnp.sum(target * log_softmax(logits.astype(jnp.float32)), axis=-1))


def confident_regional_cross_entropy(logits: Array, target: Array, positive: float, negative: float) -> Array:
  """Learns the target's class where it is likely, and unlearns its unlikely classes.

  Mean over voxels with max q ≥ γ⁺ of −max q · log p_argmax, plus the mean over voxels and classes with q_c < γ⁻ of −q_c · log(1 − p_c).

  Args:
    logits: f32[B, *spatial, C] of p; gradient flows here.
    target: f32[B, *spatial, C], probabilities q; no gradient.
    positive, negative: γ⁺ and γ⁻.

  Returns:
    f32[] in nats; a part without any voxel is 0.

  Source: TraCoCo, CRC loss, weighted by q as in its code [C]; any number of classes [D].
  """
  target = jax.lax.stop_gradient(target)
  log_prob = log_softmax(logits.astype(jnp.float32))
  sure, best = jnp.max(target, axis=-1), jnp.argmax(target, axis=-1)
  picked = jnp.sum(jax.nn.one_hot(best, target.shape[-1], dtype=log_prob.dtype) * log_prob, axis=-1)
  without = jnp.log(jnp.clip(1.0 - jnp.exp(log_prob), 1e-6))
  mean_where = lambda each, where: -jnp.sum(jnp.where(where, each, 0.0)) / jnp.maximum(jnp.sum(where), 1)
  return mean_where(sure * picked, sure >= positive) + mean_where(target * without, target < negative)


def dice_soft(prob: Array, label: Array, smooth: float = 1e-5, mask: Array | None = None) -> Array:
  """Soft Dice loss: mean over samples and classes of 1 − (2Σpy + ε)/(Σp + Σy + ε).

  Args:
    prob: f32[B, *spatial, C]; gradient flows here.
    label: i32[B, *spatial].
    smooth: ε; an absent class that is not predicted costs 0.
    mask: bool[B, *spatial], the voxels that the sums run over; `None` for all.

  Source: published code of CML and BCP [C].
  """
  axes = tuple(range(1, prob.ndim - 1))
  target = jax.nn.one_hot(label, prob.shape[-1], dtype=prob.dtype)
  if mask is not None:
    prob, target = prob * mask[..., None], target * mask[..., None]
  overlap, size = jnp.sum(prob * target, axes), jnp.sum(prob, axes) + jnp.sum(target, axes)
  return jnp.mean(1.0 - (2.0 * overlap + smooth) / (size + smooth))


def dice_batch(prob: Array, label: Array, smooth: float = 1e-8, *, squared: bool = False) -> Array:
  """Soft Dice loss over the whole batch: mean over foreground classes of 1 − (2Σpy + ε)/(Σp + Σy + ε).

  Args:
    prob: f32[B, *spatial, C]; gradient flows here.
    label: i32[B, *spatial].
    smooth: ε.
    squared: Σp² instead of Σp.

  Source: published code of CAML [C]; squared, with ε = 1e-5, of SASSNet and DTC [C].
  """
  axes = tuple(range(prob.ndim - 1))
  prob, target = prob[..., 1:], jax.nn.one_hot(label, prob.shape[-1], dtype=prob.dtype)[..., 1:]
  overlap, size = jnp.sum(prob * target, axes), jnp.sum(prob**2 if squared else prob, axes) + jnp.sum(target, axes)
  return jnp.mean(1.0 - (2.0 * overlap + smooth) / (size + smooth))


def normalised_entropy(prob: Array) -> Array:
  """−Σ_c p log(p + 1e-6) / ln C of every voxel: 0 where one class is sure, 1 where all are equally likely, but for the 1e-6.

  Args:
    prob: f32[B, *spatial, C]; gradient flows here, finite at p = 0.

  Returns:
    f32[B, *spatial].

  Source: published code of UA-MT [C] and SSL4MIS [L].
  """
  return -jnp.sum(prob * jnp.log(prob + 1e-6), axis=-1) / math.log(prob.shape[-1])


def ce_dice(logits: Array, label: Array, mask: Array | None = None) -> Array:
  """Returns ℓ_s = ½ (CE + Dice) over logits f32[B, *spatial, C] and labels i32[B, *spatial], where `mask` bool[B, *spatial] holds.

  Source: CRLN, eq. 1; CML, eq. 7; CMEMS, eq. 6.
  """
  prob = softmax(logits.astype(jnp.float32))
  return 0.5 * (cross_entropy(logits, label, mask) + dice_soft(prob, label, mask=mask))
