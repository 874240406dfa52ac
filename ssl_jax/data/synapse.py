"""Synapse (30 labelled abdominal CT scans of the challenge "Beyond the Cranial Vault"): eight organs, as TransUNet uses them.

npz:   `<root>/train_npz/caseXXXX_sliceYYY.npz` with `image` and `label` [X, Y], YYY from 0; `<root>/test_vol_h5/caseXXXX.npy.h5` with
       [S, X, Y]; `lists/lists_Synapse/train.txt` (slices) and `test_vol.txt` (volumes) may lie in `<root>`.
NIfTI: `<root>/[RawData/Training/]img/imgXXXX.nii.gz` and `label/labelXXXX.nii.gz`, 13 organs; a scan without a label file is unlabelled.

Both name cases `caseXXXX` and test on the 12 published ones where no list says otherwise.
"""

import dataclasses
import os
from pathlib import Path

import numpy as np

from ssl_jax.data.case import Case, assemble_case, check_root, find_cases, resolve_lists
from ssl_jax.data.h5 import StackSource, find_slices, order_slices, write_list, write_slices, write_stack
from ssl_jax.data.nifti import NiftiSource, find_nifti
from ssl_jax.types import DataConfig, InputError

WINDOW_HU = (-125.0, 275.0)  # [C] TransUNet
PUBLISHED_TEST = tuple(f"case{number:04d}" for number in (8, 22, 38, 36, 32, 2, 29, 3, 1, 4, 25, 35))  # [C] TransUNet, in its order
SLICE_PATTERN = "train_npz/{}_slice{:03d}.npz"
H5_PATTERN = "test_vol_h5/{}.npy.h5"
IMAGE_FOLDERS = ("img", "RawData/Training/img")
_LABEL_FOLDERS = ("label", "RawData/Training/label")
_SLICE_LIST, _TEST_LIST = "lists/lists_Synapse/train.txt", "lists/lists_Synapse/test_vol.txt"
_SLICE_NAMING = r"(?P<slice>(?P<volume>[^.].*)_slice(?P<number>\d+))\.npz"
_CLASSES = ("background", "aorta", "gallbladder", "left_kidney", "right_kidney", "liver", "pancreas", "spleen", "stomach")
_CHALLENGE_VALUES = (8, 4, 3, 2, 6, 11, 1, 7)  # of these organs in the challenge's labels
_NUM_CHALLENGE_CLASSES = 14
_ADVICE_NIFTI = (
  "source 'synapse_nifti' reads the abdominal scans of https://www.synapse.org/#!Synapse:syn3193805 (registration); unpack RawData so that "
  "FOLDER/RawData/Training/img/img0001.nii.gz exists and pass --config.data.root=FOLDER."
)
_ADVICE_NPZ = (
  "source 'synapse_npz' reads the slices that TransUNet (https://github.com/Beckschen/TransUNet) shares, "
  "FOLDER/train_npz/caseXXXX_sliceYYY.npz and FOLDER/test_vol_h5/caseXXXX.npy.h5, or made from the challenge files by "
  "`python -m ssl_jax.data prepare synapse NIFTI_FOLDER FOLDER`; pass --config.data.root=FOLDER."
)


@dataclasses.dataclass(frozen=True)
class SynapseNiftiSource(NiftiSource):
  """The challenge files with the published preprocessing applied on the fly."""

  def load(self, name: str) -> Case:
    """Reads one scan, [-125, 275] HU mapped to [0, 1], 13 organs to 8 classes and background.

    y = (clip(x, -125, 275) + 125) / 400.

    Source: TransUNet, section 4.1 [P] and its data preparation [C]. Deviation: axes run X, Y, Z in RAS.
    """
    image, label, affine = self.read(name, range(_NUM_CHALLENGE_CLASSES))
    if label is not None:
      label = merge_organs(label)
      if not label.any():
        raise InputError(
          f"{self.labels[name]}: none of {', '.join(self.class_names[1:])} is marked; remove the label or leave the case out"
        )
    low, high = WINDOW_HU
    return assemble_case(name, (np.clip(image, low, high) - low) / (high - low), label, affine)


def merge_organs(label: np.ndarray) -> np.ndarray:
  """Challenge values 0..13 -> classes 0..8 (u8, same shape); the five organs that are not among them become background."""
  table = np.zeros(_NUM_CHALLENGE_CLASSES, np.uint8)
  table[list(_CHALLENGE_VALUES)] = range(1, len(_CLASSES))
  return table[label]


def open_synapse_npz(cfg: DataConfig) -> StackSource:
  """Lists the slices and test volumes of a prepared folder; a training volume can be loaded too, from its slices.

  Raises:
    InputError: there is no slice, `cfg.slices` is off, or a list is wrong.
  """
  root = check_root(cfg.root, _ADVICE_NPZ)
  if not cfg.slices:
    raise InputError("data.source='synapse_npz' holds slices to train on: set config.data.slices=True")
  slices, volume_of = find_slices((root / SLICE_PATTERN).parent, _SLICE_NAMING)
  if not slices:
    raise InputError(f"{root} holds no train_npz/caseXXXX_sliceYYY.npz: {_ADVICE_NPZ}")
  has_volumes = (root / H5_PATTERN).parent.is_dir()
  volumes = {name: root / H5_PATTERN.format(name) for name in find_cases(root, H5_PATTERN, _ADVICE_NPZ)} if has_volumes else {}
  if cfg.test_list == DataConfig.test_list and (root / _TEST_LIST).is_file():
    cfg = dataclasses.replace(cfg, test_list=_TEST_LIST)
  # Who prepares all 30 scans with TransUNet's script has slices and a volume of each.
  has_slices = set(volume_of.values())
  found_test = [name for name in (*PUBLISHED_TEST, *volumes) if name in volumes and (name in PUBLISHED_TEST or name not in has_slices)]
  train, test = resolve_lists(root, cfg, sorted(has_slices), tuple(dict.fromkeys(found_test)))
  default_list = cfg.slice_list == DataConfig.slice_list and not (root / cfg.slice_list).is_file()
  slice_list = root / (_SLICE_LIST if default_list else cfg.slice_list)
  train = order_slices(slice_list, cfg, volume_of, train, test)
  return StackSource(train, test, class_names=_CLASSES, volumes=volumes, slices=slices, volume_of=volume_of)


def open_synapse_nifti(cfg: DataConfig) -> SynapseNiftiSource:
  """Lists the scans of a folder of challenge files; raises `InputError` when there are none."""
  root = check_root(cfg.root, _ADVICE_NIFTI)
  found = [
    find_nifti(root, folders, rf"{kind}(?P<case>\d{{4}})\.nii(\.gz)?")
    for kind, folders in (("img", IMAGE_FOLDERS), ("label", _LABEL_FOLDERS))
  ]
  images, labels = ({f"case{case}": file for case, file in files.items()} for files in found)
  if not images:
    raise InputError(f"{root} holds no [RawData/Training/]img/imgXXXX.nii.gz: {_ADVICE_NIFTI}")
  labels = {name: file for name, file in labels.items() if name in images}
  test = [name for name in PUBLISHED_TEST if name in labels]
  lists = resolve_lists(root, cfg, tuple(images), test)
  return SynapseNiftiSource(*lists, class_names=_CLASSES, images=images, labels=labels)


def prepare_synapse(root_in: str | os.PathLike[str], root_out: str | os.PathLike[str]) -> tuple[str, ...]:
  """Writes the challenge files in the layout of source `synapse_npz`, lists included, and returns the case names.

  Training cases become slices, test cases volumes; `train.list` and `test.list` of `root_in` say which, or else the published split.

  Args:
    root_in: folder of source `synapse_nifti`.
    root_out: folder to write; files of the same name are replaced.

  Raises:
    InputError: `root_in` holds no scan, or a file is damaged.
  """
  source, out = open_synapse_nifti(DataConfig(root=os.fspath(root_in))), Path(root_out)
  slices: list[str] = []
  for name in source.train_names:
    case = source.load(name)
    files = [out / SLICE_PATTERN.format(name, k) for k in range(case.image.shape[2])]
    write_slices(files, case)
    slices += [file.stem for file in files]
  for name in source.test_names:
    write_stack(out / H5_PATTERN.format(name), source.load(name))
  write_list(out / _SLICE_LIST, slices)
  write_list(out / _TEST_LIST, source.test_names)
  return source.names
