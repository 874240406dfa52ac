"""What a network keeps for its gradient when memory is short: convolutions and statistics; the rest is computed again from them."""

import jax
from jax import Array
from jax.ad_checkpoint import checkpoint_name

_KEPT = "kept"
POLICY = jax.checkpoint_policies.save_only_these_names(_KEPT)


def kept(x: Array) -> Array:
  """Returns x, marked as dear to compute and small enough to keep."""
  return checkpoint_name(x, _KEPT)
