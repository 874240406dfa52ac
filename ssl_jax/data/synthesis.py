"""Many labelled 2D images from one labelled slice: the exemplar's classes, transformed, pasted onto transformed unlabelled slices.

Source: CMEMS, section 3.2 and eq. 1; it gives no ranges, all of them are in `SynthesisConfig` [D].
"""

import concurrent.futures
import dataclasses
import hashlib
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tqdm
from scipy import ndimage

from ssl_jax.data.case import Source, unknown_name
from ssl_jax.data.pipeline import fingerprint
from ssl_jax.data.split import Split
from ssl_jax.data.transforms import resize_nearest
from ssl_jax.types import DataConfig, InputError, SynthesisConfig

Pairs = Sequence[tuple[np.ndarray, np.ndarray]]
_STREAM = 0x5E7  # keeps these draws apart from all others that start from the run's seed
_VERSION = 1  # part of the fingerprint: raise it when the same draws give other images
_SHOWN = 32  # images on the contact sheet


def choose_exemplar(source: Source, names: Sequence[str], num_classes: int, rank: int = 0) -> str:
  """Returns the slice to label: of those that hold every class, the one whose smallest class covers the largest share of its area.

  Args:
    source: 2D slices.
    names: the candidates; those without a label are passed over.
    num_classes: background included.
    rank: 0 for the best, 1 for the next, ...; equal ones keep the order of `names`.

  Raises:
    InputError: scans that are not 2D, no slice with every class, or fewer than `rank + 1`.

  Source: the paper takes a slice with every class and repeats with others (Table 8) [P]; the order is ours [D].
  """
  smallest, seen = {}, np.zeros(num_classes, bool)
  for name in names:
    if not source.has_label(name):
      continue
    label = _load_slice(source, name).label
    counts = np.bincount(label.ravel(), minlength=num_classes)
    seen |= counts > 0
    smallest[name] = counts[1:].min() / label.size
  qualified = sorted((name for name, share in smallest.items() if share > 0), key=lambda name: -smallest[name])
  if not qualified:
    absent = [source.class_names[k] for k in range(1, num_classes) if not seen[k]]
    why = f"none has {', '.join(absent)}" if absent else "each lacks some class"
    raise InputError(f"data.synthesis.exemplar: no slice among {len(smallest)} labelled training slices holds every class, {why}")
  if not 0 <= rank < len(qualified):
    raise InputError(f"data.synthesis.exemplar_rank={rank} must lie in [0, {len(qualified)}): so many slices hold every class")
  return qualified[rank]


def exemplar_split(split: Split, exemplar: str) -> Split:
  """Makes the exemplar the only labelled case and all other training cases unlabelled, in their order; evaluation is untouched.

  Slices of the exemplar's own volume stay, unlabelled.

  Raises:
    InputError: the exemplar is not in the training set.
  """
  train = split.labelled + split.unlabelled
  if exemplar not in train:
    raise unknown_name("data.synthesis.exemplar", exemplar, train[:20] if len(train) > 20 else train)
  return dataclasses.replace(split, labelled=(exemplar,), unlabelled=tuple(name for name in train if name != exemplar))


def with_exemplar(cfg: DataConfig, source: Source, split: Split) -> Split:
  """`exemplar_split` for the exemplar that the configuration names or, with "auto", that `choose_exemplar` finds."""
  chosen = cfg.synthesis.exemplar
  if chosen == "auto":
    chosen = choose_exemplar(source, split.labelled + split.unlabelled, source.num_classes, cfg.synthesis.exemplar_rank)
  return exemplar_split(split, chosen)


@dataclasses.dataclass(frozen=True, eq=False)
class Synthetic(Sequence):
  """Ω: images b·n .. b·n + n - 1 show the exemplar's classes on the b-th background slice, n = `ranges.per_background`.

  Image i is a pure function of (seed, i). G: flip of each axis with probability ½, scale, rotation, shift, in this order, about the centre.
  I: x ← gain·x + offset + noise. Exemplar and background draw their own G and I [D]: the exemplar's G moves image (linear) and label
  (nearest) together, and its shift is cut so that no class leaves the picture as long as all of them fit into it [D]; the background is
  continued beyond its edges by reflection [D]. The label holds only what was pasted: organs of the background slice count as background.

  Attributes:
    source, backgrounds: the unlabelled slices; their labels are not looked at.
    image, label: the exemplar, f32[*patch, channels] and u8[*patch].
    ranges: of the draws.
    seed: of all draws.

  Item: f32[*patch, channels], u8[*patch].
  """

  source: Source
  backgrounds: tuple[str, ...]
  image: np.ndarray
  label: np.ndarray
  ranges: SynthesisConfig
  seed: int

  def __len__(self) -> int:
    return len(self.backgrounds) * self.ranges.per_background

  def __getitem__(self, index: Any) -> tuple[np.ndarray, np.ndarray]:
    if not 0 <= index < len(self):
      raise IndexError(index)
    rng = np.random.default_rng([_STREAM, self.seed, int(index)])
    background = _load_slice(self.source, self.backgrounds[index // self.ranges.per_background]).image
    matrix, shift = _draw_geometry(self.label.shape, self.ranges, rng)
    image = _transform(resize_nearest(background, self.label.shape), matrix, shift, mode="reflect")
    gain, offset = rng.uniform(*self.ranges.gain), rng.uniform(-self.ranges.offset, self.ranges.offset)
    image = np.float32(gain) * image + np.float32(offset)
    label = np.zeros(self.label.shape, np.uint8)
    self._paste(image, label, rng)
    image += np.float32(self.ranges.noise) * rng.standard_normal(image.shape, np.float32)  # the same σ everywhere: once for both
    return image, label

  def _paste(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> None:
    """Transforms the exemplar within its classes' bounding box only and writes its pixels into `image` and `label`."""
    matrix, shift = _draw_geometry(label.shape, self.ranges, rng)
    gain, offset = rng.uniform(*self.ranges.gain), rng.uniform(-self.ranges.offset, self.ranges.offset)
    middle, last = _centre(label.shape), np.array(label.shape) - 1.0
    outline = (_outline(self.label) - middle) @ matrix.T + middle
    low, high = outline.min(axis=0), outline.max(axis=0)
    shift = np.where(high - low <= last, np.clip(shift, -low, last - high), (last - high - low) / 2)
    start = np.clip(np.floor(low + shift).astype(int) - 1, 0, None)
    stop = np.minimum(np.ceil(high + shift).astype(int) + 2, label.shape)
    box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    pasted = _transform(self.label[..., None], matrix, shift, box, order=0)[..., 0]
    pixels = np.float32(gain) * _transform(self.image, matrix, shift, box, mode="nearest") + np.float32(offset)
    mask = pasted > 0
    image[box][mask] = pixels[mask]
    label[box][mask] = pasted[mask]


def open_synthetic(cfg: DataConfig, source: Source, split: Split, seed: int) -> Synthetic:
  """Returns the images that `cfg.synthesis` describes, each made when it is asked for.

  Args:
    cfg: gives `patch` and `synthesis`.
    source, split: 2D slices; `split.labelled` is the exemplar, `split.unlabelled` the backgrounds.
    seed: of all draws.

  Raises:
    InputError: an option out of range, an exemplar that lacks a class or is not the only labelled slice, or no background.
  """
  ranges = cfg.synthesis

  def need(ok: bool, key: str, what: str) -> None:
    if not ok:
      raise InputError(f"data.synthesis.{key}={getattr(ranges, key)!r} {what}")

  need(ranges.per_background >= 1, "per_background", "must be at least 1")
  need(0 < ranges.scale[0] <= ranges.scale[1], "scale", "needs 0 < lowest <= highest")
  need(0 < ranges.gain[0] <= ranges.gain[1], "gain", "needs 0 < lowest <= highest")
  for key in ("rotation_deg", "shift", "offset", "noise"):
    need(getattr(ranges, key) >= 0, key, "must not be negative")
  if len(split.labelled) != 1 or not split.unlabelled:
    raise InputError(
      f"data.synthesis needs one labelled slice, the exemplar, and unlabelled ones; the split has {len(split.labelled)} and "
      f"{len(split.unlabelled)}"
    )
  exemplar = _load_slice(source, split.labelled[0])
  if exemplar.label is None:
    raise InputError(f"data.synthesis.exemplar: {exemplar.name!r} has no label")
  label = resize_nearest(exemplar.label, cfg.patch)
  absent = np.setdiff1d(np.arange(1, source.num_classes), label)
  if absent.size:
    raise InputError(f"data.synthesis.exemplar: {exemplar.name!r} has no {source.class_names[absent[0]]}; name a slice with every class")
  return Synthetic(source, split.unlabelled, resize_nearest(exemplar.image, cfg.patch), label, ranges, seed)


def build_synthetic(
  cfg: DataConfig,
  source: Source,
  split: Split,
  seed: int,
  cache_dir: Path,
  *,
  process_index: int = 0,
  draw: Callable[[np.ndarray, np.ndarray, Path], object] | None = None,
  wait_s: float = 3600.0,
) -> Pairs:
  """Makes all images of `open_synthetic` once, and returns them from a file that is read as needed, without holding it in memory.

  The file is `<cache_dir>/synthetic_<fingerprint>.npy`: images as 8-bit values between their own extremes (error at most 1/510 of the
  range), labels as they are. It is written under another name first; one that is damaged is made again.

  Args:
    cfg, source, split, seed: as for `open_synthetic`.
    cache_dir: folder for the file; with several processes one that all of them see.
    process_index: process 0 makes the file, others wait for it.
    draw: called as (images, labels, `<cache_dir>/synthetic.png`) with some of the images when they are made.
    wait_s: how long other processes wait, seconds.

  Returns: pairs as of `Synthetic`, in the same order.

  Raises:
    InputError: as `open_synthetic`; a disk without enough space; a file that does not appear.
  """
  made = open_synthetic(cfg, source, split, seed)
  seen = fingerprint(cfg, source, dataclasses.replace(split, evaluation=()))
  key = repr((_VERSION, dataclasses.replace(cfg, root=""), seed, seen))  # where the data lie does not matter
  file = cache_dir / f"synthetic_{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
  record = np.dtype([("image", "u1", made.image.shape), ("label", "u1", made.label.shape), ("low", "f4"), ("step", "f4")])
  if process_index == 0 and _open_records(file, record, len(made)) is None:
    _write_records(made, file, record)
    if draw is not None:
      images, labels = zip(*(made[i] for i in np.linspace(0, len(made) - 1, min(_SHOWN, len(made))).astype(int)), strict=True)
      draw(np.stack(images), np.stack(labels), cache_dir / "synthetic.png")
  give_up = time.monotonic() + wait_s
  while (records := _open_records(file, record, len(made))) is None:
    if time.monotonic() > give_up:
      raise InputError(f"{file}: process 0 has not made this file within {wait_s:.0f} s; name a folder that all processes see")
    time.sleep(0.5)
  return _Stored(records)


@dataclasses.dataclass(frozen=True, eq=False)
class _Stored(Sequence):
  """What `_write_records` wrote, decoded item by item."""

  records: np.ndarray

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, index: Any) -> tuple[np.ndarray, np.ndarray]:
    if not 0 <= index < len(self):
      raise IndexError(index)
    record = self.records[int(index)]
    return record["image"] * record["step"] + record["low"], np.array(record["label"])


def _open_records(file: Path, record: np.dtype, count: int) -> np.ndarray | None:
  """Maps the file; `None` when it is not there or not whole."""
  try:
    records = np.load(file, mmap_mode="r")
  except (OSError, ValueError, EOFError):
    return None
  return records if records.dtype == record and records.shape == (count,) else None


def _write_records(made: Synthetic, file: Path, record: np.dtype) -> None:
  """Makes every image with one thread per core and stores them under `file` once all are there."""
  file.parent.mkdir(parents=True, exist_ok=True)
  needed, free = len(made) * record.itemsize, shutil.disk_usage(file.parent).free
  if needed > free:
    raise InputError(f"{file.parent}: {len(made)} synthetic images need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
  partial = file.with_suffix(f".partial{os.getpid()}")
  try:
    records = np.lib.format.open_memmap(partial, mode="w+", dtype=record, shape=(len(made),))

    def make(index: int) -> None:
      image, label = made[index]
      low = image.min()
      step = max((image.max() - low) / np.float32(255), np.finfo(np.float32).tiny)
      records[index] = (np.rint((image - low) / step), label, low, step)

    about = f"synthetic images, {needed / 1e9:.2g} GB in {file.parent}"
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      for _ in tqdm.tqdm(pool.map(make, range(len(made))), about, len(made), mininterval=1.0, leave=False, dynamic_ncols=True):
        pass
    records.flush()
    os.replace(partial, file)
  finally:
    partial.unlink(missing_ok=True)


def _load_slice(source: Source, name: str) -> Any:
  case = source.load(name)
  if case.image.ndim != 3:
    raise InputError(f"data.synthesis works on 2D slices, {name!r} has {case.image.ndim - 1} axes; set data.slices=True")
  return case


def _centre(shape: Sequence[int]) -> np.ndarray:
  return (np.array(shape) - 1) / 2


def _draw_geometry(shape: tuple[int, ...], ranges: SynthesisConfig, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
  """G as q = matrix · (p - centre) + centre + shift, p a pixel before and q after: f64[2, 2] and f64[2]."""
  flip = rng.choice((-1.0, 1.0), 2)
  angle = math.radians(rng.uniform(-ranges.rotation_deg, ranges.rotation_deg))
  turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
  return rng.uniform(*ranges.scale) * turn * flip, rng.uniform(-ranges.shift, ranges.shift, 2) * np.array(shape)


def _transform(
  image: np.ndarray, matrix: np.ndarray, shift: np.ndarray, box: tuple[slice, ...] | None = None, order: int = 1, mode: str = "constant"
) -> np.ndarray:
  """Samples number[*spatial, channels] after G, within `box` of the result or everywhere."""
  shape = image.shape[:-1]
  box = box or tuple(slice(0, side) for side in shape)
  inverse = np.linalg.inv(matrix)
  first = np.array([part.start for part in box])
  offset = _centre(shape) + inverse @ (first - _centre(shape) - shift)
  size = tuple(part.stop - part.start for part in box)
  channels = [ndimage.affine_transform(image[..., c], inverse, offset, size, order=order, mode=mode) for c in range(image.shape[-1])]
  return np.stack(channels, axis=-1)


def _outline(label: np.ndarray) -> np.ndarray:
  """First and last foreground pixel of every row that has one, f64[n, 2]: they contain the corners of the foreground's convex hull."""
  mask = label > 0
  rows = np.flatnonzero(mask.any(axis=1))
  first, last = mask[rows].argmax(axis=1), mask.shape[1] - 1 - mask[rows, ::-1].argmax(axis=1)
  return np.concatenate([np.stack([rows, first], axis=1), np.stack([rows, last], axis=1)]).astype(np.float64)
