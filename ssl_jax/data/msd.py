"""Folders of NIfTI files in the layout of nnU-Net and the Medical Segmentation Decathlon.

```
dataset.json                  channels and classes, in the old ("modality") or the new ("channel_names") form
imagesTr/<case>_0000.nii.gz   one file per channel; or <case>.nii.gz: one channel, or several as the last axis
labelsTr/<case>.nii.gz        a case without this file is unlabelled
imagesTs, labelsTs            optional, the same for test cases
train.list, test.list         optional, one case name a line
```
Voxels keep their order on disk, no reorientation. An image and its label must agree in shape; their affines are not compared, the image's
is used.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ssl_jax.data.case import (
  Case,
  SourceBase,
  attempt,
  check_affine,
  check_image,
  check_label,
  check_relative,
  check_root,
  problems_of,
  raise_all,
  resolve_lists,
)
from ssl_jax.data.nifti import read_nifti
from ssl_jax.types import DataConfig, InputError, read_json, shown

_ADVICE = (
  "source 'msd' reads a folder with imagesTr, labelsTr and dataset.json, the layout of nnU-Net and of the Medical Segmentation Decathlon "
  "(http://medicaldecathlon.com); download a task or arrange your own NIfTI files so, then pass --config.data.root=FOLDER."
)
_ENDINGS = (".nii.gz", ".nii")
_EXAMPLE = '{"channel_names": {"0": "MR"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}'


@dataclasses.dataclass(frozen=True)
class _Files:
  images: tuple[Path, ...]
  label: Path | None


@dataclasses.dataclass(frozen=True)
class MsdSource(SourceBase):
  """Cases of one such folder."""

  cases: Mapping[str, _Files] = dataclasses.field(default_factory=dict)

  def has_label(self, name: str) -> bool:
    """Whether `labelsTr` (or `labelsTs`) holds a file for the case."""
    return self.cases[name].label is not None

  def files(self, name: str) -> tuple[Path, ...]:
    """Image files in channel order, then the label file."""
    found = self.cases[name]
    return found.images + ((found.label,) if found.label else ())

  def load(self, name: str) -> Case:
    """Reads one case with the header's intensity scaling applied, channels last; an error names all that is wrong with it."""
    found = self.cases[name]
    problems: list[str] = []
    scans = [attempt(problems, read_nifti, file, np.float32) for file in found.images]
    for file, scan in zip(found.images, scans, strict=True):
      if scan:
        attempt(problems, check_image, scan[0], file)
    image: Any = attempt(problems, _stack, [scan[0] for scan in scans], found.images, self.channels) if all(scans) else None
    label = attempt(problems, read_nifti, found.label, None) if found.label else None
    if label:
      raw = _drop_last(label[0])
      shape = raw.shape if image is None else image.shape[:-1]
      label = attempt(problems, check_label, raw, shape, found.label, range(self.num_classes))
    raise_all(problems)
    _, affine, spacing = scans[0]
    _check_grid(affine, spacing[: image.ndim - 1], found.images[0])
    return Case(name, np.ascontiguousarray(image), label, spacing[: image.ndim - 1], affine)


def _check_grid(affine: np.ndarray, spacing: Sequence[float], file: Path) -> None:
  """Raises `InputError` when voxels have no place or size; the third axis of a plane need not have any."""
  if len(spacing) == 3 or not np.isfinite(affine).all():
    check_affine(affine, file)
  if not all(0 < side < math.inf for side in spacing):
    raise InputError(f"{file}: the header's voxel size is unusable, {tuple(spacing)} mm; convert the scan again")


def _drop_last(volume: np.ndarray) -> np.ndarray:
  return volume[..., 0] if volume.ndim == 4 and volume.shape[-1] == 1 else volume


def _stack(volumes: Sequence[np.ndarray], files: Sequence[Path], channels: int) -> np.ndarray:
  """Joins one volume per channel, or takes the one that holds them all, as [*spatial, channels]."""
  image = volumes[0]
  if len(volumes) > 1 or channels == 1:
    flat = [_drop_last(volume) for volume in volumes]
    different = [file for file, volume in zip(files, flat, strict=True) if volume.shape != flat[0].shape]
    if different:
      raise InputError(f"{different[0]}: shape differs from {files[0].name}; all channels of a case must share one grid")
    image = np.stack(flat, axis=-1)
  if image.ndim not in (3, 4) or image.shape[-1] != channels:
    raise InputError(f"{files[0]}: shape {volumes[0].shape} does not hold the {channels} channel(s) that are expected")
  return image


def open_msd(cfg: DataConfig) -> MsdSource:
  """Lists the cases of the folder `cfg.root`; reads no volume.

  Raises:
    InputError: the folder, `dataset.json`, one of its entries, or a listed file is missing.
  """
  source, problems = survey_msd(cfg)
  raise_all(problems)
  return source


def survey_msd(cfg: DataConfig) -> tuple[MsdSource, list[str]]:
  """Lists the cases that are usable as far as names tell, and all that is wrong with the others and with the list files.

  Raises:
    InputError: `dataset.json` is missing or says no channels and classes.
  """
  root = check_root(cfg.root, _ADVICE)
  file = root / "dataset.json"
  if not file.is_file():
    raise InputError(f"{file} does not exist; " + (f"write into it, for example: {_EXAMPLE}" if (root / "imagesTr").is_dir() else _ADVICE))
  description = read_json(file)
  channels = _entry(description, ("channel_names", "modality"), file)
  if channels.keys() != {str(channel) for channel in range(len(channels))}:
    raise InputError(f'{file}: the channels are numbered {shown(list(channels))}; number them "0", "1", ... without gaps')
  class_names = _class_names(_entry(description, ("labels",), file), file)
  ending = description.get("file_ending", _ENDINGS[0])
  if ending not in _ENDINGS:
    raise InputError(f"{file}: file_ending {shown(ending)} is not read, only {' and '.join(_ENDINGS)}; convert the scans")
  problems: list[str] = []
  train = _find_cases(root, "Tr", len(channels), problems)
  test = _find_cases(root, "Ts", len(channels), problems)
  for name in sorted(train.keys() & test.keys()):
    problems.append(f"{root}: case {name!r} is in both imagesTr and imagesTs; a case may only be in one")
    del test[name]
  problems += _wrong_entries(description.get("training", []), train, file)
  # A test case without a label can be neither trained on nor evaluated.
  found = sorted(train), sorted(name for name in test if test[name].label)
  try:
    names = resolve_lists(root, cfg, *found)
  except InputError as error:
    problems += problems_of(error)
    names = tuple(found[0]), tuple(found[1])
  return MsdSource(*names, len(channels), class_names, {**train, **test}), problems


def _entry(description: Any, keys: tuple[str, ...], file: Path) -> Mapping[str, Any]:
  for key in keys:
    found = description.get(key) if isinstance(description, dict) else None
    if isinstance(found, dict) and found:
      return found
  raise InputError(f"{file}: entry {' or '.join(repr(key) for key in keys)} is missing or empty; write it as nnU-Net documents it")


def _class_names(labels: Mapping[str, Any], file: Path) -> tuple[str, ...]:
  """Class names by value, from `{"0": "background"}` (old) or `{"background": 0}` (new)."""
  new_form = all(not key.isdecimal() for key in labels)
  pairs = [(value, key) if new_form else (int(key) if key.isdecimal() else key, value) for key, value in labels.items()]
  if not all(type(value) is int and isinstance(name, str) for value, name in pairs):
    raise InputError(f"{file}: 'labels' must map names to single integers; region-based labels are not supported")
  names = dict(pairs)
  if sorted(names) != list(range(len(labels))) or len(names) > 256:
    raise InputError(f"{file}: 'labels' has values {shown(sorted(names))}; they must run 0, 1, 2, ... without gaps, 0 = background")
  repeated = [name for name in names.values() if list(names.values()).count(name) > 1]
  if repeated:
    raise InputError(f"{file}: 'labels' has {shown(repeated[0])} more than once; every class needs a name of its own")
  if "ignore" in names.values():
    raise InputError(f"{file}: 'labels' has an ignore label, which is not supported; leave partly labelled cases without a label file")
  return tuple(names[value] for value in range(len(names)))


def _stem(file: Path) -> str:
  return file.name.removesuffix(".gz").removesuffix(".nii")


def list_nifti(folder: Path) -> list[Path]:
  """NIfTI files of a folder, sorted; hidden ones (macOS leaves `._*` copies in the MSD archives) are no scans."""
  if not folder.is_dir():
    return []
  return sorted(file for file in folder.iterdir() if file.name.endswith(_ENDINGS) and not file.name.startswith("."))


def open_images(path: Path, channels: int, class_names: tuple[str, ...]) -> tuple[MsdSource, dict[str, InputError]]:
  """Opens new images without labels, for prediction.

  Args:
    path: a NIfTI file, or a folder of them; with several channels `<case>_0000`, `<case>_0001`, … or one file whose last axis holds them.
    channels: how many the network takes.
    class_names: background first.

  Returns: a `Source` whose `test_names` are the images, and what is wrong with those that are incomplete, by name.

  Raises:
    InputError: there is no such file or folder, or no image in it.
  """
  files = list_nifti(path) if path.is_dir() else [path] if path.is_file() and path.name.endswith(_ENDINGS) else []
  if not files:
    raise InputError(f"--input: {path} is neither a NIfTI file (.nii, .nii.gz) nor a folder of them")
  cases, problems = _group(files, {}, channels)
  return MsdSource((), tuple(cases), channels, class_names, cases), problems


def _find_cases(root: Path, suffix: str, channels: int, problems: list[str]) -> dict[str, _Files]:
  labels: dict[str, Path] = {}
  for file in list_nifti(root / f"labels{suffix}"):
    if labels.setdefault(_stem(file), file) != file:
      problems.append(f"{file}: the same case as {labels[_stem(file)].name}; remove one")
  cases, incomplete = _group(list_nifti(root / f"images{suffix}"), labels, channels)
  for error in incomplete.values():
    problems += problems_of(error)
  return cases


def _group(files: Sequence[Path], labels: Mapping[str, Path], channels: int) -> tuple[dict[str, _Files], dict[str, InputError]]:
  """Case name -> its image files in channel order and its label file; and what is wrong with cases that lack or repeat a file."""
  grouped: dict[str, list[tuple[int | None, Path]]] = {}
  for file in files:
    stem = _stem(file)
    match = re.fullmatch(r"(.+)_(\d{4})", stem)
    # `_0000` counts channels, unless a label file has the same name: then it is part of the case's own name.
    is_channel = match is not None and stem not in labels and int(match[2]) < channels
    name, channel = (match[1], int(match[2])) if match and is_channel else (stem, None)
    grouped.setdefault(name, []).append((channel, file))
  cases, problems = {}, {}
  for name, images in grouped.items():
    try:
      cases[name] = _Files(_in_order(name, images, channels), labels.get(name))
    except InputError as error:
      problems[name] = error
  return cases, problems


def _in_order(name: str, images: Sequence[tuple[int | None, Path]], channels: int) -> tuple[Path, ...]:
  """Files of a case in channel order; an error names all that are missing or superfluous."""
  problems: list[str] = []
  found: dict[int | None, Path] = {}
  for channel, file in images:
    other = found.setdefault(channel, file)
    if other != file:
      problems.append(f"{file}: the same image as {other.name}; remove one")
  wanted = [None] if None in found else list(range(channels))
  folder, ending = images[0][1].parent, _ENDINGS[0]
  missing = [channel for channel in wanted if channel not in found]
  problems += [f"{folder}: case {name!r} lacks channel file {name}_{channel:04d}{ending}" for channel in missing]
  if not missing and len(found) > len(wanted):
    problems.append(f"{folder}: case {name!r} is there both with and without _0000; remove one")
  raise_all(problems)
  return tuple(found[channel] for channel in wanted)


def _wrong_entries(entries: Any, cases: Mapping[str, _Files], file: Path) -> list[str]:
  """Every file that `training` names must be there; files it does not name are further, mostly unlabelled, cases."""
  problems: list[str] = []
  if not isinstance(entries, list):
    return [f"{file}: 'training' is no list; write the pairs of image and label, or remove it"]
  for entry in entries:
    pair = entry if isinstance(entry, dict) else {"image": str(entry)}
    if not isinstance(pair.get("image"), str):
      problems.append(f"{file}: an entry of 'training' has no 'image'")
      continue
    escaping: list[str] = []
    for path in pair.values():
      attempt(escaping, check_relative, str(path), file)
    problems += escaping
    if escaping:
      continue
    name, label = _stem(Path(PurePosixPath(pair["image"]))), pair.get("label")
    found = cases.get(name) or cases.get(re.sub(r"_\d{4}$", "", name))
    absent = pair["image"] if found is None else label if label and found.label is None else None
    if absent:
      problems.append(f"{file}: 'training' names {shown(absent)}, which is not there; restore the file or remove the entry")
    elif label and found and found.label and _stem(Path(str(label))) != _stem(found.label):
      problems.append(f"{file}: 'training' pairs {shown(pair['image'])} with {shown(label)}; a label must be named like its image")
  return problems
