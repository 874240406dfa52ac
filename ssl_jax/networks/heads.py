"""Small networks on single voxels' features."""

import flax.linen as nn
import jax.numpy as jnp

from ssl_jax.networks.blocks import Conv, RowBatchNorm
from ssl_jax.ops import norm
from ssl_jax.types import Array


class Projection(nn.Module):
  """Linear – BatchNorm – ReLU – Linear; CAML's projection and prediction heads (§2.3) [C].

  Attributes:
    features: width of the hidden layer.
    outputs: width of the output layer; 0: `features`.
    leak: slope of the rectifier below 0.
  """

  features: int = 64
  outputs: int = 0
  leak: float = 0.0

  @nn.compact
  def __call__(self, rows: Array, counted: Array | None = None, *, train: bool) -> Array:
    """Maps f32[m, in] to f32[m, outputs].

    Args:
      rows: voxel features; gradient flows here.
      counted: bool[m], the rows whose statistics BatchNorm uses; `None` is all of them.
      train: statistics of these rows instead of the running averages.
    """
    hidden = Conv(self.features, size=1, name="hidden")(rows)
    counted = jnp.ones(rows.shape[0], bool) if counted is None else counted
    hidden = norm.rectify(RowBatchNorm(name="norm")(hidden, counted, train), self.leak)
    return Conv(self.outputs or self.features, size=1, name="output")(hidden)
