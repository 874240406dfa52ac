"""Every metric of one case, and what an empty mask scores."""

import math
from collections.abc import Sequence

import numpy as np

from ssl_jax.metrics.overlap import as_masks, dice, jaccard
from ssl_jax.metrics.surface import check_spacing, surface_distances

METRICS = ("dice", "jaccard", "hd95", "asd")
EMPTY_POLICIES = ("published", "worst", "exclude")


def case_metrics(
  pred: np.ndarray, label: np.ndarray, *, spacing: Sequence[float] | None = None, empty: str = "published"
) -> dict[str, float]:
  """Dice, Jaccard, 95HD and ASD of one case, with a policy for empty masks.

  | prediction | label | dice, jaccard                                | hd95, asd                                              |
  |------------|-------|----------------------------------------------|--------------------------------------------------------|
  | empty      | full  | 0                                            | `published` 0, `worst` the diagonal, `exclude` NaN     |
  | full       | empty | 0                                            | the volume's diagonal, `exclude` NaN                   |
  | empty      | empty | `published` 0, `worst` 1, `exclude` NaN      | 0, `exclude` NaN                                       |

  `published` is what the code behind the published tables does: an empty prediction scores 0 on every metric, which is the best value
  a distance can have. `worst` gives it the worst distance instead. `exclude` says NaN wherever a number is not defined, and means leave
  the case out.

  Args:
    pred, label: binary masks of one shape, 2D or 3D.
    spacing: edge lengths of a voxel, one per axis; `None` measures in voxels.
    empty: `published`, `worst` or `exclude`.
  Returns: `dice`, `jaccard` in [0, 1]; `hd95`, `asd` in the unit of `spacing`; `empty`, true when either mask is empty, so that the
    distances are the policy's and not measured.
  Raises: ValueError on masks or a spacing `surface_distances` rejects, or an unknown policy.
  Source: UA-MT's evaluation and its descendants for `published` [L]; the other policies and the case of an empty label [D].
  """
  if empty not in EMPTY_POLICIES:
    raise ValueError(f"unknown policy for empty predictions {empty!r}, known: {', '.join(EMPTY_POLICIES)}")
  pred, label = as_masks(pred, label)
  check_spacing(spacing, pred.ndim)
  has_pred, has_label = bool(pred.any()), bool(label.any())
  if has_pred and has_label:
    to_label, to_pred = surface_distances(pred, label, spacing=spacing)
    hd95 = float(np.percentile(np.concatenate([to_label, to_pred]), 95))
    return {"dice": dice(pred, label), "jaccard": jaccard(pred, label), "hd95": hd95, "asd": float(to_label.mean()), "empty": False}
  if empty == "exclude":
    overlap = 0.0 if has_pred or has_label else math.nan
    return {"dice": overlap, "jaccard": overlap, "hd95": math.nan, "asd": math.nan, "empty": True}
  overlap = float(empty == "worst" and not has_pred and not has_label)
  is_far = has_pred or (has_label and empty == "worst")
  distance = math.hypot(*np.multiply(pred.shape, 1.0 if spacing is None else spacing)) if is_far else 0.0
  return {"dice": overlap, "jaccard": overlap, "hd95": distance, "asd": distance, "empty": True}
