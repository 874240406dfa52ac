"""What is in a data folder: layout, cases, shapes, spacings, orientations, intensities, labels, and everything that is wrong with them."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from ssl_jax.data import acdc, brats, la, pancreas, synapse
from ssl_jax.data.case import Case, Source, attempt, check_affine
from ssl_jax.data.msd import list_nifti, survey_msd
from ssl_jax.data.nifti import open_nifti
from ssl_jax.data.sources import open_source
from ssl_jax.types import DataConfig, InputError

# Source -> what it is called, and glob patterns of which any file shows its layout; the first that fits is taken.
LAYOUTS: dict[str, tuple[str, tuple[str, ...]]] = {
  "la_h5": ("Left Atrium, prepared h5 files", (la.H5_PATTERN.format("*"),)),
  "la_nrrd": ("Left Atrium, raw nrrd files of the challenge", (la.RAW_PATTERN.format("*"),)),
  "pancreas_h5": ("Pancreas-CT, prepared h5 files", (pancreas.H5_PATTERN.format("*"),)),
  "acdc_h5": ("ACDC, prepared h5 files", (acdc.H5_PATTERN.format("patient*_frame*"),)),
  "synapse_npz": ("Synapse, prepared npz and h5 files", ("train_npz/*_slice*.npz",)),
  "brats_h5": ("BraTS 2019, prepared h5 files", (brats.H5_PATTERN.format("*"),)),
  "msd": ("MSD/nnU-Net folder", ("dataset.json", "imagesTr")),
  "brats_nifti": ("BraTS 2019, raw NIfTI files", tuple(f"{folder}/*_flair.nii*" for folder in brats.NIFTI_FOLDERS)),
  "acdc_nifti": ("ACDC, raw NIfTI files", tuple(f"{folder}/patient*_frame*.nii*" for folder in acdc.PATIENTS)),
  "synapse_nifti": ("Synapse, raw NIfTI files", tuple(f"{folder}/img[0-9]*.nii*" for folder in synapse.IMAGE_FOLDERS)),
  "pancreas_nifti": ("Pancreas-CT, NIfTI files", tuple(f"{folder}/label[0-9]*.nii*" for folder in pancreas.NIFTI_FOLDERS)),
}
_PERCENTILES = (0.5, 50.0, 99.5)
_APART = 0.1  # of a voxel's shortest side: headers that place two files further from each other than this differ


@dataclasses.dataclass(frozen=True)
class CaseFacts:
  """What one readable case holds.

  Attributes:
    shape: voxels along each spatial axis.
    spacing: mm along each spatial axis.
    orientation: where the axes run, such as "RAS".
    intensity: per channel (minimum, 0.5 %, median, 99.5 %, maximum, mean, standard deviation).
    counts: voxels per class, `None` without a label.
    digest: of the image's voxels.
  """

  name: str
  shape: tuple[int, ...]
  spacing: tuple[float, ...]
  orientation: str
  intensity: tuple[tuple[float, ...], ...]
  counts: tuple[int, ...] | None
  digest: str


@dataclasses.dataclass(frozen=True)
class Findings:
  """What a folder holds; `cases` are those that can be read, `problems` is all that is wrong, one line each."""

  root: str
  kind: str
  channels: int
  class_names: tuple[str, ...]
  train_names: tuple[str, ...]
  test_names: tuple[str, ...]
  cases: tuple[CaseFacts, ...]
  problems: tuple[str, ...]


def recognise(root: Path) -> str:
  """Returns the source that reads a folder's layout.

  Raises:
    InputError: there is no such folder, or nothing in it that a source reads.
  """
  if not root.is_dir():
    raise InputError(f"{root} is no folder; name the one that holds your scans, or try --config=configs/quickstart.py, which needs none")
  for kind, (_, patterns) in LAYOUTS.items():
    if any(any(root.glob(pattern)) for pattern in patterns):
      return kind
  raise InputError(
    f"{root} holds no layout that ssl_jax reads; arrange your own NIfTI files as imagesTr/<case>_0000.nii.gz, labelsTr/<case>.nii.gz (none "
    "for an unlabelled case) and dataset.json, or name the folder directly above a benchmark's files"
  )


def examine(root: str, show: Callable[[str], None] = lambda line: None) -> Findings:
  """Reads every case of a data folder once.

  Args:
    root: the folder.
    show: called with a line of text about each case as it has been read.

  Raises:
    InputError: the folder as a whole cannot be used.
  """
  folder = Path(root).expanduser()
  kind = recognise(folder)
  cfg = DataConfig(source=kind, root=root, slices=kind == "synapse_npz")
  source: Source
  problems: list[str] = []
  if kind == "msd":
    source, problems = survey_msd(cfg)
    problems += _unused_files(folder, source)
  else:
    source = open_source(cfg)
  if not source.names and not problems:
    raise InputError(f"{folder / 'imagesTr'} holds no NIfTI file (.nii, .nii.gz); put the scans there")
  slices = getattr(source, "volume_of", {})
  cases = []
  for name in source.names:
    found: list[str] = []
    case = attempt(found, source.load, name)
    found += _header_problems(source.files(name))
    if case is not None:
      found += _label_problems(case, source.class_names, name in slices)
      cases.append(_facts(case, source.num_classes))
      show(_line(cases[-1]))
    problems += [problem if str(folder) in problem else f"{name}: {problem}" for problem in dict.fromkeys(found)]
  problems += _repeated(cases) + _absent_classes(cases, source.class_names)
  return Findings(
    root, kind, source.channels, source.class_names, source.train_names, source.test_names, tuple(cases), tuple(dict.fromkeys(problems))
  )


def summary(findings: Findings) -> str:
  """Returns what was found, a line for each kind of fact, then the problems."""
  labelled = [case for case in findings.cases if case.counts is not None]
  unreadable = len(findings.train_names) + len(findings.test_names) - len(findings.cases)
  lines = [
    f"layout       {LAYOUTS[findings.kind][0]} (data.source={findings.kind})",
    f"cases        {len(findings.train_names)} training, {len(findings.test_names)} test; "
    f"{len(labelled)} labelled, {len(findings.cases) - len(labelled)} unlabelled, {unreadable} unreadable",
    f"channels     {findings.channels}",
  ]
  if findings.cases:
    lines += [
      f"shapes       {_spread([case.shape for case in findings.cases], 'voxels')}",
      f"spacings     {_spread([case.spacing for case in findings.cases], 'mm')}",
      f"orientation  {_tally(case.orientation for case in findings.cases)}",
    ]
    for channel in range(findings.channels):
      low, median, high, mean, std = np.median([case.intensity[channel] for case in findings.cases], axis=0)[[1, 2, 3, 5, 6]]
      lowest, highest = (
        min(case.intensity[channel][0] for case in findings.cases),
        max(case.intensity[channel][4] for case in findings.cases),
      )
      lines.append(
        f"intensity    channel {channel}: {lowest:.4g} to {highest:.4g}; typical scan: 0.5 % {low:.4g}, median {median:.4g}, "
        f"99.5 % {high:.4g}, mean {mean:.4g}, std {std:.4g}"
      )
  for value, class_name in enumerate(findings.class_names):
    counts = [case.counts[value] for case in labelled if case.counts]
    total = sum(sum(case.counts) for case in labelled if case.counts)
    share = (
      f"{100 * sum(counts) / total:.3g} % of the labelled voxels, in {sum(map(bool, counts))} of {len(counts)} labels" if total else "-"
    )
    lines.append(f"class {value}      {class_name}: {share}")
  lines += [f"PROBLEM {problem}" for problem in findings.problems]
  return "\n".join([*lines, f"{len(findings.problems)} problem(s)"])


def _facts(case: Case, num_classes: int) -> CaseFacts:
  channels = np.moveaxis(case.image, -1, 0).reshape(case.image.shape[-1], -1)
  intensity = []
  for voxels in channels:
    low, median, high = np.percentile(voxels, _PERCENTILES)
    intensity.append(tuple(map(float, (voxels.min(), low, median, high, voxels.max(), voxels.mean(dtype=np.float64), voxels.std()))))
  counts = None
  if case.label is not None:
    counts = tuple(int(count) for count in np.bincount(case.label.ravel(), minlength=num_classes))
  usable = np.isfinite(case.affine).all() and np.linalg.det(case.affine[:3, :3])
  orientation = "".join(nib.aff2axcodes(case.affine)) if usable else "unknown"
  digest = hashlib.sha256(case.image.tobytes()).hexdigest()
  return CaseFacts(case.name, case.image.shape[:-1], case.spacing, orientation, tuple(intensity), counts, digest)


def _line(case: CaseFacts) -> str:
  labels = "no label" if case.counts is None else f"voxels per class {list(case.counts)}"
  return f"{case.name}: shape {case.shape}, spacing {_rounded(case.spacing)} mm, {case.orientation}, {labels}"


def _header_problems(files: Sequence[Path]) -> Iterator[str]:
  """Compares where the headers of one case's NIfTI files place the corners of the volume."""
  headers = []
  for file in files:
    if ".nii" not in file.suffixes:
      continue
    try:
      with open_nifti(file) as (header, _):
        affine, shape = header.affine, (*header.shape, 1, 1)[:3]
      check_affine(affine, file)
    except InputError as error:  # reading the case may have said so
      yield str(error)
    else:
      headers.append((file, affine, shape))
  for file, affine, shape in headers[1:]:
    first, expected, same_shape = headers[0]
    corners = np.array([[*(np.array(corner) * (np.array(shape) - 1)), 1] for corner in np.ndindex(2, 2, 2)]).T
    apart_mm = np.linalg.norm(((affine - expected) @ corners)[:3], axis=0).max()
    if shape == same_shape and apart_mm > _APART * np.linalg.norm(expected[:3, :3], axis=0).min():
      yield (
        f"{file}: its affine places it up to {apart_mm:.3g} mm from {first.name} ({''.join(nib.aff2axcodes(affine))}, image "
        f"{''.join(nib.aff2axcodes(expected))}); resample one onto the other, or save it with the image's affine if the voxels agree"
      )


def _label_problems(case: Case, class_names: Sequence[str], is_slice: bool) -> Iterator[str]:
  if case.label is None or is_slice or case.label.ndim == 2:  # a slice may lie beside every organ
    return
  values = np.unique(case.label)
  if len(values) == 1:
    yield f"the label holds one class only, {class_names[values[0]]!r}; repair it, or remove it to use the scan as unlabelled"


def _unused_files(root: Path, source: Source) -> list[str]:
  used = {file for name in (*source.names, *getattr(source, "cases", ())) for file in source.files(name)}
  stray = [file for suffix in ("Tr", "Ts") for file in list_nifti(root / f"labels{suffix}") if file not in used]
  return [f"{file}: no image is named like this label; rename one, or add the image" for file in stray]


def _repeated(cases: Sequence[CaseFacts]) -> list[str]:
  first: dict[str, str] = {}
  repeated = [(case.name, first[case.digest]) for case in cases if first.setdefault(case.digest, case.name) != case.name]
  return [f"{name}: the same voxels as {other}; remove one, or training and evaluation may share a scan" for name, other in repeated]


def _absent_classes(cases: Sequence[CaseFacts], class_names: Sequence[str]) -> list[str]:
  labels = [case.counts for case in cases if case.counts]
  absent = [name for value, name in enumerate(class_names) if labels and not any(counts[value] for counts in labels)]
  return [f"class {name!r} is in no label; take it out of dataset.json, or correct the labels" for name in absent]


def _rounded(values: Sequence[float]) -> tuple[float, ...]:
  return tuple(round(float(value), 3) for value in values)


def _spread(rows: Sequence[Sequence[float]], unit: str) -> str:
  """One value where all cases agree, else minimum, median and maximum along each axis."""
  if len({len(row) for row in rows}) > 1:
    return _tally(f"{len(row)}D" for row in rows)
  low, middle, high = np.min(rows, axis=0), np.median(rows, axis=0), np.max(rows, axis=0)
  show = lambda row: " x ".join(f"{value:.4g}" for value in row)
  if np.allclose(low, high, rtol=1e-3):
    return f"all {show(middle)} {unit}"
  return f"{show(low)} to {show(high)}, median {show(middle)} {unit}"


def _tally(values: Iterator[str]) -> str:
  counted = Counter(values).most_common()
  return counted[0][0] if len(counted) == 1 else ", ".join(f"{value} ({count})" for value, count in counted)
