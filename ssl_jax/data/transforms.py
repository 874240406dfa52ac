"""Weak views: a random crop, or the whole image brought to one size; turns and flips. NumPy, one copy of the crop."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

_LARGEST_TURN_DEGREES = 20.0


def draw_view(
  view: str,
  image: np.ndarray,
  label: np.ndarray | None,
  patch: tuple[int, ...],
  rng: np.random.Generator,
  intensity_jitter: float = 0.0,
) -> tuple[np.ndarray, np.ndarray | None]:
  """One weak view of an image and its label, of the patch's size.

  Args:
    view: `crop`: `weak_view`. `resize`: turned and flipped by `turn_and_flip`, then `resize_nearest` to the patch. `none`: only resized,
      for methods that draw their own views on the device.
    image: f32[*spatial, channels].
    label: integer[*spatial] or `None`.
    patch: voxels along each spatial axis.
    rng: the only source of randomness.
    intensity_jitter: see `weak_view`.

  Returns: f32[*patch, channels] and i32[*patch] (or `None`), contiguous.
  """
  if view == "crop":
    return weak_view(image, label, patch, rng, intensity_jitter)
  arrays = [image] if label is None else [image, label]
  arrays = [resize_nearest(array, patch) for array in (turn_and_flip(arrays, rng) if view == "resize" else arrays)]
  out = _jitter(np.ascontiguousarray(arrays[0], np.float32), rng, intensity_jitter)
  return out, None if label is None else np.ascontiguousarray(arrays[1], np.int32)


def turn_and_flip(arrays: Sequence[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
  """The same random turn of several arrays in their first two axes.

  With probability ½ a rotation by k·90° and a flip of one axis, else with probability ½ a rotation about the centre by an angle
  ~ U(-20°, 20°), nearest voxel, zero beyond the edges, size kept; else nothing.

  Args:
    arrays: [X, Y, ...] each, of one size in X-Y.
    rng: the only source of randomness.

  Source: `RandomGenerator` of SSL4MIS, which CML's and BCP's ACDC experiments reuse [C]. Deviation: their angles are whole degrees.
  """
  if rng.random() < 0.5:
    turns, flipped = int(rng.integers(0, 4)), int(rng.integers(0, 2))
    return [np.flip(np.rot90(array, turns), flipped) for array in arrays]
  if rng.random() < 0.5:
    angle = rng.uniform(-_LARGEST_TURN_DEGREES, _LARGEST_TURN_DEGREES)
    return [ndimage.rotate(array, angle, reshape=False, order=0) for array in arrays]
  return list(arrays)


def resize_nearest(array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
  """Brings the leading axes of an array to the sides `shape`: output i takes input ⌊i (n − 1)/(m − 1) + ½⌋ of n, m the new side.

  The outer voxels' centres stay where they are, as `scipy.ndimage.zoom(order=0)` has it in the published code [C], which is a hundred times
  slower and, where rounding takes its last coordinate beyond the edge, fills with zeros.

  Args:
    array: [*sides, ...], at least one voxel along each axis.
    shape: new sides m of the first `len(shape)` axes.

  Returns: the same dtype, [*shape, ...]; the array itself when nothing changes.
  """
  for axis, (side, size) in enumerate(zip(array.shape, shape, strict=False)):
    if side != size:
      step = (side - 1) / (size - 1) if size > 1 else 1.0
      nearest = np.floor(np.arange(size) * step + 0.5).astype(np.intp)
      array = np.take(array, np.minimum(nearest, side - 1), axis=axis)
  return array


def weak_view(
  image: np.ndarray,
  label: np.ndarray | None,
  patch: tuple[int, ...],
  rng: np.random.Generator,
  intensity_jitter: float = 0.0,
) -> tuple[np.ndarray, np.ndarray | None]:
  """Random crop to the patch, rotation by k·90° in the X-Y plane, flip of X or of Y; the same for image and label.

  Along an axis where the scan is not larger than the patch it counts as zero-padded by (patch - side)//2 + 3 voxels on both sides. A
  patch that is not square in X-Y is turned by 180° only. With `intensity_jitter` j > 0: image ← a·image + b, a ~ U(1-j, 1+j), b ~ U(-j, j).

  Args:
    image: f32[*spatial, channels].
    label: integer[*spatial] or `None`.
    patch: voxels along each spatial axis.
    rng: the only source of randomness.
    intensity_jitter: dimensionless, in units of the image's intensity; 0 is the published recipe.

  Returns: f32[*patch, channels] and i32[*patch] (or `None`), contiguous.

  Raises:
    ValueError: the patch has another rank than the scan.

  Source: UA-MT's `RandomCrop` and `RandomRotFlip`, which all LA methods reuse [C]; a flip always happens, on one of the two axes.
  Deviation: the last crop position can be drawn too, and only axes that need it are padded.
  """
  shape = image.shape[:-1]
  if len(patch) != len(shape):
    raise ValueError(f"patch {patch} has rank {len(patch)}, the scan {shape} has rank {len(shape)}")
  corner = []
  for size, side in zip(patch, shape, strict=True):
    pad = (size - side) // 2 + 3 if side <= size else 0
    corner.append(int(rng.integers(0, side + 2 * pad - size + 1)) - pad)
  turns = int(rng.integers(0, 4)) if patch[0] == patch[1] else 2 * int(rng.integers(0, 2))
  flipped = int(rng.integers(0, 2))

  def view(volume: np.ndarray, dtype: type) -> np.ndarray:
    return np.ascontiguousarray(np.flip(np.rot90(_crop(volume, corner, patch), turns), flipped), dtype=dtype)

  out = _jitter(view(image, np.float32), rng, intensity_jitter)
  return out, None if label is None else view(label, np.int32)


def _jitter(image: np.ndarray, rng: np.random.Generator, size: float) -> np.ndarray:
  if size:
    image = image * np.float32(1 + rng.uniform(-size, size))
    image += np.float32(rng.uniform(-size, size))
  return image


def _crop(volume: np.ndarray, corner: list[int], patch: tuple[int, ...]) -> np.ndarray:
  """`volume[corner : corner + patch]`, zero beyond the edges; a view when nothing lies beyond them."""
  shape = volume.shape[: len(patch)]
  inside = tuple(slice(max(low, 0), min(low + size, side)) for low, size, side in zip(corner, patch, shape, strict=True))
  if all(part.stop - part.start == size for part, size in zip(inside, patch, strict=True)):
    return volume[inside]
  out = np.zeros(patch + volume.shape[len(patch) :], volume.dtype)
  out[tuple(slice(part.start - low, part.stop - low) for part, low in zip(inside, corner, strict=True))] = volume[inside]
  return out
