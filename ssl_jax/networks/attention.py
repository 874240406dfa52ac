"""CAML's cross-sample mutual attention."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax.networks.blocks import Conv, Dropout
from ssl_jax.ops import draw, order
from ssl_jax.types import Array


def attend(
  query: Array, key: Array, value: Array, dropout_rng: Any = None, dropout_rate: float = 0.0, deterministic: bool = False
) -> Array:
  """Flax's dot-product attention, but with the dropout of `ops.draw`: on a CPU 32 random bits a weight take as long as the rest of it.

  There large weights are those of one sample after the other, and are computed again for the gradient: CAML's published batch needs
  0.35 GiB so instead of 0.81.

  Args:
    query, key, value: [B, tokens, heads, width].
    dropout_rng: PRNG key, used unless `deterministic`.
    dropout_rate: of single weights.
    deterministic: whether nothing is dropped.

  Returns:
    [B, tokens, heads, width].
  """
  shape = (query.shape[0], query.shape[2], query.shape[1], key.shape[1])
  drawn = () if deterministic or not dropout_rate else (draw.random_bytes(dropout_rng, shape),)

  def of_samples(query: Array, key: Array, value: Array, *drawn: Array) -> Array:
    weights = nn.dot_product_attention_weights(query, key, deterministic=True)
    for byte in drawn:
      weights = draw.drop(byte, weights, dropout_rate)
    return jnp.einsum("...hqk,...khd->...qhd", weights, value)

  if not order.is_large(shape) or jax.default_backend() != "cpu":
    return of_samples(query, key, value, *drawn)
  of_sample = jax.checkpoint(of_samples)
  return jax.lax.map(lambda sample: of_sample(*sample), (query, key, value, *drawn))


class EncoderLayer(nn.Module):
  """Transformer encoder layer with PyTorch's order, constants and initialisation: residual, then LayerNorm, after each half.

  Attributes:
    heads: of the attention; divides the width.
    dropout: on attention weights, after attention, inside and after the MLP.
    dtype: compute precision.
  """

  heads: int = 4
  dropout: float = 0.5
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, dropout: bool) -> Array:
    """Maps [..., tokens, width] to the same shape; tokens attend to each other, the leading axes do not."""
    width = x.shape[-1]
    xavier = math.sqrt(6.0 / (4 * width))  # PyTorch counts the three input projections as one
    # Not `ops.initial.uniform`, which may draw later: Flax's attention reshapes its kernels as it makes them.
    uniform = lambda bound: lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)
    drop = lambda a, name: Dropout(self.dropout, name=name)(a, dropout)
    norm = lambda a, name: nn.LayerNorm(epsilon=1e-5, dtype=jnp.float32, name=name)(a).astype(self.dtype)

    attention = nn.MultiHeadDotProductAttention(
      num_heads=self.heads,
      dropout_rate=self.dropout,
      broadcast_dropout=False,
      kernel_init=uniform(xavier),
      out_kernel_init=uniform(1.0 / math.sqrt(width)),
      dtype=self.dtype,
      attention_fn=attend,
      name="attention",
    )
    x = norm(x + drop(attention(x, deterministic=not dropout), "dropout_attention"), "norm_attention")
    hidden = drop(nn.relu(Conv(4 * width, size=1, dtype=self.dtype, name="mlp_in")(x)), "dropout_mlp")
    return norm(x + drop(Conv(width, size=1, dtype=self.dtype, name="mlp_out")(hidden), "dropout_out"), "norm_mlp")


class CrossSampleAttention(nn.Module):
  """CMA: attention over the positions of each sample, then over the samples of the batch at each position (CAML §2.2)."""

  heads: int = 4
  dropout: float = 0.5
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, dropout: bool) -> Array:
    """Maps [B, *spatial, width] to the same shape; B is the global batch."""
    layer = lambda name: EncoderLayer(self.heads, self.dropout, self.dtype, name=name)
    tokens = layer("intra")(x.reshape(x.shape[0], -1, x.shape[-1]), dropout)
    tokens = layer("inter")(jnp.swapaxes(tokens, 0, 1), dropout)
    return jnp.swapaxes(tokens, 0, 1).reshape(x.shape)
