"""Prediction of whole scans: averaged sliding windows, slice by slice, or one pass over the padded scan."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.data.transforms import resize_nearest
from ssl_jax.types import Array, InputError, PyTree

_BUCKET = 64  # voxels; coarse, because a larger volume costs a little memory and a new one costs a compilation


class SlidingWindow:
  """Averages the class probabilities of overlapping windows over a scan.

  The whole scan is one call of one compiled program. The program belongs to the volume it works in, not to the scan: axes are rounded up
  to a multiple of 64 and only ever grow, and the number of windows is a run-time value, so a test set costs a few compilations
  (one after `reserve`). Voxels added by rounding up are in no window.

  Source: placement and averaging of UA-MT's evaluation and its descendants [L].
  """

  def __init__(
    self, predict: Callable[[PyTree, Array], Array], *, patch: Sequence[int], stride: Sequence[int], window_batch: int = 1
  ) -> None:
    """Checks the geometry; compiles nothing yet.

    Args:
      predict: jittable `(state, f32[window_batch, *patch, channels]) -> f32[window_batch, *patch, C]` probabilities.
      patch: size of a window in voxels, one per spatial axis.
      stride: distance between windows in voxels, at most `patch`.
      window_batch: windows per call of `predict`; the last call is filled up with windows of weight 0.
    Raises: InputError when `stride` or `window_batch` is not positive, `stride` exceeds `patch`, or their ranks differ.
    """
    self._patch, self._stride, self._window_batch = tuple(patch), tuple(stride), window_batch
    if len(self._stride) != len(self._patch):
      raise InputError(f"stride {self._stride} and patch {self._patch} must have one entry per spatial axis")
    if not all(0 < step <= size for step, size in zip(self._stride, self._patch, strict=True)):
      raise InputError(f"stride {self._stride} must be between 1 and the patch {self._patch} along every axis")
    if window_batch < 1:
      raise InputError(f"window_batch must be at least 1, got {window_batch}")
    self._volume = (0,) * len(self._patch)
    self._run = jax.jit(functools.partial(_average_windows, predict, self._patch, self._window_batch))

  def reserve(self, shapes: Sequence[Sequence[int]]) -> None:
    """Grows the compiled volume to hold scans of all these spatial shapes, so that they share one compilation."""
    for shape in shapes:
      self._volume = tuple(
        max(current, _BUCKET * math.ceil(max(size, window) / _BUCKET))
        for current, size, window in zip(self._volume, shape, self._patch, strict=True)
      )

  def __call__(self, state: PyTree, image: np.ndarray | Array) -> np.ndarray:
    """Mean class probabilities of a scan.

    p(v) = Σ_w p_w(v) / |{w : v ∈ w}| over windows w starting at min(i·stride, size − patch), i = 0 … ⌈(size − patch)/stride⌉, per axis.
    A scan smaller than the patch is padded with zeros on both sides, the smaller half first.

    Args:
      state: passed on to `predict`.
      image: f32[*spatial, channels].
    Returns: f32[*spatial, C] on the host.
    Raises: InputError when the image's rank does not fit the patch.
    """
    image = np.asarray(image, np.float32)
    spatial = image.shape[:-1]
    if len(spatial) != len(self._patch) or 0 in image.shape:
      raise InputError(f"an image of shape {image.shape} does not fit patch {self._patch}: expected {len(self._patch)} axes and channels")
    self.reserve([spatial])
    padding = [_split(max(window - size, 0)) for size, window in zip(spatial, self._patch, strict=True)]
    padded = [size + before + after for size, (before, after) in zip(spatial, padding, strict=True)]
    volume = np.zeros((*self._volume, image.shape[-1]), np.float32)
    inside = tuple(slice(before, before + size) for size, (before, _) in zip(spatial, padding, strict=True))
    volume[inside] = image

    starts = [_starts(*axis) for axis in zip(padded, self._patch, self._stride, strict=True)]
    windows = np.array(list(itertools.product(*starts)), np.int32)
    num_batches = math.ceil(len(windows) / self._window_batch)
    # The volume bounds the number of windows, so this shape is the same for every scan in it.
    most = math.prod(len(_starts(*axis)) for axis in zip(self._volume, self._patch, self._stride, strict=True))
    rows = np.zeros((self._window_batch * math.ceil(most / self._window_batch), len(spatial)), np.int32)
    rows[: len(windows)] = windows
    weights = (np.arange(len(rows)) < len(windows)).astype(np.float32)
    counts = [_counts(start, window, size) for start, window, size in zip(starts, self._patch, self._volume, strict=True)]
    operands = jax.device_put((volume, rows, weights, counts, np.int32(num_batches)))
    return np.array(jax.device_get(self._run(state, *operands))[inside])


class SliceWise:
  """Class probabilities of a volume from a 2D network: every X-Y slice whole, brought to the network's size and back.

  Source: the ACDC evaluation of SSL4MIS, CML and BCP, both resizings by the nearest pixel [C]. They resize class maps, which is the same.
  """

  def __init__(self, predict: Callable[[PyTree, Array], Array], *, patch: Sequence[int], window_batch: int = 1) -> None:
    """Checks the geometry; compiles nothing yet.

    Args:
      predict: jittable `(state, f32[window_batch, *patch, channels]) -> f32[window_batch, *patch, C]` probabilities; compiled once.
      patch: pixels along X and Y.
      window_batch: slices per call of `predict`; the last call is filled up with zeros.
    Raises: InputError when `patch` has not two sides or `window_batch` is not positive.
    """
    if len(patch) != 2 or min(patch) < 1:
      raise InputError(f"patch {tuple(patch)} must have two positive sides")
    if window_batch < 1:
      raise InputError(f"window_batch must be at least 1, got {window_batch}")
    self._patch, self._window_batch = tuple(patch), window_batch
    self._run = jax.jit(lambda state, slices: predict(state, slices).astype(jnp.float32))

  def reserve(self, shapes: Sequence[Sequence[int]]) -> None:
    """Does nothing: what is compiled does not depend on the scans' shapes."""

  def __call__(self, state: PyTree, image: np.ndarray | Array) -> np.ndarray:
    """Class probabilities of a volume, or of a single image.

    Args:
      state: passed on to `predict`.
      image: f32[X, Y, Z, channels] or f32[X, Y, channels].
    Returns: f32[X, Y, Z, C] or f32[X, Y, C] on the host.
    Raises: InputError when the image has another rank.
    """
    image = np.asarray(image, np.float32)
    if image.ndim not in (3, 4) or 0 in image.shape:
      raise InputError(f"an image of shape {image.shape} does not fit patch {self._patch}: expected axes X, Y, perhaps Z, and channels")
    resized = resize_nearest(image if image.ndim == 4 else image[:, :, None], self._patch)
    count = resized.shape[2]
    slices = np.zeros((self._window_batch * math.ceil(count / self._window_batch), *self._patch, image.shape[-1]), np.float32)
    slices[:count] = np.moveaxis(resized, 2, 0)
    batches = [self._run(state, jax.device_put(part)) for part in np.split(slices, len(slices) // self._window_batch)]
    prob = np.moveaxis(np.concatenate(jax.device_get(batches))[:count], 0, 2)
    return resize_nearest(prob if image.ndim == 4 else prob[:, :, 0], image.shape[:2])


def sliding_window(
  predict: Callable[[Array], Array],
  image: np.ndarray | Array,
  *,
  patch: Sequence[int],
  stride: Sequence[int],
  window_batch: int = 1,
) -> np.ndarray:
  """Mean class probabilities of a scan over sliding windows; see `SlidingWindow`, which takes changing weights without recompiling.

  Args:
    predict: jittable `f32[window_batch, *patch, channels] -> f32[window_batch, *patch, C]` probabilities. Pass the same function object
      for every scan: what is compiled is kept by its identity.
    image: f32[*spatial, channels].
    patch, stride: in voxels, one per spatial axis.
    window_batch: windows per call of `predict`.
  Returns: f32[*spatial, C] on the host.
  Raises: InputError, see `SlidingWindow`.
  """
  return _stateless(predict, tuple(patch), tuple(stride), window_batch)((), image)


def whole_volume(predict: Callable[[Array], Array], image: np.ndarray | Array, *, multiple: int = 16) -> np.ndarray:
  """Class probabilities of a scan from one pass, padded with zeros to a multiple of `multiple` along each axis, the smaller half first.

  Args:
    predict: jittable `f32[1, *padded, channels] -> f32[1, *padded, C]`; compiled once per padded shape.
    image: f32[*spatial, channels].
    multiple: in voxels; 16 suits networks that halve the resolution four times.
  Returns: f32[*spatial, C] on the host.
  Raises: InputError when `multiple` is not positive.
  """
  if multiple < 1:
    raise InputError(f"multiple must be at least 1, got {multiple}")
  image = np.asarray(image, np.float32)
  padding = [_split(-size % multiple) for size in image.shape[:-1]]
  inside = tuple(slice(before, before + size) for size, (before, _) in zip(image.shape[:-1], padding, strict=True))
  padded = jax.device_put(np.pad(image, [*padding, (0, 0)])[None])
  return np.array(jax.device_get(jax.jit(predict)(padded))[0][inside])


@functools.lru_cache(maxsize=4)
def _stateless(predict: Callable[[Array], Array], patch: tuple[int, ...], stride: tuple[int, ...], window_batch: int) -> SlidingWindow:
  return SlidingWindow(lambda _, image: predict(image), patch=patch, stride=stride, window_batch=window_batch)


def _average_windows(
  predict: Callable[[PyTree, Array], Array],
  patch: tuple[int, ...],
  window_batch: int,
  state: PyTree,
  volume: Array,
  starts: Array,
  weights: Array,
  counts: list[Array],
  num_batches: Array,
) -> Array:
  """Sums windows `starts[: num_batches · window_batch]`, each times its weight, and divides by how often a voxel was visited."""
  channels = volume.shape[-1]
  windows = jax.ShapeDtypeStruct((window_batch, *patch, channels), volume.dtype)
  classes = jax.eval_shape(predict, state, windows).shape[-1]

  def add_batch(batch: Any, total: Array) -> Array:
    corners = jax.lax.dynamic_slice_in_dim(starts, batch * window_batch, window_batch)
    rows = jax.lax.dynamic_slice_in_dim(weights, batch * window_batch, window_batch)
    crop = functools.partial(jax.lax.dynamic_slice, volume, slice_sizes=(*patch, channels))
    # A stack of slices, not vmap: that would become a gather, which is slow.
    probabilities = predict(state, jnp.stack([crop((*corners[i], 0)) for i in range(window_batch)])).astype(jnp.float32)
    for i in range(window_batch):
      corner = (*corners[i], 0)
      seen = jax.lax.dynamic_slice(total, corner, (*patch, classes))
      total = jax.lax.dynamic_update_slice(total, seen + rows[i] * probabilities[i], corner)
    return total

  total = jax.lax.fori_loop(0, num_batches, add_batch, jnp.zeros((*volume.shape[:-1], classes), jnp.float32))
  # Windows form a grid, so the number of them over a voxel is a product over axes.
  visits = functools.reduce(jnp.multiply, jnp.ix_(*counts))
  return total / jnp.maximum(visits, 1)[..., None]


def _starts(size: int, window: int, stride: int) -> list[int]:
  return [min(stride * i, size - window) for i in range(math.ceil((size - window) / stride) + 1)]


def _counts(starts: list[int], window: int, size: int) -> np.ndarray:
  """Number of windows over each voxel of one axis: f32[size]."""
  positions = np.arange(size)
  over = np.array([(start <= positions) & (positions < start + window) for start in starts])
  return over.sum(axis=0, dtype=np.float32)


def _split(padding: int) -> tuple[int, int]:
  return padding // 2, padding - padding // 2
