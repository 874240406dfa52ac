"""URPC: Uncertainty Rectified ScaleHeads Consistency (Luo et al., MICCAI 2021). The decoder's four levels all predict, and agree.

| equation | where |
|---|---|
| mean over scales of ℓ_s(p_s, y) | `build` |
| p̄ = mean over scales of p_s; v_s = KL(p̄ ‖ p_s) by voxel | `ops.consistency.pyramid_consistency` |
| mean over scales of Σ d_s e^{−v_s} / Σ e^{−v_s} + mean v_s, d_s = (p_s − p̄)² | `ops.consistency.pyramid_consistency` |
| w(t) = w_max · ramp(⌊t / 150⌋, R) | `core.heads.build` |
| perturbations of levels 1 to 3 | `networks.heads.ScaleHeads` |

Source: the authors' code in SSL4MIS [C]; its settings on the Left Atrium are not published: those of mean teacher's lineage there [L].
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import optax

from ssl_jax.core import heads
from ssl_jax.ops.consistency import pyramid_consistency
from ssl_jax.ops.segmentation import ce_dice
from ssl_jax.types import Method, Task


@dataclasses.dataclass(frozen=True)
class Options:
  """Keys of `config.method`.

  Attributes:
    weights: of the loss terms; `consistency` is w_max [C].
    ramp: R, in units of `ramp_unit_steps` [L]; 200 on ACDC, 400 in the paper's 60,000 steps [C].
    ramp_unit_steps: steps during which the consistency weight stays constant [C].
    evaluated: the "first" head, of full resolution [C], or the "mean" of all scales' probabilities.
  """

  weights: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"supervised": 1.0, "consistency": 0.1})
  ramp: float = 40.0
  ramp_unit_steps: int = 150
  evaluated: Literal["first", "mean"] = "first"


def build(options: Options, networks: Any, optimizer: optax.GradientTransformation, task: Task) -> Method:
  """Returns the method; see `types.Method`."""
  del task
  return heads.build(
    networks.backbone(scales=True),
    optimizer,
    options,
    supervised=lambda logits, label: sum(ce_dice(x, label) for x in logits) / len(logits),
    consistency=lambda logits, labelled: pyramid_consistency([x[labelled:] for x in logits]),
    published_select="best",  # by Dice on the validation list [C]
  )
