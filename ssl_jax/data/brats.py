"""BraTS 2019 (335 multi-contrast brain MRI): whole tumour in the FLAIR image, as the semi-supervised benchmarks use it.

h5:    `<root>/data/<case>.h5` with datasets `image` and `label`; `train.txt`, `val.txt` and `test.txt` in `<root>` list 250, 25 and 60.
NIfTI: `<root>/<HGG|LGG>/<case>/<case>_flair.nii.gz` and `<case>_seg.nii.gz` (1, 2, 4 = parts of the tumour), or without the folder of the
       grade; a case without the latter is unlabelled.

`data.split=official` evaluates on `test.txt`, or with `data.test_list=val.txt` on the validation cases. `train.list` and `test.list` are
read where there is no `train.txt` or `test.txt`.
"""

import dataclasses
import os
from pathlib import Path

import numpy as np

from ssl_jax.data.case import Case, assemble_case, check_root, find_cases, resolve_lists
from ssl_jax.data.h5 import H5Source, import_cases
from ssl_jax.data.nifti import NiftiSource, find_nifti
from ssl_jax.data.preprocess import bounding_box, translation
from ssl_jax.types import DataConfig, InputError

H5_PATTERN = "data/{}.h5"
NIFTI_FOLDERS = ("*", "*/*")
CLIP_QUANTILE = 0.999  # [L] SSL4MIS
_LABEL_VALUES = (0, 1, 2, 4)
_LIST_ENDINGS = (".txt", ".list")
_LIST_FILES = ("train.txt", "val.txt", "test.txt", "train.list", "test.list")
_CLASSES = ("background", "whole_tumour")
_NAMING = r"(?P<case>[^.].*)_{}\.nii(\.gz)?"
_ADVICE_NIFTI = (
  "source 'brats_nifti' reads BraTS 2019 (registration at https://www.med.upenn.edu/cbica/brats2019/data.html); unpack it so that "
  "FOLDER/HGG/<case>/<case>_flair.nii.gz exists, put train.txt, val.txt and test.txt of SSL4MIS (https://github.com/HiLab-git/SSL4MIS, "
  "data/BraTS2019) into FOLDER and pass --config.data.root=FOLDER."
)
_ADVICE_H5 = (
  "source 'brats_h5' reads the prepared BraTS 2019 benchmark, FOLDER/data/<case>.h5 with train.txt, val.txt and test.txt, as SSL4MIS "
  "(https://github.com/HiLab-git/SSL4MIS, data/BraTS2019) shares it, or made from the challenge files by "
  "`python -m ssl_jax.data prepare brats NIFTI_FOLDER FOLDER`; pass --config.data.root=FOLDER."
)


@dataclasses.dataclass(frozen=True)
class BratsNiftiSource(NiftiSource):
  """The challenge files with the published preprocessing applied on the fly."""

  def load(self, name: str) -> Case:
    """Reads one FLAIR image, cropped to the brain and normalised (see `normalise_brain`), with labels 1, 2 and 4 merged into 1."""
    image, label, affine = self.read(name, _LABEL_VALUES)
    extent = bounding_box(image > 0)
    if extent is None:
      raise InputError(f"{self.images[name]}: no voxel is above 0, so there is no brain; fetch it again or leave the case out")
    box = tuple(slice(first, last + 1) for first, last in extent)
    label = None if label is None else (label[box] > 0).astype(np.uint8)
    return assemble_case(name, normalise_brain(image[box]), label, affine @ translation([part.start for part in box]))


def normalise_brain(image: np.ndarray) -> np.ndarray:
  """Clips at the 99.9 % quantile of all voxels, then shifts and scales so that voxels above 0 have zero mean and unit variance.

  y = (min(x, q) - mean) / std, for every voxel: what was 0 becomes -mean / std.

  Args:
    image: f32[X, Y, Z], cropped to the brain, at least one voxel above 0.

  Returns: f32[X, Y, Z].

  Source: SSL4MIS's `brats_proprecessing.py` [L]. Deviation: the quantile is exact, not the middle of one of 256 histogram bins; the crop
  keeps the last plane of the brain along each axis, which the published one cuts off; axes run X, Y, Z in RAS.
  """
  image = np.minimum(image, np.quantile(image, CLIP_QUANTILE))
  brain = image[image > 0]
  return ((image - brain.mean(dtype=np.float64)) / max(brain.std(dtype=np.float64), 1e-8)).astype(np.float32)


def open_brats_h5(cfg: DataConfig) -> H5Source:
  """Lists the cases of a prepared folder; raises `InputError` when there are none."""
  root = check_root(cfg.root, _ADVICE_H5)
  lists = resolve_lists(root, cfg, find_cases(root, H5_PATTERN, _ADVICE_H5), endings=_LIST_ENDINGS)
  return H5Source(*lists, class_names=_CLASSES, root=root, pattern=H5_PATTERN)


def open_brats_nifti(cfg: DataConfig) -> BratsNiftiSource:
  """Lists the cases of a folder of challenge files; raises `InputError` when there are none."""
  root = check_root(cfg.root, _ADVICE_NIFTI)
  images, labels = _find(root)
  lists = resolve_lists(root, cfg, tuple(images), endings=_LIST_ENDINGS)
  return BratsNiftiSource(*lists, class_names=_CLASSES, images=images, labels=labels)


def prepare_brats(root_in: str | os.PathLike[str], root_out: str | os.PathLike[str]) -> tuple[str, ...]:
  """Writes the challenge files in the layout of source `brats_h5`, list files included, and returns the case names.

  Args:
    root_in: folder of source `brats_nifti`.
    root_out: folder to write; files of the same name are replaced.

  Raises:
    InputError: `root_in` holds no case, or a file is damaged.
  """
  root = check_root(os.fspath(root_in), _ADVICE_NIFTI)
  images, labels = _find(root)
  source = BratsNiftiSource(tuple(images), (), images=images, labels=labels)
  return import_cases(source, root, Path(root_out), H5_PATTERN, _LIST_FILES)


def _find(root: Path) -> tuple[dict[str, Path], dict[str, Path]]:
  images, labels = (find_nifti(root, NIFTI_FOLDERS, _NAMING.format(kind)) for kind in ("flair", "seg"))
  if not images:
    raise InputError(f"{root} holds no <HGG|LGG>/<case>/<case>_flair.nii.gz: {_ADVICE_NIFTI}")
  return images, {name: file for name, file in labels.items() if name in images}
