"""Overlap of two binary masks: Dice and Jaccard."""

import numpy as np


def as_masks(pred: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Checks a pair of binary masks and returns them as boolean arrays.

  Args:
    pred, label: bool or 0/1 arrays of one shape, 2D or 3D.
  Returns: bool arrays of the same shape.
  Raises: ValueError on a different shape, another rank, an empty array, or a value other than 0 and 1.
  """
  pred, label = np.asarray(pred), np.asarray(label)
  if pred.shape != label.shape:
    raise ValueError(f"prediction and label differ in shape: {pred.shape} and {label.shape}")
  if pred.ndim not in (2, 3) or pred.size == 0:
    raise ValueError(f"expected non-empty 2D or 3D masks, got shape {pred.shape}")
  return _as_bool(pred, "prediction"), _as_bool(label, "label")


def dice(pred: np.ndarray, label: np.ndarray) -> float:
  """Dice coefficient, 2|P∩L| / (|P| + |L|).

  Args:
    pred, label: binary masks of one shape, 2D or 3D.
  Returns: a value in [0, 1]; 1 when both masks are empty (they agree everywhere) [D].
  Raises: ValueError on masks `as_masks` rejects.
  """
  pred, label = as_masks(pred, label)
  total = np.count_nonzero(pred) + np.count_nonzero(label)
  return 2.0 * np.count_nonzero(pred & label) / total if total else 1.0


def jaccard(pred: np.ndarray, label: np.ndarray) -> float:
  """Jaccard index, |P∩L| / |P∪L|.

  Args:
    pred, label: binary masks of one shape, 2D or 3D.
  Returns: a value in [0, 1]; 1 when both masks are empty [D].
  Raises: ValueError on masks `as_masks` rejects.
  """
  pred, label = as_masks(pred, label)
  union = np.count_nonzero(pred | label)
  return np.count_nonzero(pred & label) / union if union else 1.0


def _as_bool(mask: np.ndarray, name: str) -> np.ndarray:
  if mask.dtype == bool:
    return mask
  is_foreground = mask == 1
  if not np.all(is_foreground | (mask == 0)):
    raise ValueError(f"{name} is not a binary mask: it holds values other than 0 and 1")
  return is_foreground
