"""Left Atrium (2018 Atrial Segmentation Challenge): the h5 files that published methods share, and the raw challenge files.

h5:  `<root>/<case>/mri_norm2.h5` with datasets `image` (f32[X, Y, Z]) and `label` (u8[X, Y, Z]), lists `train.list` and `test.list`.
raw: `<root>/<case>/lgemri.nrrd` and `<case>/laendo.nrrd` (255 = cavity); a case without the latter is unlabelled.
"""

import dataclasses
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ssl_jax.data.case import (
  Case,
  SourceBase,
  assemble_case,
  check_affine,
  check_file,
  check_root,
  check_size,
  check_volumes,
  find_cases,
  resolve_lists,
)
from ssl_jax.data.h5 import H5Source, import_cases
from ssl_jax.data.preprocess import bounding_box, translation
from ssl_jax.types import DataConfig, InputError

_SPACING_MM = 0.625
_MIN_SIDE = (112, 112)  # the crop holds at least the published patch in-plane; the third axis is kept whole
H5_PATTERN, RAW_PATTERN = "{}/mri_norm2.h5", "{}/lgemri.nrrd"
_RAW_LABEL = "laendo.nrrd"
_DETACHED = {"data file", "datafile"}  # header fields that name files of voxels, anywhere on the disk
_ENCODINGS = ("raw", "gzip", "gz")
_TO_RAS = {
  **dict.fromkeys(("right-anterior-superior", "ras"), (1.0, 1.0, 1.0)),
  **dict.fromkeys(("left-anterior-superior", "las"), (-1.0, 1.0, 1.0)),
  **dict.fromkeys(("left-posterior-superior", "lps"), (-1.0, -1.0, 1.0)),
}
_ADVICE_RAW = (
  "source 'la_nrrd' reads the raw Left Atrium benchmark (2018 Atrial Segmentation Challenge, registration at "
  "https://www.cardiacatlas.org/atriaseg2018-challenge/); unpack it so that FOLDER/<case>/lgemri.nrrd exists and pass "
  "--config.data.root=FOLDER."
)
_ADVICE_H5 = (
  "source 'la_h5' reads the prepared Left Atrium benchmark (2018 Atrial Segmentation Challenge), FOLDER/<case>/mri_norm2.h5 with "
  "train.list and test.list, as UA-MT's repository (https://github.com/yulequan/UA-MT) shares it, or made from the raw challenge files by "
  "`python -m ssl_jax.data prepare la RAW_FOLDER FOLDER`; pass --config.data.root=FOLDER."
)


@dataclasses.dataclass(frozen=True)
class LaNrrdSource(SourceBase):
  """The raw challenge files with the published preprocessing applied on the fly."""

  root: Path = Path()
  seed: int = 0

  def files(self, name: str) -> tuple[Path, ...]:
    """The image file, then the label file where there is one."""
    label = self.root / name / _RAW_LABEL
    return (self.root / RAW_PATTERN.format(name),) + ((label,) if label.is_file() else ())

  def has_label(self, name: str) -> bool:
    """Whether `laendo.nrrd` is there."""
    return len(self.files(name)) > 1

  def load(self, name: str) -> Case:
    """Reads one raw case, normalises it over the whole scan and crops it around the atrium (see `crop_box`)."""
    files = self.files(name)
    raw, header = _read_nrrd(files[0])
    image: np.ndarray = raw.astype(np.float32)
    affine = _nrrd_affine(header, files[0])
    label = check_volumes(image, _read_nrrd(files[1])[0] if len(files) > 1 else None, files, (0, 255))
    image = (image - image.mean(dtype=np.float64)) / max(image.std(dtype=np.float64), 1e-8)
    if label is not None:
      box = crop_box(label, np.random.default_rng([self.seed, zlib.crc32(name.encode())]))
      image, label = image[box], label[box] // 255
      affine = affine @ translation([side.start for side in box])
    return assemble_case(name, image, label, affine)


def open_la_h5(cfg: DataConfig) -> H5Source:
  """Lists the cases of a prepared folder; raises `InputError` when there are none."""
  root = check_root(cfg.root, _ADVICE_H5)
  lists = resolve_lists(root, cfg, find_cases(root, H5_PATTERN, _ADVICE_H5))
  return H5Source(*lists, root=root, pattern=H5_PATTERN, spacing_mm=_SPACING_MM)


def open_la_nrrd(cfg: DataConfig) -> LaNrrdSource:
  """Lists the cases of a raw folder; raises `InputError` when there are none."""
  root = check_root(cfg.root, _ADVICE_RAW)
  return LaNrrdSource(*resolve_lists(root, cfg, find_cases(root, RAW_PATTERN, _ADVICE_RAW)), root=root)


def crop_box(label: np.ndarray, rng: np.random.Generator) -> tuple[slice, ...]:
  """The atrium's bounding box, grown in-plane to at least 112 x 112 and by a random margin of 10-19 voxels a side; the third axis is whole.

  Args:
    label: u8[X, Y, Z], nonzero = atrium. An empty label keeps the whole scan.
    rng: source of the margins.

  Returns: one slice per axis, inside the scan.

  Source: UA-MT's `la_heart_processing.py` [C]. Its margins came from an unseeded generator, so the shared h5 files cannot be
  regenerated voxel for voxel; a seed per case makes ours repeatable.
  """
  extent = bounding_box(label)
  if extent is None:
    return tuple(slice(0, side) for side in label.shape)
  box = []
  for axis, (low, high) in enumerate(extent):
    if axis >= len(_MIN_SIDE):
      box.append(slice(0, label.shape[axis]))
      continue
    grow = max(_MIN_SIDE[axis] - (high - low), 0) // 2
    before, after = (int(margin) for margin in rng.integers(10, 20, size=2))
    box.append(slice(max(low - before - grow, 0), min(high + after + grow, label.shape[axis])))
  return tuple(box)


def prepare_la(root_in: str | os.PathLike[str], root_out: str | os.PathLike[str], seed: int = 0) -> tuple[str, ...]:
  """Writes the raw challenge files in the layout of source `la_h5`, list files included, and returns the case names.

  Args:
    root_in: folder with `<case>/lgemri.nrrd`.
    root_out: folder to write; files of the same name are replaced.
    seed: of the random crop margins; a case's crop depends on the seed and its name only.

  Raises:
    InputError: `root_in` holds no raw case, or a file is damaged.
  """
  root = check_root(os.fspath(root_in), _ADVICE_RAW)
  source = LaNrrdSource(tuple(find_cases(root, RAW_PATTERN, _ADVICE_RAW)), (), root=root, seed=seed)
  return import_cases(source, root, Path(root_out), H5_PATTERN, (DataConfig.train_list, DataConfig.test_list))


def _read_nrrd(file: Path) -> tuple[np.ndarray, dict[str, Any]]:
  try:
    import nrrd  # an optional dependency, needed for raw challenge files only
  except ImportError as error:
    raise InputError(f"{file}: reading NRRD needs pynrrd; run `pip install pynrrd`") from error
  try:
    check_file(file)
    with file.open("rb") as stream:
      header = nrrd.read_header(stream)
      if not _DETACHED.isdisjoint(header):
        raise InputError(f"{file}: its voxels lie in another file, which is not read; save them in one")
      if header["encoding"] not in _ENCODINGS or header["type"] == "block":
        raise InputError(f"{file}: {header['encoding']} of {header['type']} is not read; save real numbers, raw or with gzip")
      check_size([int(side) for side in header["sizes"]], 1, file, compressed=True)
      return nrrd.read_data(header, stream, str(file)), header
  except InputError:
    raise
  except (
    OSError,
    EOFError,
    KeyError,
    TypeError,
    ValueError,
    OverflowError,
    MemoryError,
    StopIteration,
    zlib.error,
    nrrd.NRRDError,
  ) as error:
    reason = " ".join(str(error).split())
    raise InputError(f"{file} cannot be read, it is truncated or not NRRD: {reason}; fetch it again") from error


def _nrrd_affine(header: dict[str, Any], file: Path) -> np.ndarray:
  """Voxel index -> RAS mm; NRRD stores one direction a row, mostly in LPS."""
  affine = np.eye(4)
  directions = np.asarray(header.get("space directions", np.eye(3) * _SPACING_MM), float)
  origin = np.asarray(header.get("space origin", np.zeros(3)), float)
  space = str(header.get("space", "ras")).lower()
  if directions.shape != (3, 3) or origin.shape != (3,) or space not in _TO_RAS:
    raise InputError(f"{file}: 'space', 'space directions' and 'space origin' are not those of a 3D volume in mm; convert it again")
  affine[:3, :3], affine[:3, 3] = directions.T, origin
  check_affine(affine, file)
  return np.diag([*_TO_RAS[space], 1.0]) @ affine
