"""What happens to a whole scan once, before it is cached: cropping, resampling, averaging blocks of voxels, normalisation."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from ssl_jax.data.case import Case
from ssl_jax.types import InputError


def downsample_case(case: Case, factor: int, num_axes: int = 3) -> Case:
  """Averages blocks of `factor` voxels along the first `num_axes` spatial axes; a remainder at the far end is cut off.

  A label block takes its most frequent class, ties go to the lower one; with two classes that is: mean > 0.5. Voxel centres
  move to the centres of the blocks: A' = A · [[k·I, (k-1)/2], [0, 1]].

  Args:
    case: any scan.
    factor: k >= 1, voxels.
    num_axes: 2 keeps the slices of a volume apart.

  Returns: the smaller case, spacing and affine adapted.

  Raises:
    InputError: the factor is below 1 or larger than a side.
  """
  if factor == 1:
    return case
  shape = case.image.shape[:-1][:num_axes]
  if factor < 1 or min(shape) < factor:
    raise InputError(f"data.downsample={factor} does not fit case {case.name!r} of shape {shape}")
  label = None
  if case.label is not None:
    classes = range(int(case.label.max()) + 1)
    counts = np.stack([_block_mean((case.label == value).astype(np.float32), factor, num_axes) for value in classes])
    label = counts.argmax(axis=0).astype(np.uint8)
  rank = min(len(shape), 3)
  to_block = np.eye(4)
  to_block[range(rank), range(rank)] = factor
  to_block[:rank, 3] = (factor - 1) / 2
  image = np.stack([_block_mean(case.image[..., channel], factor, num_axes) for channel in range(case.image.shape[-1])], axis=-1)
  spacing = (*(side * factor for side in case.spacing[:num_axes]), *case.spacing[num_axes:])
  return Case(case.name, image, label, spacing, case.affine @ to_block)


def _block_mean(volume: np.ndarray, factor: int, num_axes: int) -> np.ndarray:
  for axis, side in enumerate(volume.shape[:num_axes]):
    blocks = side // factor
    volume = np.moveaxis(volume, axis, 0)[: blocks * factor]
    volume = np.moveaxis(volume.reshape(blocks, factor, *volume.shape[1:]).mean(axis=1), 0, axis)
  return volume


def zscore_case(case: Case) -> Case:
  """Shifts and scales each channel to zero mean and unit variance over the whole scan; a constant channel becomes 0."""
  axes = tuple(range(case.image.ndim - 1))
  mean = case.image.mean(axis=axes, dtype=np.float64)
  std = case.image.std(axis=axes, dtype=np.float64)
  image = (case.image - mean) / np.where(std > 0, std, 1.0)
  return dataclasses.replace(case, image=image.astype(np.float32))


def bounding_box(mask: np.ndarray) -> tuple[tuple[int, int], ...] | None:
  """First and last index of the nonzero voxels along each axis; `None` when there is none."""
  extent = []
  for axis in range(mask.ndim):
    filled = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
    if not filled.size:
      return None
    extent.append((int(filled[0]), int(filled[-1])))
  return tuple(extent)


def translation(offset_vox: Sequence[int]) -> np.ndarray:
  """f64[4, 4] that maps a voxel of a crop to the same voxel of the whole scan; zero beyond the offsets given."""
  shift = np.eye(4)
  shift[: len(offset_vox), 3] = offset_vox
  return shift


def resample(
  volume: np.ndarray, spacing: Sequence[float], target_mm: float, order: int, box: tuple[slice, ...] | None = None
) -> np.ndarray:
  """Samples a scan on an isotropic grid that starts at its first voxel's centre: index i lies at i · target_mm / spacing of the scan.

  The grid has round(side · spacing / target_mm) voxels along each axis. `scipy.ndimage.zoom` would align the outer voxels' centres
  instead, so that its voxels do not measure exactly `target_mm`.

  Args:
    volume: number[X, Y, Z].
    spacing: mm along each axis.
    target_mm: side of the new voxels.
    order: 0 takes the nearest voxel, 1 interpolates linearly.
    box: part of the new grid to compute; `None` for all of it.

  Returns: the same dtype, the box's shape.
  """
  step_vox = np.array([target_mm / side for side in spacing])
  if box is None:
    box = tuple(slice(0, max(round(float(side / step)), 1)) for side, step in zip(volume.shape, step_vox, strict=True))
  start = step_vox * [part.start for part in box]
  shape = tuple(part.stop - part.start for part in box)
  return ndimage.affine_transform(volume, np.diag(step_vox), start, shape, order=order, mode="nearest", prefilter=False)
