"""Streams of weak views, labelled and unlabelled, and of synthetic images, as a pure function of the training step.

Row r of the endless global sequence of a stream depends on (seed, stream, r) alone. Step t takes rows t·B .. (t+1)·B - 1, and process p
of P the p-th contiguous share of them. So a run resumes by starting at its step, and neither the number of hosts nor of threads changes a
voxel.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np

from ssl_jax.data.case import Case, Source
from ssl_jax.data.split import Split
from ssl_jax.data.transforms import draw_view
from ssl_jax.types import DataConfig, InputError

_PREFETCHED_BATCHES = 4


@dataclasses.dataclass(frozen=True)
class _WeakView(grain.transforms.RandomMap):
  """Case index -> one weak view, with its label only in the labelled stream."""

  source: Source
  names: Sequence[str]
  cfg: DataConfig
  with_label: bool

  def random_map(self, element: int, rng: np.random.Generator) -> dict[str, Any]:
    case = self.source.load(self.names[element])
    _check_rank(self.cfg, case)
    label = case.label if self.with_label else None
    image, label = draw_view(self.cfg.view, case.image, label, self.cfg.patch, rng, self.cfg.intensity_jitter)
    crop: dict[str, Any] = {"image": image, "index": np.int32(element)}
    return crop if label is None else {**crop, "label": label}


@dataclasses.dataclass(frozen=True)
class _Synthetic(grain.transforms.Map):
  """Position -> the synthetic image there, with its label."""

  images: Sequence[tuple[np.ndarray, np.ndarray]]

  def map(self, element: int) -> dict[str, Any]:
    image, label = self.images[element]
    return {"image": np.asarray(image, np.float32), "label": np.asarray(label, np.int32), "index": np.int32(element)}


@dataclasses.dataclass(frozen=True)
class _Share:
  """A process's rows of every global batch, in order. Slicing `[p::P]` instead would interleave the rows of the processes."""

  rows: Any
  batch: int
  start_step: int
  num_steps: int
  process_index: int
  process_count: int

  def __len__(self) -> int:
    return self.num_steps * (self.batch // self.process_count)

  def __getitem__(self, position: int) -> dict[str, Any]:
    per_process = self.batch // self.process_count
    step, row = divmod(int(position), per_process)
    return self.rows[(self.start_step + step) * self.batch + self.process_index * per_process + row]


def batches(
  cfg: DataConfig,
  source: Source,
  split: Split,
  *,
  seed: int,
  batch_labelled: int,
  batch_unlabelled: int,
  start_step: int,
  num_steps: int,
  process_index: int = 0,
  process_count: int = 1,
  num_threads: int = 2,
  synthetic: Sequence[tuple[np.ndarray, np.ndarray]] | None = None,
  batch_synthetic: int = 0,
) -> Iterator[dict[str, dict[str, np.ndarray]]]:
  """Yields this process's part of the batches of steps `start_step` .. `start_step + num_steps - 1`.

  Each stream shuffles its cases anew every pass and never ends, so a batch may be larger than the set. The concatenation of all
  processes' parts, in order of `process_index`, is the batch one process would see. No label of an unlabelled case enters a batch. When
  `split.unlabelled` is empty, the unlabelled stream draws the labelled cases' images, as published runs with 100 % labels do [C].

  Args:
    cfg: gives `patch`, `view` and `intensity_jitter`.
    source, split: from `open_source` and `make_split`.
    seed: of order and augmentation, in [0, 2^31).
    batch_labelled, batch_unlabelled: crops per step over all processes; `batch_unlabelled=0` gives arrays of 0 rows.
    start_step, num_steps: which steps.
    process_index, process_count: this process among all.
    num_threads: readers that prepare batches ahead; 0 prepares each when asked.
    synthetic: images made by the method, each `(image f32[*patch, channels], label integer[*patch])`; they are not augmented.
    batch_synthetic: of these per step over all processes; 0 leaves the third stream out.

  Returns: an iterator of `{"labelled": {"image", "label", "index"}, "unlabelled": {"image", "index"}}` with image f32[B, *patch, channels],
    label i32[B, *patch], index i32[B] (position in `split.labelled + split.unlabelled`), and with `batch_synthetic` also
    `"synthetic": {"image", "label", "index"}` (position in `synthetic`).

  Raises:
    InputError: a number out of range, a batch that does not divide among the processes, a patch of another rank than the scans,
      synthetic images asked for that no one made, or, while iterating, a damaged case.
  """
  if not 0 <= seed < 2**31:
    raise InputError(f"seed={seed} must lie in [0, 2**31)")
  sizes = (("batch_labelled", batch_labelled, 1), ("batch_unlabelled", batch_unlabelled, 0), ("batch_synthetic", batch_synthetic, 0))
  for key, size, least in sizes:
    if size < least or size % process_count:
      raise InputError(f"train.{key}={size} must be at least {least} and a multiple of the {process_count} process(es)")
  if not 0 <= process_index < process_count:
    raise InputError(f"process_index={process_index} must lie in [0, {process_count})")
  if batch_synthetic and not synthetic:
    raise InputError(f"train.batch_synthetic={batch_synthetic}, but this method makes no synthetic images; set it to 0")
  check_patch(cfg, source, split)
  if num_steps <= 0:
    return iter(())

  names = split.labelled + split.unlabelled
  first_unlabelled = len(split.labelled) if split.unlabelled else 0

  def stream(cases: Any, stream_seed: int, batch: int, transform: Any) -> Any:
    rows = cases.seed(stream_seed).shuffle().repeat().apply(transform)  # shuffle before repeat: passes do not mix
    share = _Share(rows, batch, start_step, num_steps, process_index, process_count)
    return grain.MapDataset.source(share).batch(batch // process_count)

  labelled = grain.MapDataset.range(0, len(split.labelled))
  streams = {"labelled": stream(labelled, 2 * seed, batch_labelled, _WeakView(source, names, cfg, True))}
  if batch_unlabelled:
    unlabelled = grain.MapDataset.range(first_unlabelled, len(names))
    streams["unlabelled"] = stream(unlabelled, 2 * seed + 1, batch_unlabelled, _WeakView(source, names, cfg, False))
  else:
    nothing = {"image": np.zeros((0, *cfg.patch, source.channels), np.float32), "index": np.zeros(0, np.int32)}
    streams["unlabelled"] = grain.MapDataset.range(num_steps).map(lambda _: nothing)
  if batch_synthetic and synthetic:
    # The other streams take all seeds below 2^32; this one's is drawn from the same range.
    own_seed = int(np.random.SeedSequence((seed, len(streams))).generate_state(1)[0])
    streams["synthetic"] = stream(grain.MapDataset.range(len(synthetic)), own_seed, batch_synthetic, _Synthetic(synthetic))
  joined = grain.experimental.ZipMapDataset(list(streams.values())).map(lambda parts: dict(zip(streams, map(dict, parts), strict=True)))
  return iter(
    joined.to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=_PREFETCHED_BATCHES if num_threads else 0))
  )


def check_patch(cfg: DataConfig, source: Source, split: Split) -> None:
  """Raises `InputError` when the first labelled case has another rank than `cfg.patch`."""
  _check_rank(cfg, source.load(split.labelled[0]))


def _check_rank(cfg: DataConfig, case: Case) -> None:
  shape = case.image.shape[:-1]
  if len(cfg.patch) == len(shape) and min(cfg.patch) >= 1:
    return
  problem = f"data.patch={cfg.patch} does not fit scans of rank {len(shape)}, such as {case.name!r} of shape {shape}"
  advice = "; set config.data.slices=True to train a 2D network on their slices" if (len(cfg.patch), len(shape)) == (2, 3) else ""
  raise InputError(problem + advice)


def fingerprint(cfg: DataConfig, source: Source, split: Split) -> str:
  """SHA-256 over the data a run sees: split, case names and contents, so that two results can be known to rest on the same data.

  Files count with their size and their first and last 4 KiB, cases without files with their voxels. Where the folder lies does not matter.

  Returns: 64 hexadecimal digits.
  """
  digest = hashlib.sha256(repr((cfg.source, cfg.downsample, cfg.normalise, source.class_names, split)).encode())
  for name in sorted({*split.labelled, *split.unlabelled, *split.evaluation}):
    digest.update(name.encode())
    files = source.files(name)
    for file in files:
      digest.update(_ends(file))
    if not files:
      case = source.load(name)
      for array in (case.image, case.label):
        digest.update(b"" if array is None else array.tobytes())
  return digest.hexdigest()


def _ends(file: Path, count: int = 4096) -> bytes:
  size = file.stat().st_size
  with file.open("rb") as stream:
    head = stream.read(count)
    stream.seek(max(size - count, 0))
    return f"{file.name} {size} ".encode() + head + stream.read(count)
