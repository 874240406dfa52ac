"""MC-Net: Mutual Consistency Network (Wu et al., MICCAI 2021). One encoder, two decoders that differ in how they double the resolution.

| equation | where |
|---|---|
| p^{1/T} / Σ p^{1/T} | `ops.consistency.sharpen` |
| L_c = Σ_{i≠j} mean (p_i − sharpen(p_j))² | `ops.consistency.mutual_consistency` |
| ½ Σ_i Dice(p_i, y) + w(t) · L_c | `core.heads.build` |
| w(t) = w_max · ramp(⌊t / 150⌋, R) | `core.heads.build` |

Source: the authors' code, which calls it mcnet3d_v1 [C].
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import optax

from ssl_jax.core import heads
from ssl_jax.ops.consistency import mutual_consistency
from ssl_jax.ops.segmentation import dice_batch
from ssl_jax.types import Method, Task


@dataclasses.dataclass(frozen=True)
class Options:
  """Keys of `config.method`.

  Attributes:
    weights: of the loss terms: `supervised` is β, `consistency` w_max [C].
    further: how the decoders behind the first double the resolution, "transpose", "trilinear" or "nearest"; the first does what
      `config.network.upsample` says [C].
    temperature: T of the sharpening [C].
    ramp: R, in units of `ramp_unit_steps` [C].
    ramp_unit_steps: steps during which the consistency weight stays constant [C].
    evaluated: the "first" decoder [C] or the "mean" of all decoders' probabilities.
  """

  weights: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"supervised": 0.5, "consistency": 1.0})
  further: tuple[str, ...] = ("trilinear",)
  temperature: float = 0.1
  ramp: float = 40.0
  ramp_unit_steps: int = 150
  evaluated: Literal["first", "mean"] = "first"


def build(options: Options, networks: Any, optimizer: optax.GradientTransformation, task: Task) -> Method:
  """Returns the method; see `types.Method`."""
  del task
  return heads.build(
    networks.backbone(further=options.further),
    optimizer,
    options,
    supervised=lambda logits, label: sum(dice_batch(jax.nn.softmax(x), label) for x in logits),
    consistency=lambda logits, _: mutual_consistency(logits, options.temperature),  # of labelled and unlabelled images [C]
    published_select="best",  # by Dice on the test list [C]
  )
