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
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ssl_jax.data.case import Case, SourceBase, check_image, check_label, check_relative, check_root, resolve_lists
from ssl_jax.data.nifti import read_nifti
from ssl_jax.types import DataConfig, InputError

_ADVICE = (
  "source 'msd' reads a folder with imagesTr, labelsTr and dataset.json, the layout of nnU-Net and of the Medical Segmentation Decathlon "
  "(http://medicaldecathlon.com); download a task or arrange your own NIfTI files so, then pass --config.data.root=FOLDER."
)
_ENDINGS = (".nii.gz", ".nii")


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
    """Reads one case with the header's intensity scaling applied, channels last."""
    found = self.cases[name]
    scans = [read_nifti(file, np.float32) for file in found.images]
    first, affine, spacing = scans[0]
    if len(scans) > 1 or self.channels == 1:
      volumes = [scan[0][..., 0] if scan[0].ndim == 4 and scan[0].shape[-1] == 1 else scan[0] for scan in scans]
      different = [file for file, volume in zip(found.images, volumes, strict=True) if volume.shape != volumes[0].shape]
      if different:
        raise InputError(f"{different[0]}: shape differs from {found.images[0].name}; all channels of a case must share one grid")
      image = np.stack(volumes, axis=-1)
    else:
      image = first
    if image.ndim not in (3, 4) or image.shape[-1] != self.channels:
      raise InputError(f"{found.images[0]}: shape {first.shape} does not hold the {self.channels} channel(s) that are expected")
    for file, (volume, _, _) in zip(found.images, scans, strict=True):
      check_image(volume, file)
    label = None
    if found.label:
      raw = read_nifti(found.label, None)[0]
      raw = raw[..., 0] if raw.ndim == 4 and raw.shape[-1] == 1 else raw
      label = check_label(raw, image.shape[:-1], found.label, range(self.num_classes))
    return Case(name, np.ascontiguousarray(image), label, spacing[: image.ndim - 1], affine)


def open_msd(cfg: DataConfig) -> MsdSource:
  """Lists the cases of the folder `cfg.root`; reads no volume.

  Raises:
    InputError: the folder, `dataset.json`, one of its entries, or a listed file is missing.
  """
  root = check_root(cfg.root, _ADVICE)
  file = root / "dataset.json"
  if not file.is_file():
    raise InputError(f"{file} does not exist; {_ADVICE}")
  try:
    description = json.loads(file.read_text(encoding="utf-8-sig"))
  except (UnicodeDecodeError, json.JSONDecodeError) as error:
    raise InputError(f"{file} is not valid JSON: {error}") from error
  channels = _entry(description, ("channel_names", "modality"), file)
  class_names = _class_names(_entry(description, ("labels",), file), file)
  ending = description.get("file_ending", _ENDINGS[0])
  if ending not in _ENDINGS:
    raise InputError(f"{file}: file_ending {ending!r} is not read, only {' and '.join(_ENDINGS)}; convert the scans")
  train = _find_cases(root, "Tr", len(channels))
  test = _find_cases(root, "Ts", len(channels))
  for name in train.keys() & test.keys():
    raise InputError(f"{root}: case {name!r} is in both imagesTr and imagesTs; a case may only be in one")
  _check_training(description.get("training", []), train, file)
  # A test case without a label can be neither trained on nor evaluated.
  train_names, test_names = resolve_lists(root, cfg, sorted(train), sorted(name for name in test if test[name].label))
  return MsdSource(train_names, test_names, len(channels), class_names, {**train, **test})


def _entry(description: Any, keys: tuple[str, ...], file: Path) -> Mapping[str, Any]:
  for key in keys:
    found = description.get(key) if isinstance(description, dict) else None
    if isinstance(found, dict) and found:
      return found
  raise InputError(f"{file}: entry {' or '.join(repr(key) for key in keys)} is missing or empty; write it as nnU-Net documents it")


def _class_names(labels: Mapping[str, Any], file: Path) -> tuple[str, ...]:
  """Class names by value, from `{"0": "background"}` (old) or `{"background": 0}` (new)."""
  try:
    new_form = all(not str(key).isdigit() for key in labels)
    names = {int(value): key for key, value in labels.items()} if new_form else {int(key): str(value) for key, value in labels.items()}
  except (TypeError, ValueError) as error:
    raise InputError(f"{file}: 'labels' must map names to single integers; region-based labels are not supported") from error
  if sorted(names) != list(range(len(labels))) or len(names) > 256:
    raise InputError(f"{file}: 'labels' has values {sorted(names)}; they must run 0, 1, 2, ... without gaps, 0 = background")
  if "ignore" in names.values():
    raise InputError(f"{file}: 'labels' has an ignore label, which is not supported; leave partly labelled cases without a label file")
  return tuple(names[value] for value in range(len(names)))


def _stem(file: Path) -> str:
  return file.name.removesuffix(".gz").removesuffix(".nii")


def _list_nifti(folder: Path) -> list[Path]:
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
  files = _list_nifti(path) if path.is_dir() else [path] if path.is_file() and path.name.endswith(_ENDINGS) else []
  if not files:
    raise InputError(f"--input: {path} is neither a NIfTI file (.nii, .nii.gz) nor a folder of them")
  cases, problems = {}, {}
  for name, images in _by_name(files, {}, channels).items():
    try:
      cases[name] = _Files(_in_order(name, images, channels), None)
    except InputError as error:
      problems[name] = error
  return MsdSource((), tuple(cases), channels, class_names, cases), problems


def _find_cases(root: Path, suffix: str, channels: int) -> dict[str, _Files]:
  labels = {_stem(file): file for file in _list_nifti(root / f"labels{suffix}")}
  return _group(_list_nifti(root / f"images{suffix}"), labels, channels)


def _group(files: Sequence[Path], labels: Mapping[str, Path], channels: int) -> dict[str, _Files]:
  """Case name -> its image files in channel order and its label file."""
  found = _by_name(files, labels, channels)
  return {name: _Files(_in_order(name, images, channels), labels.get(name)) for name, images in found.items()}


def _by_name(files: Sequence[Path], labels: Mapping[str, Path], channels: int) -> dict[str, list[tuple[int | None, Path]]]:
  """Case name -> its image files with the channel that their names give, `None` for none."""
  found: dict[str, list[tuple[int | None, Path]]] = {}
  for file in files:
    stem = _stem(file)
    match = re.fullmatch(r"(.+)_(\d{4})", stem)
    # `_0000` counts channels, unless a label file has the same name: then it is part of the case's own name.
    if match and stem not in labels and int(match[2]) < channels:
      found.setdefault(match[1], []).append((int(match[2]), file))
    else:
      found.setdefault(stem, []).append((None, file))
  return found


def _in_order(name: str, images: Sequence[tuple[int | None, Path]], channels: int) -> tuple[Path, ...]:
  """Files of a case in channel order; raises `InputError` when one is missing or superfluous."""
  given, folder = [channel for channel, _ in images], images[0][1].parent
  wanted = [None] if None in given else list(range(channels))
  missing = [channel for channel in wanted if channel not in given]
  if missing:
    raise InputError(f"{folder}: case {name!r} lacks channel file {name}_{missing[0]:04d}{_ENDINGS[0]}")
  if len(set(given)) > len(wanted):
    raise InputError(f"{folder}: case {name!r} is there both with and without _0000; remove one")
  if len(given) > len(wanted):
    raise InputError(f"{folder}: case {name!r} is there both as .nii and as .nii.gz; remove one")
  return tuple(dict(images)[channel] for channel in wanted)


def _check_training(entries: Any, cases: Mapping[str, _Files], file: Path) -> None:
  """Every file that `training` names must be there; files it does not name are further, mostly unlabelled, cases."""
  for entry in entries:
    pair = entry if isinstance(entry, dict) else {"image": str(entry)}
    if not isinstance(pair.get("image"), str):
      raise InputError(f"{file}: an entry of 'training' has no 'image'")
    for path in pair.values():
      check_relative(str(path), file)
    name = _stem(Path(PurePosixPath(pair["image"])))
    found = cases.get(name) or cases.get(re.sub(r"_\d{4}$", "", name))
    if found is None:
      raise InputError(f"{file}: 'training' names {pair['image']!r}, which is not there; restore the file or remove the entry")
    if pair.get("label") and found.label is None:
      raise InputError(f"{file}: 'training' names {pair['label']!r}, which is not there; restore the file or remove the entry")
