"""What happens to a whole scan once, before it is cached: cropping, resampling, averaging blocks of voxels, normalisation."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from scipy import ndimage

from ssl_jax.data.case import Case, check_affine, check_voxels
from ssl_jax.types import InputError

_NEGLIGIBLE_VOX = 0.01  # how far rounding in headers may move a scan's last voxel before resampling is worth its blur


def canonical_case(case: Case) -> Case:
  """Permutes and flips the axes of a volume, without interpolation, to run right, anterior, superior as nearly as they can.

  Raises:
    InputError: the case is no volume, or its affine says nothing about directions.
  """
  if case.image.ndim != 4:
    raise InputError(f"{case.name}: config.data.canonical=True turns volumes, but this has shape {case.image.shape[:-1]}; set it to False")
  check_affine(case.affine, case.name)
  orientation = io_orientation(case.affine)
  label = None if case.label is None else apply_orientation(case.label, orientation)
  spacing = tuple(case.spacing[int(axis)] for axis in np.argsort(orientation[:, 0]))
  affine = case.affine @ inv_ornt_aff(orientation, case.image.shape[:-1])
  return Case(case.name, np.ascontiguousarray(apply_orientation(case.image, orientation)), label, spacing, affine)


def resample_case(case: Case, target_mm: Sequence[float]) -> Case:
  """Samples a scan at another spacing, its image linearly, its label by the nearest voxel; see `resample`.

  Args:
    case: any scan.
    target_mm: along the first axes; further ones, such as that of a 2D network's slices, stay as they are.

  Returns: the same physical extent, spacing and affine adapted; a scan that has this spacing comes back as it is.

  Raises:
    InputError: the scan's own spacing is not positive, or it has fewer axes.
  """
  if len(target_mm) > len(case.spacing) or not min(case.spacing) > 0:
    raise InputError(f"{case.name}: a scan with spacing {case.spacing} mm cannot be brought to config.data.spacing={tuple(target_mm)}")
  spacing = (*target_mm, *case.spacing[len(target_mm) :])
  step = [new / old for new, old in zip(spacing, case.spacing, strict=True)]
  if all(abs(s - 1) * side < _NEGLIGIBLE_VOX for s, side in zip(step, case.image.shape, strict=False)):
    return case
  check_voxels(resampled_shape(case.image.shape, case.spacing, spacing), case.name)
  channels = [resample(case.image[..., c], case.spacing, spacing, order=1) for c in range(case.image.shape[-1])]
  label = None if case.label is None else resample(case.label, case.spacing, spacing, order=0)
  affine = case.affine @ np.diag([*step, *[1.0] * (4 - len(step))])
  return Case(case.name, np.stack(channels, axis=-1), label, spacing, affine)


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


def to_scan(values: np.ndarray, prepared: Case, scan: Case) -> np.ndarray:
  """Brings voxels of a prepared scan back to the scan's own grid: axes turned back, linear interpolation, edges continued.

  The voxel v of the scan takes the value at A'⁻¹ A v, A' and A being the affines of the prepared and the original scan.

  Args:
    values: f32[*spatial of `prepared`, channels], such as class probabilities, which go on adding up to 1.
    prepared: what preparation has made of `scan`.
    scan: as it was read.

  Returns: f32[*spatial of `scan`, channels].

  Raises:
    InputError: the scan's affine cannot be inverted.
  """
  shape = scan.image.shape[:-1]
  if prepared.affine is scan.affine and values.shape[:-1] == shape:
    return values
  check_affine(scan.affine, scan.name)
  rank = len(shape)
  to_prepared = np.round(np.linalg.inv(prepared.affine) @ scan.affine, 9)  # whole numbers where axes are only turned
  matrix, offset = to_prepared[:rank, :rank], to_prepared[:rank, 3]
  found = np.empty((*shape, values.shape[-1]), np.float32)
  for channel in range(values.shape[-1]):
    plane = values[..., channel]
    ndimage.affine_transform(plane, matrix, offset, shape, found[..., channel], order=1, mode="nearest", prefilter=False)
  return found


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


def resampled_shape(shape: Sequence[int], spacing: Sequence[float], target_mm: float | Sequence[float]) -> tuple[int, ...]:
  """Sides of a scan at another spacing, see `resample`."""
  steps = np.broadcast_to(target_mm, len(spacing)) / np.asarray(spacing)
  return tuple(max(round(float(side / step)), 1) for side, step in zip(shape, steps, strict=False))


def resample(
  volume: np.ndarray, spacing: Sequence[float], target_mm: float | Sequence[float], order: int, box: tuple[slice, ...] | None = None
) -> np.ndarray:
  """Samples a scan on a grid of another spacing that starts at its first voxel's centre: index i lies at its i · target_mm / spacing.

  The grid has round(side · spacing / target_mm) voxels along each axis. `scipy.ndimage.zoom` would align the outer voxels' centres
  instead, so that its voxels do not measure exactly `target_mm`.

  Args:
    volume: number[*spatial].
    spacing: mm along each axis.
    target_mm: sides of the new voxels, one number for all axes or one for each.
    order: 0 takes the nearest voxel, 1 interpolates linearly.
    box: part of the new grid to compute; `None` for all of it.

  Returns: the same dtype, the box's shape.
  """
  step_vox = np.broadcast_to(target_mm, len(spacing)) / np.asarray(spacing)
  if box is None:
    box = tuple(slice(0, side) for side in resampled_shape(volume.shape, spacing, target_mm))
  start = step_vox * [part.start for part in box]
  shape = tuple(part.stop - part.start for part in box)
  return ndimage.affine_transform(volume, np.diag(step_vox), start, shape, order=order, mode="nearest", prefilter=False)
