"""Correlations of voxels with stored features, and their consistency between two networks."""

import jax
import jax.numpy as jnp
from jax import Array, lax

from ssl_jax.ops.contrast import unit

_CACHED = 1 << 19  # elements of a block of correlations that stays in a CPU's cache


def correlation(rows: Array, columns: Array, valid: Array, temperature: float, cosine: bool) -> Array:
  """Row-wise softmax of similarities: S[i, j] = exp(s(z_i, p_j) / t) / Σ_k exp(s(z_i, p_k) / t) over valid columns.

  Args:
    rows: f32[m, d] embeddings z; gradient flows here.
    columns: f32[n, d] stored features p; no gradient.
    valid: bool[n].
    temperature: t > 0.
    cosine: s is the cosine instead of the dot product.

  Returns:
    f32[m, n], 0 in columns that are not valid; without any valid column all is 0.

  Source: CAML, eq. 2; dot product [C], cosine [P].
  """
  columns = jax.lax.stop_gradient(columns)
  similarity = (unit(rows) @ unit(columns).T if cosine else rows @ columns.T) / temperature
  similarity = jnp.where(valid, similarity, -1e30)
  power = valid * jnp.exp(similarity - jax.lax.stop_gradient(jnp.max(similarity, axis=-1, keepdims=True)))
  return power / jnp.maximum(jnp.sum(power, axis=-1, keepdims=True), 1e-30)  # finite, and so its gradient, without any valid column


def correlation_consistency(s_v: Array, s_a: Array, counted: Array) -> Array:
  """l_o = −(1/m) Σ_rows Σ_columns S_a · log(S_v + 1e-8).

  Args:
    s_v, s_a: f32[m, n] correlations of the same voxels in the vanilla and the auxiliary network; gradient flows to both.
    counted: bool[m], rows that count.

  Returns:
    f32[] in nats; 0 when no row counts.

  Source: CAML, eq. 3.
  """
  each = -jnp.sum(s_a * jnp.log(s_v + 1e-8), axis=-1)
  return jnp.sum(jnp.where(counted, each, 0.0)) / jnp.maximum(jnp.sum(counted), 1)


def omni_correlation_consistency(
  rows_v: Array, rows_a: Array, columns: Array, valid: Array, counted: Array, temperature: float, cosine: bool
) -> Array:
  """Equations 2 and 3 at once, on a CPU for one block of rows after the other: no correlation is kept for the gradient.

  Args:
    rows_v, rows_a: f32[m, d] embeddings of the same voxels in the vanilla and the auxiliary network; gradient flows to both.
    columns, valid, temperature, cosine: see `correlation`.
    counted: bool[m], rows that count.

  Returns:
    f32[] in nats, as `correlation_consistency`; 0 when no row counts.

  Source: CAML, eqs. 2 and 3.
  """

  def of_block(block: tuple[Array, Array, Array]) -> Array:
    *rows, counted = block
    s_v, s_a = (correlation(z, columns, valid, temperature, cosine) for z in rows)
    return correlation_consistency(s_v, s_a, counted) * jnp.sum(counted)

  size = len(counted) if jax.default_backend() != "cpu" else min(len(counted), max(_CACHED // len(columns), 1))
  blocks = lambda a: jnp.pad(a, [(0, -len(a) % size), *[(0, 0)] * (a.ndim - 1)]).reshape(-1, size, *a.shape[1:])
  sums = lax.map(jax.checkpoint(of_block), (blocks(rows_v), blocks(rows_a), blocks(counted)))
  return jnp.sum(sums) / jnp.maximum(jnp.sum(counted), 1)
