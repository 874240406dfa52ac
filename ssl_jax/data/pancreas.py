"""Pancreas-CT (NIH, 82 abdominal CT scans): the h5 files that published methods share, and NIfTI files.

h5:    `<root>/Pancreas_h5/imageXXXX_norm.h5` with datasets `image` and `label`, lists `train.list` and `test.list` in `<root>`.
NIfTI: `imageXXXX.nii.gz` or `PANCREAS_XXXX.nii.gz`, and `labelXXXX.nii.gz` as the archive names it, in `<root>` or in folders right below.
       DICOM has to be converted beforehand. A scan without a label file is unlabelled.

Cases 25 and 70 repeat other scans; the archive has since withdrawn their images. Without list files the published split is used: MC-Net's
62 + 20 when all 82 are there, CoraNet's 62 + 18 when those two, and only those, are missing.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ssl_jax.data.case import Case, assemble_case, check_root, check_voxels, find_cases, resolve_lists, spacing_of
from ssl_jax.data.h5 import H5Source, import_cases, write_list
from ssl_jax.data.nifti import NiftiSource, find_nifti
from ssl_jax.data.preprocess import bounding_box, resample, resampled_shape, translation
from ssl_jax.types import DataConfig, InputError

WINDOW_HU = (-125.0, 275.0)  # [C] CoraNet, MC-Net
MARGIN_VOX = 25  # [C] CoraNet: on every side of the pancreas, after resampling
MIN_SIDE_VOX = 96  # [C] CoraNet: the published patch
TARGET_MM = 1.0  # [C] CoraNet, MC-Net
DUPLICATES = ("image0025", "image0070")
H5_PATTERN = "Pancreas_h5/{}_norm.h5"
NIFTI_FOLDERS = (".", "*")
_LABEL_NAMING = r"label(?P<case>\d{4})\.nii(\.gz)?"
_IMAGE_NAMING = r"(image|pancreas_)(?P<case>\d{4})\.nii(\.gz)?"
_CLASSES = ("background", "pancreas")
_NUM_TRAIN = 62


def _names(numbers: str) -> tuple[str, ...]:
  return tuple(f"image{int(number):04d}" for number in numbers.split())


# Case numbers of train.list and test.list in the repository of MC-Net (https://github.com/ycwu1997/MC-Net), in their order.
PUBLISHED_TRAIN = _names(
  "57 18 62 31 20 17 32 79 61 64 70 19 48 76 41 52 49 71 72 34 10 15 77 80 27 47 22 14 68 58 7 "
  "11 24 42 82 35 12 55 75 78 16 13 53 23 56 33 38 30 81 29 36 44 2 45 26 65 66 43 28 63 69 3"
)
PUBLISHED_TEST = _names("50 59 37 60 40 74 4 46 8 54 5 73 1 39 6 67 25 51 21 9")

_ADVICE_NIFTI = (
  "source 'pancreas_nifti' reads Pancreas-CT (https://www.cancerimagingarchive.net/collection/pancreas-ct/) as NIfTI: convert each DICOM "
  "series to image0001.nii.gz, ..., put the archive's label0001.nii.gz, ... beside them or into another folder of FOLDER, and pass "
  "--config.data.root=FOLDER."
)
_ADVICE_H5 = (
  "source 'pancreas_h5' reads the prepared Pancreas-CT benchmark, FOLDER/Pancreas_h5/imageXXXX_norm.h5 with train.list and test.list, as "
  "MC-Net's repository (https://github.com/ycwu1997/MC-Net) arranges it, or made from NIfTI files by "
  "`python -m ssl_jax.data prepare pancreas NIFTI_FOLDER FOLDER`; pass --config.data.root=FOLDER."
)


@dataclasses.dataclass(frozen=True)
class PancreasNiftiSource(NiftiSource):
  """NIfTI files with the published preprocessing applied on the fly."""

  def load(self, name: str) -> Case:
    """Reads one scan at 1 mm isotropic, cropped around the pancreas (see `crop_box`), [-125, 275] HU mapped to [0, 1].

    y = (clip(x, -125, 275) + 125) / 400. Linear interpolation for the image, nearest voxel for the label. A scan without a label is kept
    whole.

    Source: CoraNet's `pancreas_preprocess.py` [C], and so [P] of CRLN. It scales between each scan's own extremes after clipping, which are
    the window's wherever a scan holds air and bone; MC-Net's files have zero mean and unit variance beyond that
    (`data.normalise=zscore`).
    Deviation: voxels past the last slice repeat it instead of being 0 HU.
    """
    image, label, affine = self.read(name, (0, 1))
    spacing = spacing_of(affine)
    check_voxels(resampled_shape(image.shape, spacing, TARGET_MM), self.images[name])
    box = None
    if label is not None:
      label = resample(label, spacing, TARGET_MM, order=0)
      if not label.any():
        raise InputError(f"{self.labels[name]}: no pancreas is left at {TARGET_MM:g} mm; remove the label or leave the case out")
      box = crop_box(label)
      label = label[box]
    image = resample(image, spacing, TARGET_MM, order=1, box=box)
    affine = affine @ np.diag([TARGET_MM / side for side in spacing] + [1.0]) @ translation([part.start for part in box or ()])
    low, high = WINDOW_HU
    return assemble_case(name, (np.clip(image, low, high) - low) / (high - low), label, affine)


def crop_box(label: np.ndarray) -> tuple[slice, ...]:
  """The pancreas's bounding box, grown by 25 voxels a side and to at least 96 along each axis, both as far as the scan reaches.

  Args:
    label: u8[X, Y, Z] at 1 mm, nonzero = pancreas, at least one voxel.

  Returns: one slice per axis, inside the scan.

  Source: CoraNet's `expand_bbox` [C], whose box has one more voxel at the far end. MC-Net's keeps the third axis whole.
  """
  extent = bounding_box(label)
  if extent is None:
    raise ValueError("the label is empty")
  box = []
  for (first, last), side in zip(extent, label.shape, strict=True):
    low, high = max(first - MARGIN_VOX, 0), min(last + 1 + MARGIN_VOX, side)
    if high - low < MIN_SIDE_VOX:  # grow on both sides, or towards the inside at the scan's edge
      low = max(min(low - (MIN_SIDE_VOX - (high - low)) // 2, side - MIN_SIDE_VOX), 0)
      high = min(low + MIN_SIDE_VOX, side)
    box.append(slice(low, high))
  return tuple(box)


def open_pancreas_h5(cfg: DataConfig) -> H5Source:
  """Lists the cases of a prepared folder; raises `InputError` when there are none."""
  root = check_root(cfg.root, _ADVICE_H5)
  lists = _resolve(root, cfg, find_cases(root, H5_PATTERN, _ADVICE_H5))
  return H5Source(*lists, class_names=_CLASSES, root=root, pattern=H5_PATTERN, spacing_mm=TARGET_MM)


def open_pancreas_nifti(cfg: DataConfig) -> PancreasNiftiSource:
  """Lists the scans of a folder of NIfTI files; raises `InputError` when there are none."""
  root = check_root(cfg.root, _ADVICE_NIFTI)
  images, labels = _find(root)
  return PancreasNiftiSource(*_resolve(root, cfg, tuple(images)), class_names=_CLASSES, images=images, labels=labels)


def prepare_pancreas(
  root_in: str | os.PathLike[str], root_out: str | os.PathLike[str], exclude_duplicates: bool = False
) -> tuple[str, ...]:
  """Writes NIfTI files in the layout of source `pancreas_h5`, and returns the case names.

  The list files of `root_in` are copied; where there is none, those of the published split are written if its cases are there.

  Args:
    root_in: folder of source `pancreas_nifti`.
    root_out: folder to write; files of the same name are replaced.
    exclude_duplicates: leave out cases 25 and 70.

  Raises:
    InputError: `root_in` holds no scan, or a file is damaged.
  """
  root, out = check_root(os.fspath(root_in), _ADVICE_NIFTI), Path(root_out)
  excluded = DUPLICATES if exclude_duplicates else ()
  images, labels = _find(root)
  kept = tuple(name for name in images if name not in excluded)
  lists = (DataConfig.train_list, DataConfig.test_list)
  import_cases(PancreasNiftiSource(kept, (), images=images, labels=labels), root, out, H5_PATTERN, lists, excluded)
  train, test = published_split(kept)
  if test and not any((root / name).is_file() for name in lists):
    write_list(out / DataConfig.train_list, train)
    write_list(out / DataConfig.test_list, test)
  return kept


def published_split(names: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """Training and test names of the published split that fits these cases; all of them train when none does.

  Args:
    names: the cases on disk, sorted.

  Source: all 82: the lists of MC-Net [C], whose test list holds case 25 while 70 trains. Without 25 and 70: sorted, the first 62 train,
  as CoraNet's code makes and BCP's repository lists it [C].
  """
  everything = sorted(PUBLISHED_TRAIN + PUBLISHED_TEST)
  if sorted(names) == everything:
    return PUBLISHED_TRAIN, PUBLISHED_TEST
  if sorted(names) == [name for name in everything if name not in DUPLICATES]:
    return tuple(names[:_NUM_TRAIN]), tuple(names[_NUM_TRAIN:])
  return tuple(names), ()


def _resolve(root: Path, cfg: DataConfig, names: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
  has_list = any((root / name).is_file() for name in (cfg.train_list, cfg.test_list))
  train, test = (tuple(names), ()) if has_list else published_split(names)
  return resolve_lists(root, cfg, train, test)


def _find(root: Path) -> tuple[dict[str, Path], dict[str, Path]]:
  found = [find_nifti(root, NIFTI_FOLDERS, naming) for naming in (_IMAGE_NAMING, _LABEL_NAMING)]
  images, labels = ({f"image{case}": file for case, file in files.items()} for files in found)
  if not images:
    raise InputError(f"{root} holds no imageXXXX.nii.gz: {_ADVICE_NIFTI}")
  return images, {name: file for name, file in labels.items() if name in images}
