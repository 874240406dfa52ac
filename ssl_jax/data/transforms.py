"""The weak view: random crop, quarter turns and flips. NumPy, one copy of the crop."""

import numpy as np


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

  out = view(image, np.float32)
  if intensity_jitter:
    out = out * np.float32(1 + rng.uniform(-intensity_jitter, intensity_jitter))
    out += np.float32(rng.uniform(-intensity_jitter, intensity_jitter))
  return out, None if label is None else view(label, np.int32)


def _crop(volume: np.ndarray, corner: list[int], patch: tuple[int, ...]) -> np.ndarray:
  """`volume[corner : corner + patch]`, zero beyond the edges; a view when nothing lies beyond them."""
  shape = volume.shape[: len(patch)]
  inside = tuple(slice(max(low, 0), min(low + size, side)) for low, size, side in zip(corner, patch, shape, strict=True))
  if all(part.stop - part.start == size for part, size in zip(inside, patch, strict=True)):
    return volume[inside]
  out = np.zeros(patch + volume.shape[len(patch) :], volume.dtype)
  out[tuple(slice(part.start - low, part.stop - low) for part, low in zip(inside, corner, strict=True))] = volume[inside]
  return out
