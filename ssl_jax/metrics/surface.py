"""Distances between the surfaces of two binary masks, as medpy defines them.

A surface voxel is a foreground voxel with a background neighbour across a face (or an edge in 2D); outside the volume is background.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage, spatial

from ssl_jax.metrics.overlap import as_masks

_TREE_LIMIT = 100_000  # surface voxels of both masks together; beyond, as in noise, a distance transform beats a search tree


def surface_distances(pred: np.ndarray, label: np.ndarray, *, spacing: Sequence[float] | None = None) -> tuple[np.ndarray, np.ndarray]:
  """Distance of every surface voxel of each mask to the nearest surface voxel of the other.

  Args:
    pred, label: binary masks of one shape, 2D or 3D, both with some foreground.
    spacing: edge lengths of a voxel, in mm say, one per axis; `None` measures in voxels.
  Returns: f64[n] prediction → label and f64[m] label → prediction, in the unit of `spacing`.
  Raises: ValueError on masks `as_masks` rejects, an empty mask, or a `spacing` of another length or not positive.
  """
  pred_surface, label_surface = _surfaces(pred, label, spacing)
  return _nearest(pred_surface, label_surface, spacing), _nearest(label_surface, pred_surface, spacing)


def hd95(pred: np.ndarray, label: np.ndarray, *, spacing: Sequence[float] | None = None) -> float:
  """95 % Hausdorff distance: the 95th percentile of both directions' surface distances, pooled.

  Args and Raises: see `surface_distances`.
  Returns: the distance in the unit of `spacing`.
  Source: medpy.metric.binary.hd95 [L]; pooling differs from the maximum of the two directions' percentiles that some papers use.
  """
  return float(np.percentile(np.concatenate(surface_distances(pred, label, spacing=spacing)), 95))


def asd(pred: np.ndarray, label: np.ndarray, *, spacing: Sequence[float] | None = None) -> float:
  """Average surface distance, directed: mean distance of the prediction's surface voxels to the label's surface.

  Args and Raises: see `surface_distances`.
  Returns: the distance in the unit of `spacing`. Swapping the masks changes it; see `assd`.
  Source: medpy.metric.binary.asd [L].
  """
  return float(_nearest(*_surfaces(pred, label, spacing), spacing).mean())


def assd(pred: np.ndarray, label: np.ndarray, *, spacing: Sequence[float] | None = None) -> float:
  """Average symmetric surface distance: mean of both directions' surface distances, pooled.

  Args and Raises: see `surface_distances`.
  Returns: the distance in the unit of `spacing`.
  Source: medpy.metric.binary.assd [L].
  """
  return float(np.concatenate(surface_distances(pred, label, spacing=spacing)).mean())


def check_spacing(spacing: Sequence[float] | None, rank: int) -> None:
  """Raises ValueError unless `spacing` is `None` or holds `rank` positive lengths."""
  if spacing is not None and (len(spacing) != rank or not all(length > 0 for length in spacing)):
    raise ValueError(f"spacing must hold {rank} positive lengths, got {tuple(spacing)}")


def _surfaces(pred: np.ndarray, label: np.ndarray, spacing: Sequence[float] | None) -> tuple[np.ndarray, np.ndarray]:
  """Surface voxels of both masks in the box that holds them, after the checks that `surface_distances` promises."""
  pred, label = as_masks(pred, label)
  check_spacing(spacing, pred.ndim)
  if not (pred.any() and label.any()):
    raise ValueError("surface distances need foreground in both masks; case_metrics() has the policies for empty ones")
  # Nothing outside the union's box is a surface voxel; the voxel of padding keeps the box's faces background.
  box = _box(pred | label)
  return _surface(np.pad(pred[box], 1)), _surface(np.pad(label[box], 1))


def _box(mask: np.ndarray) -> tuple[slice, ...]:
  """The smallest box that holds the foreground; each axis is searched only where the ones before it have some."""
  box: tuple[slice, ...] = ()
  for axis in range(mask.ndim):
    filled = np.flatnonzero(mask[box].any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
    box = (*box, slice(int(filled[0]), int(filled[-1]) + 1))
  return box


def _surface(mask: np.ndarray) -> np.ndarray:
  return mask & ~ndimage.binary_erosion(mask)


def _nearest(source: np.ndarray, target: np.ndarray, spacing: Sequence[float] | None) -> np.ndarray:
  """Distance of every voxel of `source` to the nearest one of `target`, in raster order: f64[n]."""
  if np.count_nonzero(source) + np.count_nonzero(target) > _TREE_LIMIT:
    return ndimage.distance_transform_edt(~target, sampling=spacing)[source]
  scale = np.ones(source.ndim) if spacing is None else np.asarray(spacing, np.float64)
  # The default, balanced tree takes longer to build than these queries save.
  tree = spatial.cKDTree(np.argwhere(target) * scale, balanced_tree=False, compact_nodes=False)
  return tree.query(np.argwhere(source) * scale)[0]
