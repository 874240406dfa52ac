"""What a network keeps for its gradient: convolutions and statistics; where memory is short, nothing else."""

import jax
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

_KEPT = "kept"
POLICY = jax.checkpoint_policies.save_only_these_names(_KEPT)


@jax.custom_vjp
def kept(x: Array) -> Array:
  """Returns x, marked as dear to compute and small enough to keep for the gradient."""
  return x


def _forward(x: Array) -> tuple[Array, None]:
  # XLA:CPU would fuse the end of a Winograd convolution into each of its readers, and keep the larger products until the last is done.
  x = lax.platform_dependent(x, cpu=lax.optimization_barrier, default=lambda x: x)
  return checkpoint_name(x, _KEPT), None


kept.defvjp(_forward, lambda _, grad: (grad,))
