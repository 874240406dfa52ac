"""What happens to a whole scan once, before it is cached: averaging blocks of voxels, normalisation."""

import dataclasses

import numpy as np

from ssl_jax.data.case import Case
from ssl_jax.types import InputError


def downsample_case(case: Case, factor: int) -> Case:
  """Averages blocks of `factor` voxels along each spatial axis; a remainder at the far end is cut off.

  A label block takes its most frequent class, ties go to the lower one; with two classes that is: mean > 0.5. Voxel centres
  move to the centres of the blocks: A' = A · [[k·I, (k-1)/2], [0, 1]].

  Args:
    case: any scan.
    factor: k >= 1, voxels.

  Returns: the smaller case, spacing and affine adapted.

  Raises:
    InputError: the factor is below 1 or larger than a side.
  """
  if factor == 1:
    return case
  shape = case.image.shape[:-1]
  if factor < 1 or min(shape) < factor:
    raise InputError(f"data.downsample={factor} does not fit case {case.name!r} of shape {shape}")
  label = None
  if case.label is not None:
    classes = range(int(case.label.max()) + 1)
    counts = np.stack([_block_mean((case.label == value).astype(np.float32), factor) for value in classes])
    label = counts.argmax(axis=0).astype(np.uint8)
  rank = min(len(shape), 3)
  to_block = np.eye(4)
  to_block[range(rank), range(rank)] = factor
  to_block[:rank, 3] = (factor - 1) / 2
  image = np.stack([_block_mean(case.image[..., channel], factor) for channel in range(case.image.shape[-1])], axis=-1)
  return Case(case.name, image, label, tuple(side * factor for side in case.spacing), case.affine @ to_block)


def _block_mean(volume: np.ndarray, factor: int) -> np.ndarray:
  for axis, side in enumerate(volume.shape):
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
