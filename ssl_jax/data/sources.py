"""Opens the data set a configuration names, and keeps its prepared scans in memory."""

import collections
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from ssl_jax.data.acdc import open_acdc_h5, open_acdc_nifti
from ssl_jax.data.brats import open_brats_h5, open_brats_nifti
from ssl_jax.data.case import Case, Source, unknown_name
from ssl_jax.data.la import open_la_h5, open_la_nrrd
from ssl_jax.data.msd import open_msd
from ssl_jax.data.pancreas import open_pancreas_h5, open_pancreas_nifti
from ssl_jax.data.phantom import PhantomSource
from ssl_jax.data.preprocess import canonical_case, downsample_case, resample_case, zscore_case
from ssl_jax.data.slices import slice_source
from ssl_jax.data.synapse import open_synapse_nifti, open_synapse_npz
from ssl_jax.types import DataConfig, InputError

_OPENERS: dict[str, Callable[[DataConfig], Source]] = {
  "msd": open_msd,
  "la_h5": open_la_h5,
  "la_nrrd": open_la_nrrd,
  "pancreas_h5": open_pancreas_h5,
  "pancreas_nifti": open_pancreas_nifti,
  "brats_h5": open_brats_h5,
  "brats_nifti": open_brats_nifti,
  "acdc_h5": open_acdc_h5,
  "acdc_nifti": open_acdc_nifti,
  "synapse_npz": open_synapse_npz,
  "synapse_nifti": open_synapse_nifti,
  "phantom": lambda cfg: PhantomSource(cfg.phantom),
}
_PREPARING = ("la_nrrd", "pancreas_nifti", "brats_nifti", "acdc_nifti", "synapse_nifti")
_NORMALISERS: dict[str, Callable[[Case], Case]] = {"none": lambda case: case, "zscore": zscore_case}
CACHE_BYTES = 8 << 30  # decoded scans beyond this are dropped, the longest unused first, and read again when needed


class CachedSource:
  """Another source's scans, downsampled and normalised, decoded once; safe to use from several threads.

  Images stay float32: half precision would save memory but overflows beyond 65504 and rounds CT values. Arrays are read-only, since all
  callers share them.
  """

  def __init__(self, source: Source, prepare: Callable[[Case], Case], cache_bytes: int = CACHE_BYTES):
    """Wraps `source`; `prepare` runs once per decoded case."""
    self._source, self._prepare, self._cache_bytes = source, prepare, cache_bytes
    self._cache: collections.OrderedDict[str, Case] = collections.OrderedDict()
    self._lock = threading.Lock()
    self._loading: dict[str, threading.Lock] = {}
    self.train_names, self.test_names, self.names = source.train_names, source.test_names, source.names
    self.volume_of: Mapping[str, str] = getattr(source, "volume_of", {})
    self.channels, self.num_classes, self.class_names = source.channels, source.num_classes, source.class_names

  def has_label(self, name: str) -> bool:
    """Whether the case has a label file."""
    return self._source.has_label(name)

  def files(self, name: str) -> tuple[Path, ...]:
    """The files a case is read from."""
    return self._source.files(name)

  def load(self, name: str) -> Case:
    """Returns the prepared case, from memory when it was read before."""
    with self._lock:
      loading = self._loading.setdefault(name, threading.Lock())
    with loading:  # one thread decodes a case, the others wait for it; different cases decode side by side
      with self._lock:
        if name in self._cache:
          self._cache.move_to_end(name)
          return self._cache[name]
      case = self._prepare(self._source.load(name))
      for array in (case.image, case.label):
        if array is not None:
          array.flags.writeable = False
      with self._lock:
        self._cache[name] = case
        while len(self._cache) > 1 and sum(_num_bytes(kept) for kept in self._cache.values()) > self._cache_bytes:
          self._cache.popitem(last=False)
      return case


def open_source(cfg: DataConfig) -> Source:
  """Opens `cfg.source` at `cfg.root`: lists its cases and reads volumes when they are asked for.

  A scan is read, then prepared (see `prepare_case`), then, with `cfg.slices`, cut into slices;
  sources whose training cases are slices in files of their own give these.

  Args:
    cfg: the data configuration.

  Returns: a `Source`; `load` gives image f32[*spatial, channels] and label u8[*spatial].

  Raises:
    InputError: an unknown name, a missing folder, or missing files; `load` raises it for a damaged or inconsistent case.
  """
  if cfg.source not in _OPENERS:
    raise unknown_name("data.source", cfg.source, _OPENERS)
  if cfg.normalise not in _NORMALISERS:
    raise unknown_name("data.normalise", cfg.normalise, _NORMALISERS)
  source = prepare(_OPENERS[cfg.source](cfg), cfg)
  return slice_source(source, cfg) if cfg.slices and not source.volume_of else source


def check_predictable(cfg: DataConfig) -> None:
  """Refuses to predict plain NIfTI images with a network that was trained on scans cropped and normalised while they were read.

  Raises:
    InputError: the source does more than read.
  """
  if cfg.source in _PREPARING:
    raise InputError(
      f"config.data.source={cfg.source!r} crops and normalises scans as it reads them, which --mode=predict would not: its labels would be "
      "wrong. Train on imported scans (python -m ssl_jax.data prepare …) and predict images prepared in the same way"
    )


def prepare(source: Source, cfg: DataConfig) -> CachedSource:
  """Returns the source with every scan prepared, see `prepare_case`, and kept in memory."""
  return CachedSource(source, lambda case: prepare_case(case, cfg))


def prepare_case(case: Case, cfg: DataConfig) -> Case:
  """Turns a scan to `cfg.canonical` axes, brings it to `cfg.spacing`, averages `cfg.downsample` voxels, then normalises what is left.

  Resampling and averaging run along as many axes as `cfg.patch` has: for a 2D network never across slices.

  Raises:
    InputError: the scan's shape or header does not allow it.
  """
  case = canonical_case(case) if cfg.canonical else case
  case = resample_case(case, cfg.spacing) if cfg.spacing else case
  return _NORMALISERS[cfg.normalise](downsample_case(case, cfg.downsample, len(cfg.patch)))


def _num_bytes(case: Case) -> int:
  return case.image.nbytes + (case.label.nbytes if case.label is not None else 0)
