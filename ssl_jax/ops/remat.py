"""What a network keeps for its gradient: convolutions and statistics; where memory is short, or much would be kept twice, nothing else."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

_KEPT = "kept"
_LARGE = 1 << 25  # elements, as four images of 112×112×80 with 16 channels have
POLICY = jax.checkpoint_policies.save_only_these_names(_KEPT)


@jax.custom_vjp
def kept(x: Array) -> Array:
  """Returns x, marked as dear to compute and small enough to keep for the gradient."""
  return x


kept.defvjp(lambda x: (checkpoint_name(x, _KEPT), None), lambda _, grad: (grad,))


def again(x: Array, y: Array) -> Array:
  """Returns x; on a CPU, what a gradient computes of a large one is then computed once y is there, and not kept from the forward pass.

  XLA:CPU takes two x for one where a barrier alone tells them apart, and orders past barriers. So this adds 0, in a way that makes it y's:
  where y's first value is NaN, so is the result.
  """
  if jax.default_backend() != "cpu" or x.size < _LARGE:
    return x
  some = y[(0,) * y.ndim]
  return x + jnp.where(some == some, 0, some).astype(x.dtype)
