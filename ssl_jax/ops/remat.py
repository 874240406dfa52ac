"""What a network keeps for its gradient where memory is short: convolutions and statistics."""

import jax
from jax import Array
from jax.ad_checkpoint import checkpoint_name

_KEPT = "kept"
POLICY = jax.checkpoint_policies.save_only_these_names(_KEPT)


@jax.custom_vjp
def kept(x: Array) -> Array:
  """Returns x, marked as dear to compute and small enough to keep for the gradient."""
  return x


kept.defvjp(lambda x: (checkpoint_name(x, _KEPT), None), lambda _, grad: (grad,))
