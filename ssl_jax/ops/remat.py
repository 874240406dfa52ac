"""What a network keeps for its gradient: convolutions and statistics; where memory is short, nothing else."""

import os
from importlib import metadata

import jax
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

_KEPT = "kept"
POLICY = jax.checkpoint_policies.save_only_these_names(_KEPT)
_IN_ORDER = "--xla_cpu_enable_concurrency_optimized_scheduler=false"


def order_for_memory() -> None:
  """Has XLA:CPU order programs for memory instead of concurrency, or keeping less saves nothing there; before JAX is first used.

  A flag of the process: as an option of one program XLA accepts it and does not heed it.
  """
  flags = os.environ.get("XLA_FLAGS", "")
  if metadata.version("jaxlib").startswith("0.10.") and _IN_ORDER.split("=")[0] not in flags:  # elsewhere an unknown flag may end XLA
    os.environ["XLA_FLAGS"] = f"{flags} {_IN_ORDER}".strip()


@jax.custom_vjp
def kept(x: Array) -> Array:
  """Returns x, marked as dear to compute and small enough to keep for the gradient."""
  return x


def _forward(x: Array) -> tuple[Array, None]:
  # XLA:CPU would fuse the end of a Winograd convolution into each of its readers, and keep the larger products until the last is done.
  x = lax.platform_dependent(x, cpu=lax.optimization_barrier, default=lambda x: x)
  return checkpoint_name(x, _KEPT), None


kept.defvjp(_forward, lambda _, grad: (grad,))
