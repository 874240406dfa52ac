"""Left Atrium (2018 Atrial Segmentation Challenge): the h5 files that published methods share, and the raw challenge files.

h5:  `<root>/<case>/mri_norm2.h5` with datasets `image` (f32[X, Y, Z]) and `label` (u8[X, Y, Z]), lists `train.list` and `test.list`.
raw: `<root>/<case>/lgemri.nrrd` and `<case>/laendo.nrrd` (255 = cavity); a case without the latter is unlabelled.
"""

import dataclasses
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ssl_jax.data.case import Case, SourceBase, check_image, check_label, check_root, resolve_lists
from ssl_jax.types import DataConfig, InputError

_SPACING_MM = 0.625
_MIN_SIDE = (112, 112)  # the crop holds at least the published patch in-plane; the third axis is kept whole
_H5, _RAW_IMAGE, _RAW_LABEL = "mri_norm2.h5", "lgemri.nrrd", "laendo.nrrd"
_ADVICE_RAW = (
  "source 'la_nrrd' reads the raw Left Atrium benchmark (2018 Atrial Segmentation Challenge, registration at "
  "https://www.cardiacatlas.org/atriaseg2018-challenge/); unpack it so that FOLDER/<case>/lgemri.nrrd exists and pass "
  "--config.data.root=FOLDER."
)
_ADVICE_H5 = (
  "source 'la_h5' reads the prepared Left Atrium benchmark (2018 Atrial Segmentation Challenge), FOLDER/<case>/mri_norm2.h5 with "
  "train.list and test.list, as UA-MT's repository (https://github.com/yulequan/UA-MT) shares it, or made from the raw challenge files by "
  "`python -m ssl_jax.data import-la RAW_FOLDER FOLDER`; pass --config.data.root=FOLDER."
)


@dataclasses.dataclass(frozen=True)
class LaH5Source(SourceBase):
  """The prepared benchmark."""

  root: Path = Path()

  def files(self, name: str) -> tuple[Path, ...]:
    """The case's one file."""
    return (self.root / name / _H5,)

  def has_label(self, name: str) -> bool:
    """Whether the file holds a dataset `label`."""
    return _read_h5(self.files(name)[0], lambda file: "label" in file)

  def load(self, name: str) -> Case:
    """Reads one case; the affine is the importer's where the file has one, else 0.625 mm isotropic."""
    file = self.files(name)[0]

    def read(h5: h5py.File) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
      if "image" not in h5:
        raise InputError(f"{file}: dataset 'image' is missing; fetch or import the case again")
      affine = h5.attrs.get("affine", np.diag([_SPACING_MM] * 3 + [1.0]))
      return h5["image"][()].astype(np.float32), h5["label"][()] if "label" in h5 else None, np.asarray(affine)

    image, label, affine = _read_h5(file, read)
    return _checked(name, image, label, affine, file, file, (0, 1))


@dataclasses.dataclass(frozen=True)
class LaNrrdSource(SourceBase):
  """The raw challenge files with the published preprocessing applied on the fly."""

  root: Path = Path()
  seed: int = 0

  def files(self, name: str) -> tuple[Path, ...]:
    """The image file, then the label file where there is one."""
    label = self.root / name / _RAW_LABEL
    return (self.root / name / _RAW_IMAGE,) + ((label,) if label.is_file() else ())

  def has_label(self, name: str) -> bool:
    """Whether `laendo.nrrd` is there."""
    return len(self.files(name)) > 1

  def load(self, name: str) -> Case:
    """Reads one raw case, normalises it over the whole scan and crops it around the atrium (see `crop_box`)."""
    image_file, *label_files = self.files(name)
    raw, header = _read_nrrd(image_file)
    image = raw.astype(np.float32)
    affine = _nrrd_affine(header)
    label = None
    check_image(image, image_file)
    image = (image - image.mean(dtype=np.float64)) / max(image.std(dtype=np.float64), 1e-8)
    if label_files:
      label = check_label(_read_nrrd(label_files[0])[0], image.shape, label_files[0], (0, 255)) // 255
      box = crop_box(label, np.random.default_rng([self.seed, zlib.crc32(name.encode())]))
      image, label = image[box], label[box]
      affine = affine @ _translation([side.start for side in box])
    return _checked(name, image.astype(np.float32), label, affine, image_file, image_file, (0, 1))


def open_la_h5(cfg: DataConfig) -> LaH5Source:
  """Lists the cases of a prepared folder; raises `InputError` when there are none."""
  root = check_root(cfg.root, _ADVICE_H5)
  return LaH5Source(*resolve_lists(root, cfg, _find(root, _H5, _ADVICE_H5)), root=root)


def open_la_nrrd(cfg: DataConfig) -> LaNrrdSource:
  """Lists the cases of a raw folder; raises `InputError` when there are none."""
  root = check_root(cfg.root, _ADVICE_RAW)
  return LaNrrdSource(*resolve_lists(root, cfg, _find(root, _RAW_IMAGE, _ADVICE_RAW)), root=root)


def crop_box(label: np.ndarray, rng: np.random.Generator) -> tuple[slice, ...]:
  """The atrium's bounding box, grown in-plane to at least 112 x 112 and by a random margin of 10-19 voxels a side; the third axis is whole.

  Args:
    label: u8[X, Y, Z], nonzero = atrium. An empty label keeps the whole scan.
    rng: source of the margins.

  Returns: one slice per axis, inside the scan.

  Source: UA-MT's `la_heart_processing.py` [C]. Its margins came from an unseeded generator, so the shared h5 files cannot be
  regenerated voxel for voxel; a seed per case makes ours repeatable.
  """
  box = []
  for axis in range(label.ndim):
    filled = np.flatnonzero(label.any(axis=tuple(other for other in range(label.ndim) if other != axis)))
    if axis >= len(_MIN_SIDE) or not filled.size:
      box.append(slice(0, label.shape[axis]))
      continue
    low, high = int(filled[0]), int(filled[-1])
    grow = max(_MIN_SIDE[axis] - (high - low), 0) // 2
    before, after = (int(margin) for margin in rng.integers(10, 20, size=2))
    box.append(slice(max(low - before - grow, 0), min(high + after + grow, label.shape[axis])))
  return tuple(box)


def import_la(root_in: str | os.PathLike[str], root_out: str | os.PathLike[str], seed: int = 0) -> tuple[str, ...]:
  """Writes the raw challenge files in the layout of source `la_h5`, list files included, and returns the case names.

  Args:
    root_in: folder with `<case>/lgemri.nrrd`.
    root_out: folder to write; files of the same name are replaced.
    seed: of the random crop margins; a case's crop depends on the seed and its name only.

  Raises:
    InputError: `root_in` holds no raw case, or a file is damaged.
  """
  root, out = check_root(os.fspath(root_in), _ADVICE_RAW), Path(root_out)
  source = LaNrrdSource(tuple(_find(root, _RAW_IMAGE, _ADVICE_RAW)), (), root=root, seed=seed)
  for name in source.names:
    case = source.load(name)
    target = out / name / _H5
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    with h5py.File(partial, "w") as file:
      file.create_dataset("image", data=case.image[..., 0], compression="gzip")
      if case.label is not None:
        file.create_dataset("label", data=case.label, compression="gzip")
      file.attrs["affine"] = case.affine
    partial.replace(target)
  for name in (DataConfig.train_list, DataConfig.test_list):
    if (root / name).is_file():
      shutil.copyfile(root / name, out / name)
  return source.names


def _checked(
  name: str, image: np.ndarray, label: np.ndarray | None, affine: np.ndarray, image_file: Path, label_file: Path, known: tuple[int, ...]
) -> Case:
  check_image(image, image_file)
  if label is not None:
    label = check_label(label, image.shape, label_file, known)
  spacing = tuple(float(side) for side in np.linalg.norm(affine[:3, :3], axis=0))
  return Case(name, np.ascontiguousarray(image[..., None]), label, spacing[: image.ndim], affine)


def _find(root: Path, file: str, advice: str) -> list[str]:
  names = sorted(path.parent.name for path in root.glob(f"*/{file}"))
  if not names:
    raise InputError(f"{root} holds no <case>/{file}: {advice}")
  return names


def _read_h5(file: Path, read: Callable[[h5py.File], Any]) -> Any:
  try:
    with h5py.File(file, "r") as h5:
      return read(h5)
  except InputError:
    raise
  except (OSError, KeyError, RuntimeError, ValueError) as error:
    raise InputError(f"{file} cannot be read, it is truncated or not HDF5: {error}; fetch it again") from error


def _read_nrrd(file: Path) -> tuple[np.ndarray, dict[str, Any]]:
  try:
    import nrrd  # an optional dependency, needed for raw challenge files only
  except ImportError as error:
    raise InputError(f"{file}: reading NRRD needs pynrrd; run `pip install pynrrd`") from error
  try:
    return nrrd.read(str(file))
  except (OSError, EOFError, ValueError, zlib.error, nrrd.NRRDError) as error:
    raise InputError(f"{file} cannot be read, it is truncated or not NRRD: {error}; fetch it again") from error


def _nrrd_affine(header: dict[str, Any]) -> np.ndarray:
  """Voxel index -> RAS mm; NRRD stores one direction a row, mostly in LPS."""
  affine = np.eye(4)
  directions = np.asarray(header.get("space directions", np.eye(3) * _SPACING_MM), float)
  affine[:3, :3] = directions.T
  affine[:3, 3] = header.get("space origin", np.zeros(3))
  if str(header.get("space", "")).lower() in ("left-posterior-superior", "lps"):
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
  return affine


def _translation(offset_vox: list[int]) -> np.ndarray:
  shift = np.eye(4)
  shift[: len(offset_vox), 3] = offset_vox
  return shift
