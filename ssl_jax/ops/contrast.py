"""Contrastive loss over voxels drawn from masks."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from ssl_jax.ops.select import draw, take


def unit(x: Array) -> Array:
  """Returns `x` scaled to length 1 along its last axis; a zero vector stays zero."""
  return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)


def info_nce(anchors: Array, positive: Array, negatives: Array, temperature: float) -> Array:
  """Mean over anchors a of −log( e^{cos(a, p)/t} / (e^{cos(a, p)/t} + Σ_n e^{cos(a, n)/t}) ).

  Args:
    anchors: f32[m, d]; gradient flows here.
    positive: f32[d], shared by all anchors; no gradient.
    negatives: f32[k, d]; no gradient.
    temperature: t > 0, dimensionless.

  Returns:
    f32[] in nats.

  Source: CRLN, eq. 14.
  """
  others = jax.lax.stop_gradient(jnp.concatenate([positive[None], negatives]))
  similarity = unit(anchors) @ unit(others).T / temperature
  return jnp.mean(jax.nn.logsumexp(similarity, axis=-1) - similarity[:, 0])


def prototype_contrast(rows: Array, present: Array, temperature: float) -> Array:
  """Draws voxels to the mean of their class and away from those of other classes.

  Mean over present classes and their voxels of −log( e^{cos(z, μ_c)/t} / Σ_k e^{cos(z, μ_k)/t} ), μ_c the mean of z/|z| over class c.

  Args:
    rows: f32[C, n, d], n voxels z of every class; gradient flows here, not through μ.
    present: bool[C], classes that have voxels; the others take no part.
    temperature: t > 0, dimensionless.

  Returns:
    f32[] in nats.

  Source: ELSNet, pixel-prototype contrastive embedding.
  """
  rows = unit(rows)
  prototypes = jax.lax.stop_gradient(unit(jnp.mean(rows, axis=1)))
  similarity = jnp.where(present, rows @ prototypes.T / temperature, -1e30)
  own = jnp.diagonal(similarity, axis1=0, axis2=2).T
  each = jnp.mean(jax.nn.logsumexp(similarity, axis=-1) - own, axis=-1)
  return jnp.sum(jnp.where(present, each, 0.0)) / jnp.maximum(jnp.sum(present), 1)


def prototype_distance(rows: Array, weight: Array, prototypes: Array, valid: Array) -> Array:
  """Mean over voxels and prototypes of w_i / mean(w) · (1 − cos(z_i, m_j)): nothing pushes, all are pulled.

  Args:
    rows: f32[m, d], z; gradient flows here.
    weight: f32[m], w > 0; gradient flows here.
    prototypes: f32[k, d], m; no gradient.
    valid: bool[k]; without any the result is arbitrary but finite.

  Source: SS-Net, class separation [C].
  """
  centre = jnp.sum(jnp.where(valid[:, None], unit(jax.lax.stop_gradient(prototypes)), 0.0), axis=0) / jnp.maximum(jnp.sum(valid), 1)
  return jnp.mean(weight / jnp.mean(weight) * (1.0 - unit(rows) @ centre))


def unassertive(mean_feature: Array, prototype: Array, xi: Array | float) -> Array:
  """Returns (r_m + ξ P̄) / (1 + ξ), f32[F].

  Source: CRLN, eq. 13.
  """
  return (mean_feature + xi * prototype) / (1.0 + xi)


def positive_supervision(
  key: Array,
  context: Array,
  prob: Array,
  label: Array,
  reliable: Array,
  prototypes: Array,
  project: Callable[[Array], Array],
  *,
  tau: float,
  num_anchors: int,
  num_negatives: int,
  temperature: float,
  positive: str = "unassertive",
  xi: float | None = 0.6,
) -> tuple[Array, Array]:
  """Collaborative positive supervision: uncertain voxels are drawn towards an unassertive representation of their class.

  Args:
    key: PRNG key.
    context: f32[B, *spatial, n], voxel features before projection; gradient flows here through the anchors alone [L].
    prob: f32[B, *spatial, C], the student's own probabilities; no gradient.
    label: i32[B, *spatial], labels and pseudo-labels.
    reliable: bool[B, *spatial], whether the label counts.
    prototypes: f32[C, R, F]; no gradient.
    project: f32[m, n] -> f32[m, F], linear; only drawn rows and class means are projected.
    tau: a reliable voxel is an anchor where the student gives its class less than this.
    num_anchors, num_negatives: draws per class.
    temperature: t > 0.
    positive: "unassertive" (eq. 13), "mean" (the class's mean feature) or "prototype" (the class's mean prototype).
    xi: ξ of eq. 13; `None` draws it from U(0, 1) per class.

  Returns:
    Mean over anchors and present classes, f32[]; a class without anchor, positive or negative does not count. And the share of the
    batch's voxels that are anchors of each class, f32[C].

  Source: CRLN, eqs. 9–14.
  """
  num_classes, batch, width = prob.shape[-1], context.shape[0], context.shape[-1]
  rows, label, reliable = context.reshape(-1, width), label.reshape(batch, -1), reliable.reshape(batch, -1)
  own = jnp.sum(jax.nn.one_hot(label, num_classes) * prob.reshape(*label.shape, num_classes), axis=-1)

  def draw_class(c: Array, key_a: Array, key_n: Array) -> tuple[Array, ...]:
    member = reliable & (label == c)
    uncertain = member & (own < tau)
    index_a, has_anchor = draw(key_a, uncertain, num_anchors)  # Eqs. (9), (10)
    index_n, has_negative = draw(key_n, reliable & (label != c), num_negatives)  # Eqs. (11), (12)
    given = jax.lax.stop_gradient(rows)
    mean_row = member.reshape(1, -1).astype(rows.dtype) @ given / jnp.maximum(jnp.sum(member), 1)
    present = has_anchor & has_negative  # an anchor is reliable, so the class has a positive
    return index_a, given[index_n], mean_row, present, jnp.mean(uncertain)

  def loss_of_class(anchors: Array, negatives: Array, mean_row: Array, prototype: Array, key_xi: Array) -> Array:
    learned = jnp.mean(prototype, axis=0)
    if positive == "unassertive":
      target = unassertive(project(mean_row)[0], learned, jax.random.uniform(key_xi) if xi is None else xi)  # Eq. (13)
    elif positive == "mean":
      target = project(mean_row)[0]
    elif positive == "prototype":
      target = learned
    else:
      raise ValueError(f"config.method.positive: {positive!r} is none of unassertive, mean, prototype")
    return info_nce(project(anchors), target, project(negatives), temperature)  # Eq. (14)

  keys_a, keys_n, keys_xi = jax.vmap(lambda key: jax.random.split(key, 3), out_axes=1)(jax.random.split(key, num_classes))
  index, negatives, mean_rows, present, share = jax.vmap(draw_class)(jnp.arange(num_classes), keys_a, keys_n)
  anchors = take(rows, index.reshape(-1)).reshape(*index.shape, width)  # of all classes at once: one array of zeros for the gradient
  losses = jax.vmap(loss_of_class)(anchors, negatives, mean_rows, prototypes, keys_xi)
  return jnp.sum(jnp.where(present, losses, 0.0)) / jnp.maximum(jnp.sum(present), 1), share
