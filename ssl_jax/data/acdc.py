"""ACDC (150 patients, cine-MRI of the heart, short axis): the end of diastole (ED) and of systole (ES) of each patient are the cases.

h5:    `<root>/data/<case>.h5` with `image` f32[S, X, Y] and `label` u8[S, X, Y]; `<root>/data/slices/<case>_slice_<k>.h5` with [X, Y], k
       from 1; `train_slices.list` orders the training slices, `train.list`, `val.list` and `test.list` name volumes.
NIfTI: `<root>/[training|testing]/patientXXX/patientXXX_frameYY.nii.gz`, `patientXXX_frameYY_gt.nii.gz` and `Info.cfg`, which says which
       frames are ED and ES. A frame without `_gt` is unlabelled; `patientXXX_4d.nii.gz` is not read.

The published lists number frames anew, 01 = ED and 02 = ES. Where a list of the NIfTI folder does so, its cases have these names, otherwise
those of their files. `data.split=official` evaluates on `test.list`, or with `data.test_list=val.list` on the validation patients.
"""

import dataclasses
import os
import re
from pathlib import Path

from ssl_jax.data.case import Case, assemble_case, check_root, find_cases, read_list, resolve_lists
from ssl_jax.data.h5 import StackSource, find_slices, order_slices, write_list, write_slices, write_stack
from ssl_jax.data.nifti import NiftiSource
from ssl_jax.types import DataConfig, InputError

H5_PATTERN = "data/{}.h5"
SLICE_PATTERN = "data/slices/{}_slice_{}.h5"
PATIENTS = ("patient*", "training/patient*", "testing/patient*")
_SLICE_NAMING = r"(?P<slice>(?P<volume>[^.].*)_slice_(?P<number>\d+))\.h5"
_CLASSES = ("background", "RV", "MYO", "LV")
_VAL_LIST = "val.list"
_PHASES = ("ED", "ES")  # the published frame01, frame02 [L]; of patient090 (frames 4 and 11) frame01 has the larger left ventricle
_ADVICE_NIFTI = (
  "source 'acdc_nifti' reads ACDC (https://www.creatis.insa-lyon.fr/Challenge/acdc/); unpack it so that "
  "FOLDER/training/patient001/patient001_frame01.nii.gz exists, put train.list, val.list and test.list of SSL4MIS "
  "(https://github.com/HiLab-git/SSL4MIS, data/ACDC) into FOLDER and pass --config.data.root=FOLDER."
)
_ADVICE_H5 = (
  "source 'acdc_h5' reads the prepared ACDC benchmark, FOLDER/data/<case>.h5 and FOLDER/data/slices/<case>_slice_<k>.h5 with "
  "train_slices.list, train.list, val.list and test.list, as SSL4MIS (https://github.com/HiLab-git/SSL4MIS, data/ACDC) shares it, or made "
  "from the challenge files by `python -m ssl_jax.data prepare acdc NIFTI_FOLDER FOLDER`; pass --config.data.root=FOLDER."
)


@dataclasses.dataclass(frozen=True)
class AcdcNiftiSource(NiftiSource):
  """The challenge files, scaled on the fly."""

  def load(self, name: str) -> Case:
    """Reads one stack, y = (x - min) / (max - min) over all its voxels.

    Voxels keep their order on disk, whose third axis runs across the slices: the short axis is oblique, so that turning it to RAS might
    move the slices to another axis.

    Source: SSL4MIS's `acdc_data_processing.py` [L].
    """
    image, label, affine = self.read(name, range(self.num_classes))
    low, high = float(image.min()), float(image.max())
    if low == high:
      raise InputError(f"{self.images[name]}: all voxels are {low:g}; fetch it again or leave the case out")
    return assemble_case(name, (image - low) / (high - low), label, affine)


def open_acdc_h5(cfg: DataConfig) -> StackSource:
  """Lists the cases of a prepared folder; with `cfg.slices` the training cases are its slice files, where there are any.

  Raises:
    InputError: there is no volume, or a list is wrong.
  """
  root = check_root(cfg.root, _ADVICE_H5)
  volumes = {name: root / H5_PATTERN.format(name) for name in find_cases(root, H5_PATTERN, _ADVICE_H5)}
  slices, volume_of = find_slices((root / SLICE_PATTERN).parent, _SLICE_NAMING) if cfg.slices else ({}, {})
  train, test = resolve_lists(root, cfg, sorted({*volumes, *volume_of.values()}))
  if slices:
    train = order_slices(root / cfg.slice_list, cfg, volume_of, train, test)
  return StackSource(train, test, class_names=_CLASSES, volumes=volumes, slices=slices, volume_of=volume_of)


def open_acdc_nifti(cfg: DataConfig) -> AcdcNiftiSource:
  """Lists the ED and ES frames of a folder of challenge files; without lists, patients in `testing` are the test cases.

  Raises:
    InputError: there is no patient, an `Info.cfg` or a frame that it names is missing, or a list is wrong.
  """
  root = check_root(cfg.root, _ADVICE_NIFTI)
  frames = _find(root, (cfg.train_list, cfg.test_list, cfg.slice_list, _VAL_LIST))
  labels = {name: label for name, (_, label) in frames.items() if label.is_file()}
  images = {name: image for name, (image, _) in frames.items()}
  tests = [name for name, image in images.items() if image.relative_to(root).parts[0] == "testing"]
  lists = resolve_lists(root, cfg, [name for name in images if name not in tests], [name for name in tests if name in labels])
  return AcdcNiftiSource(*lists, class_names=_CLASSES, images=images, labels=labels, canonical=False)


def prepare_acdc(root_in: str | os.PathLike[str], root_out: str | os.PathLike[str]) -> tuple[str, ...]:
  """Writes the challenge files in the layout of source `acdc_h5`, slices of the training cases and lists included; returns the case names.

  Lists of `root_in` are copied; those that it lacks, but `val.list`, are written: all slices of the training cases in their order.

  Args:
    root_in: folder of source `acdc_nifti`.
    root_out: folder to write; files of the same name are replaced.

  Raises:
    InputError: `root_in` holds no patient, or a file is damaged.
  """
  source, root, out = open_acdc_nifti(DataConfig(root=os.fspath(root_in))), Path(root_in).expanduser(), Path(root_out)
  validation = read_list(root / _VAL_LIST) or ()
  unknown = sorted(set(validation) - set(source.images))
  if unknown:
    raise InputError(f"{root / _VAL_LIST}: {unknown[0]!r} has no data under {root}; correct the list")
  names = tuple(dict.fromkeys((*source.names, *validation)))
  train_slices: list[str] = []
  for name in names:
    case = source.load(name)
    write_stack(out / H5_PATTERN.format(name), case)
    if name in source.train_names:
      files = [out / SLICE_PATTERN.format(name, k + 1) for k in range(case.image.shape[2])]
      write_slices(files, case)
      train_slices += [file.stem for file in files]
  listed = {DataConfig.slice_list: read_list(root / DataConfig.slice_list) or train_slices, DataConfig.train_list: source.train_names}
  for file, entries in {**listed, DataConfig.test_list: source.test_names, _VAL_LIST: validation}.items():
    if entries:
      write_list(out / file, entries)
  return names


def _find(root: Path, list_files: tuple[str, ...]) -> dict[str, tuple[Path, Path]]:
  """Case -> image and label file (the latter may be missing), sorted; named as the lists do."""
  folders = sorted(folder for pattern in PATIENTS for folder in root.glob(pattern) if folder.is_dir())
  if not folders:
    raise InputError(f"{root} holds no patientXXX/patientXXX_frameYY.nii.gz: {_ADVICE_NIFTI}")
  of_file: dict[str, tuple[Path, Path]] = {}
  published: dict[str, tuple[Path, Path]] = {}
  for folder in folders:
    for position, number in enumerate(_frames(folder)):
      name = f"{folder.name}_frame{number:02d}"
      image, label = (_existing(folder / f"{name}{kind}.nii.gz") for kind in ("", "_gt"))
      if not image.is_file():
        raise InputError(
          f"{folder / 'Info.cfg'}: {_PHASES[position]} is frame {number}, but {image} does not exist; fetch the patient again"
        )
      if name in of_file and of_file[name][0].parent != folder:
        raise InputError(f"{of_file[name][0].parent} and {folder} are of the same patient; remove one")
      of_file[name] = published[f"{folder.name}_frame{position + 1:02d}"] = image, label
  # Slice lists name `<case>_slice_<k>`.
  listed = {name.split("_slice_")[0] for file in list_files for name in read_list(root / file) or ()}
  return dict(sorted((published if listed & (published.keys() - of_file.keys()) else of_file).items()))


def _existing(file: Path) -> Path:
  """The file, or the same without compression where only that exists."""
  plain = file.with_suffix("")
  return plain if plain.is_file() and not file.is_file() else file


def _frames(folder: Path) -> tuple[int, ...]:
  """Numbers of the ED and the ES frame."""
  file = folder / "Info.cfg"
  if not file.is_file():
    raise InputError(f"{file} does not exist; it names the ED and ES frames of the patient, fetch it again")
  text = file.read_text(encoding="utf-8-sig", errors="replace")
  found = [re.search(rf"^\s*{phase}\s*:\s*(\d+)\s*$", text, re.MULTILINE) for phase in _PHASES]
  for phase, match in zip(_PHASES, found, strict=True):
    if match is None:
      raise InputError(f"{file}: no line '{phase}: <frame>'; fetch it again")
  return tuple(int(match[1]) for match in found if match)
