"""MC-Net: Mutual Consistency Network (Wu et al., MICCAI 2021). One encoder, two decoders that differ in how they double the resolution.

| equation | where |
|---|---|
| p^{1/T} / Σ p^{1/T} | `ops.consistency.sharpen` |
| L_c = Σ_{i≠j} mean (p_i − sharpen(p_j))² | `ops.consistency.mutual_consistency` |
| ½ Σ_i Dice(p_i, y) + w(t) · L_c | `core.heads.build_mutual` |
| w(t) = w_max · ramp(⌊t / 150⌋, R) | `core.heads.build_mutual` |

Source: the authors' code, which calls it mcnet3d_v1 [C].
"""

import dataclasses
from typing import Any

import optax

from ssl_jax.core import heads
from ssl_jax.types import Method, Task


@dataclasses.dataclass(frozen=True)
class Options(heads.MutualOptions):
  """Keys of `config.method`, see `core.heads.MutualOptions`."""


def build(options: Options, networks: Any, optimizer: optax.GradientTransformation, task: Task) -> Method:
  """Returns the method; see `types.Method`."""
  del task
  return heads.build_mutual(options, networks, optimizer)
