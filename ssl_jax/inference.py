"""Prediction of whole scans: averaged sliding windows, slice by slice, or one pass over the padded scan; flips averaged."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax import compiler
from ssl_jax.data.transforms import resize_nearest
from ssl_jax.types import Array, EvalConfig, InputError, PyTree

_BUCKET = 64  # voxels; coarse, because a larger volume costs a little memory and a new one costs a compilation
_GAUSSIAN_WIDTH = 8  # standard deviations along a side of a window
_NETWORK_STRIDE = 16  # voxels; all networks halve the resolution four times

Predictor = Callable[[PyTree, Array], Array]


def _of_batch(predict: Predictor) -> Predictor:
  return jax.jit(lambda state, images: predict(state, images).astype(jnp.float32), compiler_options=compiler.for_convolutions())


def whole_scan(predict: Predictor, patch: Sequence[int], cfg: EvalConfig) -> "SlidingWindow | SliceWise | WholeVolume":
  """Returns the predictor of whole scans that a configuration asks for, called as `(state, image)`.

  Args:
    predict: jittable `(state, f32[B, *patch, channels]) -> f32[B, *patch, C]` probabilities.
    patch: voxels; two sides make it go slice by slice.
    cfg: stride, weights, flips and how many windows at once.

  Raises:
    InputError: the patch and the stride do not go together.
  """
  predict = flip_averaged(predict, cfg.flips)
  if len(patch) == 2:
    return SliceWise(predict, patch=patch, window_batch=cfg.window_batch)
  if cfg.whole_volume:
    return WholeVolume(predict)
  return SlidingWindow(predict, patch=patch, stride=cfg.stride, window_batch=cfg.window_batch, weights=cfg.window_weights)


def flip_averaged(predict: Predictor, axes: Sequence[int]) -> Predictor:
  """Averages predictions over all 2^n flips of the image along n spatial axes, each flipped back; the network is compiled once.

  Args:
    predict: jittable `(state, f32[B, *spatial, channels]) -> f32[B, *spatial, C]`.
    axes: counted from 0, the first spatial axis.
  """
  if not axes:
    return predict

  def flip(array: Array, which: Array) -> Array:
    for use, axis in zip(which, axes, strict=True):
      array = jnp.where(use, jnp.flip(array, axis + 1), array)
    return array

  def averaged(state: PyTree, image: Array) -> Array:
    combinations = np.array(list(itertools.product((False, True), repeat=len(axes))))
    shape = jax.eval_shape(predict, state, image)
    add = lambda total, which: (total + flip(predict(state, flip(image, which)), which), None)
    total, _ = jax.lax.scan(add, jnp.zeros(shape.shape, shape.dtype), combinations)
    return total / len(combinations)

  return averaged


class SlidingWindow:
  """Averages the class probabilities of overlapping windows over a scan.

  The whole scan is one call of one compiled program. The program belongs to the volume it works in, not to the scan: axes are rounded up
  to a multiple of 64 and only ever grow, and the number of windows is a run-time value, so a test set costs a few compilations
  (one after `reserve`). Voxels added by rounding up are in no window.

  Source: placement and averaging of UA-MT's evaluation and its descendants [L].
  """

  def __init__(
    self,
    predict: Predictor,
    *,
    patch: Sequence[int],
    stride: Sequence[int],
    window_batch: int = 1,
    weights: Literal["uniform", "gaussian"] = "uniform",
  ) -> None:
    """Checks the geometry; compiles nothing yet.

    Args:
      predict: jittable `(state, f32[window_batch, *patch, channels]) -> f32[window_batch, *patch, C]` probabilities.
      patch: size of a window in voxels, one per spatial axis.
      stride: distance between windows in voxels, at most `patch`.
      window_batch: windows per call of `predict`; the last call is filled up with windows of weight 0.
      weights: of a window's voxels: "uniform", or "gaussian" with a standard deviation of an eighth of the side along each axis.
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
    self._profiles = [_gaussian(size) if weights == "gaussian" else np.ones(size, np.float32) for size in self._patch]
    profile = functools.reduce(np.multiply, np.ix_(*self._profiles)) if weights == "gaussian" else None
    run = functools.partial(_average_windows, predict, self._patch, self._window_batch, profile)
    self._run = jax.jit(run, compiler_options=compiler.for_convolutions())

  def reserve(self, shapes: Sequence[Sequence[int]]) -> None:
    """Grows the compiled volume to hold scans of all these spatial shapes, so that they share one compilation."""
    for shape in shapes:
      self._volume = tuple(
        max(current, _BUCKET * math.ceil(max(size, window) / _BUCKET))
        for current, size, window in zip(self._volume, shape, self._patch, strict=True)
      )

  def __call__(self, state: PyTree, image: np.ndarray | Array) -> np.ndarray:
    """Mean class probabilities of a scan.

    p(v) = Σ_w g(v − w) p_w(v) / Σ_w g(v − w) over the windows that hold v; they start at w = min(i·stride, size − patch),
    i = 0 … ⌈(size − patch)/stride⌉, per axis, and g is 1 or a Gaussian around the window's centre.
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
    counts = [_counts(start, profile, size) for start, profile, size in zip(starts, self._profiles, self._volume, strict=True)]
    operands = jax.device_put((volume, rows, weights, counts, np.int32(num_batches)))
    return np.array(jax.device_get(self._run(state, *operands))[inside])


class SliceWise:
  """Class probabilities of a volume from a 2D network: every X-Y slice whole, brought to the network's size and back.

  Source: the ACDC evaluation of SSL4MIS, CML and BCP, both resizings by the nearest pixel [C]. They resize class maps, which is the same.
  """

  def __init__(self, predict: Predictor, *, patch: Sequence[int], window_batch: int = 1) -> None:
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
    self._run = _of_batch(predict)

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


class WholeVolume:
  """Class probabilities of a scan from one pass, padded with zeros to what the network can halve, the smaller half first."""

  def __init__(self, predict: Predictor, *, multiple: int = _NETWORK_STRIDE) -> None:
    """Checks the geometry; compiles nothing yet.

    Args:
      predict: jittable `(state, f32[1, *padded, channels]) -> f32[1, *padded, C]` probabilities; compiled once per padded shape.
      multiple: of which the padded sides are, in voxels.
    Raises: InputError when `multiple` is not positive.
    """
    if multiple < 1:
      raise InputError(f"multiple must be at least 1, got {multiple}")
    self._multiple = multiple
    self._run = _of_batch(predict)

  def reserve(self, shapes: Sequence[Sequence[int]]) -> None:
    """Does nothing: a scan is padded no more than the network needs."""

  def __call__(self, state: PyTree, image: np.ndarray | Array) -> np.ndarray:
    """Class probabilities f32[*spatial, C], on the host, of an image f32[*spatial, channels]; `state` is passed on to `predict`."""
    image = np.asarray(image, np.float32)
    padding = [_split(-size % self._multiple) for size in image.shape[:-1]]
    inside = tuple(slice(before, before + size) for size, (before, _) in zip(image.shape[:-1], padding, strict=True))
    padded = jax.device_put(np.pad(image, [*padding, (0, 0)])[None])
    return np.array(jax.device_get(self._run(state, padded))[0][inside])


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


@functools.lru_cache(maxsize=4)
def _stateless(predict: Callable[[Array], Array], patch: tuple[int, ...], stride: tuple[int, ...], window_batch: int) -> SlidingWindow:
  return SlidingWindow(lambda _, image: predict(image), patch=patch, stride=stride, window_batch=window_batch)


def _average_windows(
  predict: Predictor,
  patch: tuple[int, ...],
  window_batch: int,
  profile: np.ndarray | None,
  state: PyTree,
  volume: Array,
  starts: Array,
  weights: Array,
  counts: list[Array],
  num_batches: Array,
) -> Array:
  """Sums windows `starts[: num_batches · window_batch]`, each times its weight, and divides by the weights that a voxel has received."""
  channels = volume.shape[-1]
  windows = jax.ShapeDtypeStruct((window_batch, *patch, channels), volume.dtype)
  classes = jax.eval_shape(predict, state, windows).shape[-1]

  def add_batch(batch: Any, total: Array) -> Array:
    corners = jax.lax.dynamic_slice_in_dim(starts, batch * window_batch, window_batch)
    rows = jax.lax.dynamic_slice_in_dim(weights, batch * window_batch, window_batch)
    crop = functools.partial(jax.lax.dynamic_slice, volume, slice_sizes=(*patch, channels))
    # A stack of slices, not vmap: that would become a gather, which is slow.
    probabilities = predict(state, jnp.stack([crop((*corners[i], 0)) for i in range(window_batch)])).astype(jnp.float32)
    if profile is not None:
      probabilities = probabilities * profile[..., None]
    for i in range(window_batch):
      corner = (*corners[i], 0)
      seen = jax.lax.dynamic_slice(total, corner, (*patch, classes))
      total = jax.lax.dynamic_update_slice(total, seen + rows[i] * probabilities[i], corner)
    return total

  total = jax.lax.fori_loop(0, num_batches, add_batch, jnp.zeros((*volume.shape[:-1], classes), jnp.float32))
  # Windows form a grid and their weights are products over axes, so the sum of weights over a voxel is one too: 0 outside them all.
  visits = functools.reduce(jnp.multiply, jnp.ix_(*counts))
  return total / jnp.where(visits > 0, visits, 1)[..., None]


def _starts(size: int, window: int, stride: int) -> list[int]:
  return [min(stride * i, size - window) for i in range(math.ceil((size - window) / stride) + 1)]


def _counts(starts: list[int], profile: np.ndarray, size: int) -> np.ndarray:
  """Sum of the weights of all windows over each voxel of one axis: f32[size]."""
  total = np.zeros(size, np.float32)
  for start in starts:
    total[start : start + len(profile)] += profile
  return total


def _gaussian(size: int) -> np.ndarray:
  """exp(−½ ((i − (size − 1)/2) / (size/8))²) of one axis: f32[size]."""
  return np.exp(-0.5 * ((np.arange(size) - (size - 1) / 2) * _GAUSSIAN_WIDTH / size) ** 2).astype(np.float32)


def _split(padding: int) -> tuple[int, int]:
  return padding // 2, padding - padding // 2
