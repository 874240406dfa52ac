"""Small networks on single voxels' features."""

import flax.linen as nn
import jax.numpy as jnp

from ssl_jax.networks.blocks import Conv, RowBatchNorm
from ssl_jax.types import Array


class Projection(nn.Module):
  """Linear – BatchNorm – ReLU – Linear; CAML's projection and prediction heads (§2.3) [C].

  Attributes:
    features: width of the hidden and the output layer.
  """

  features: int = 64

  @nn.compact
  def __call__(self, rows: Array, counted: Array | None = None, *, train: bool) -> Array:
    """Maps f32[m, in] to f32[m, features].

    Args:
      rows: voxel features; gradient flows here.
      counted: bool[m], the rows whose statistics BatchNorm uses; `None` is all of them.
      train: statistics of these rows instead of the running averages.
    """
    hidden = Conv(self.features, size=1, name="hidden")(rows)
    counted = jnp.ones(rows.shape[0], bool) if counted is None else counted
    return Conv(self.features, size=1, name="output")(nn.relu(RowBatchNorm(name="norm")(hidden, counted, train)))
