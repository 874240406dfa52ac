"""Scans as figures show them: turned to the viewer, with what runs predict on them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ssl_jax import config
from ssl_jax.experiment import Experiment, open_experiment, restore
from ssl_jax.types import InputError, TrainState, nearest

_AXIS = {"axial": 2, "coronal": 1, "sagittal": 0}
_MARGIN = 0.25  # of the foreground's extent, kept around it on both sides


@dataclasses.dataclass(frozen=True)
class Scan:
  """One scan and maps on its grid.

  Attributes:
    image: f32[X, Y, Z], the first channel; X runs to the patient's left, Y to the front, Z to the head as far as the affine is right. A 2D
      image keeps its axes and has Z = 1.
    label: integer[X, Y, Z], or `None` when the case has none.
    maps: title -> integer[X, Y, Z], a prediction.
    confidence: title -> f32[X, Y, Z], the probability of the predicted class.
    spacing: mm along the three axes.
  """

  name: str
  image: np.ndarray
  label: np.ndarray | None
  maps: Mapping[str, np.ndarray]
  confidence: Mapping[str, np.ndarray]
  spacing: tuple[float, ...]
  class_names: tuple[str, ...]
  origin: tuple[int, ...] = (0, 0, 0)  # of this part in the whole scan

  @property
  def foreground(self) -> np.ndarray:
    """bool[X, Y, Z]: the label, or, where there is none, what anything predicts."""
    masks = list(self.maps.values()) if self.label is None else [self.label]
    return np.any([mask > 0 for mask in masks], axis=0)

  def cropped(self) -> "Scan":
    """The part that holds all label and predictions, with a margin; all of the scan when they are empty."""
    masks = [mask > 0 for mask in (self.label, *self.maps.values()) if mask is not None]
    inside = np.argwhere(np.any(masks, axis=0))
    if not len(inside):
      return self
    low, high = inside.min(axis=0), inside.max(axis=0) + 1
    spacing = np.array(self.spacing)
    margin = np.ceil(_MARGIN * ((high - low) * spacing).max() / spacing).astype(int)
    box = tuple(slice(max(a - m, 0), b + m) for a, b, m in zip(low, high, margin, strict=True))
    part = lambda maps: {title: each[box] for title, each in maps.items()}
    label = None if self.label is None else self.label[box]
    maps, confidence, origin = part(self.maps), part(self.confidence), tuple(side.start for side in box)
    return dataclasses.replace(self, image=self.image[box], label=label, maps=maps, confidence=confidence, origin=origin)

  def place(self, plane: str, position: int) -> str:
    """A section's name: plane and number in the whole scan, counted from the patient's right, back or feet."""
    return f"{plane} {self.origin[_AXIS[plane]] + position + 1}" if self.image.shape[2] > 1 else ""


def section(volume: np.ndarray, plane: str, position: int) -> np.ndarray:
  """Cuts [X, Y, Z] to [rows, columns] for display with the first row at the bottom.

  The patient's right is on the left of an axial or coronal section, the front on the left of a sagittal one: the radiological convention.
  """
  cut = np.take(volume, position, axis=_AXIS[plane])
  return (cut[::-1] if plane == "sagittal" else cut).T


def pixel_size(spacing: Sequence[float], plane: str) -> tuple[float, float]:
  """Height and width in mm of a pixel of a section."""
  width, height = (size for axis, size in enumerate(spacing) if axis != _AXIS[plane])
  return height, width


def largest_section(mask: np.ndarray, plane: str) -> int:
  """Position of the section of bool[X, Y, Z] with most foreground; the middle when there is none."""
  areas = mask.sum(axis=tuple(axis for axis in range(3) if axis != _AXIS[plane]))
  return int(np.argmax(areas)) if areas.any() else len(areas) // 2


def spread_sections(mask: np.ndarray, plane: str) -> list[int]:
  """Positions at a quarter, half and three quarters of the sections with foreground, or of all when none has any."""
  filled = np.flatnonzero(mask.any(axis=tuple(axis for axis in range(3) if axis != _AXIS[plane])))
  candidates = filled if filled.size else np.arange(mask.shape[_AXIS[plane]])
  return sorted({int(candidates[int(part * (candidates.size - 1) + 0.5)]) for part in (0.25, 0.5, 0.75)})


def to_viewer(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
  """Turns and flips [X, Y, Z] by quarter turns so that the axes run to the patient's left, front and head; [X, Y] becomes [X, Y, 1]."""
  if array.ndim == 2:
    return array[..., None]
  return nib.orientations.apply_orientation(array, _turn(affine))


def viewer_spacing(spacing: Sequence[float], affine: np.ndarray) -> tuple[float, ...]:
  """Spacing of what `to_viewer` returns."""
  if len(spacing) == 2:
    return (*spacing, 1.0)
  return tuple(float(spacing[axis]) for axis in np.argsort(_turn(affine)[:, 0]))


def _turn(affine: np.ndarray) -> np.ndarray:
  return nib.orientations.ornt_transform(nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt("LAS"))


def find_runs(folders: Sequence[Path], needs: str = "config.json") -> dict[str, Path]:
  """Names the runs in some folders.

  Args:
    folders: of one run each, or of several runs.
    needs: the file that makes a folder a run.

  Returns:
    Name -> folder, in order: the folder's name, with its parent's where two are the same.

  Raises:
    InputError: a folder is not there or holds no run.
  """
  found: list[Path] = []
  for folder in folders:
    if not folder.is_dir():
      raise InputError(f"{folder}: no such folder; name the --workdir of a run")
    inside = [folder] if (folder / needs).is_file() else sorted(file.parent for file in folder.glob(f"*/{needs}"))
    if not inside:
      raise InputError(f"{folder}: no {needs} here, so no run; name the --workdir of one")
    found += [run for run in inside if run not in found]
  short = [run.resolve().name for run in found]
  return {name if short.count(name) == 1 else f"{run.resolve().parent.name}/{name}": run for name, run in zip(short, found, strict=True)}


@dataclasses.dataclass(frozen=True)
class Run:
  """A trained run, ready to predict."""

  folder: Path
  experiment: Experiment
  state: TrainState

  def predictor(self, name: str | None) -> Callable[..., Any]:
    """Returns the named predictor, by default what the paper evaluates."""
    known = self.experiment.predictors
    if name is not None and name not in known:
      raise InputError(f"--predictor={name}: {self.folder} has no such predictor; {nearest(name, known)}")
    return known[name or next(iter(known))]

  def case_names(self, cases: str) -> list[str]:
    """Returns the first so many evaluation scans, or those named, separated by commas; of these, training scans too."""
    if cases.isdecimal():
      names = list(self.experiment.split.evaluation[: int(cases)])
      if not names:
        raise InputError(
          f"--cases={cases}: {self.folder} has {len(self.experiment.split.evaluation)} evaluation scans; name some, or change it"
        )
      return names
    for name in cases.split(","):
      if name not in self.experiment.source.names:
        raise InputError(f"--cases: {self.folder} has no scan {name!r}; {nearest(name, self.experiment.source.names)}")
    return cases.split(",")


def open_run(folder: Path) -> Run:
  """Opens the data, network and checkpoint of a run.

  Raises:
    InputError: it holds no checkpoint, or its data are not where its configuration says.
  """
  experiment = open_experiment(config.from_json(folder / "config.json"))
  return Run(folder, experiment, restore(experiment, folder))


def predicted(runs: Mapping[str, Path], cases: str, predictor: str | None = None) -> list[Scan]:
  """Predicts scans with one or several runs.

  Args:
    runs: title -> folder.
    cases: see `Run.case_names`; of the first run.
    predictor: see `Run.predictor`.

  Returns:
    One scan a case, with the label map of every run.

  Raises:
    InputError: see `open_run`; or runs whose scans differ.
  """
  scans: dict[str, Scan] = {}
  for title, folder in runs.items():
    run = open_run(folder)
    predict = run.predictor(predictor)
    for name in run.case_names(",".join(scans) if len(scans) else cases):
      scan = _scan(run, name, {title: predict})
      before = scans.setdefault(name, scan)
      if before.image.shape != scan.image.shape or before.class_names != scan.class_names:
        raise InputError(f"{folder}: {name} has another shape or other classes than in the runs before; compare runs on the same data")
      scans[name] = dataclasses.replace(before, maps={**before.maps, **scan.maps})
  return list(scans.values())


def with_confidence(folder: Path, cases: str) -> list[Scan]:
  """Predicts scans with the method's pseudo-labels at every stage that it names, such as before and after rectification.

  Of a method without pseudo-labels, with all its predictors. A 3D network sees one patch around the label, as in training: windows whose
  BatchNorm statistics differ would show their seams.

  Raises:
    InputError: see `open_run`.
  """
  run = open_run(folder)
  predictors, patch = run.experiment.stage_predictors or run.experiment.predictors, run.experiment.cfg.data.patch
  return [_scan(run, name, predictors, patch if len(patch) == 3 else None) for name in run.case_names(cases)]


def _scan(run: Run, name: str, predictors: Mapping[str, Callable[..., Any]], patch: Sequence[int] | None = None) -> Scan:
  case = run.experiment.source.load(name)
  image, label = case.image, case.label
  if patch is not None:
    box = _patch_around(np.ones(image.shape[:-1], bool) if label is None else label > 0, patch)
    image, label = image[box], None if label is None else label[box]
  turned = lambda array: to_viewer(array, case.affine)
  maps, confidence = {}, {}
  for title, predict in predictors.items():
    prob = np.asarray(predict(run.state, image))
    maps[title], confidence[title] = turned(np.argmax(prob, axis=-1)), turned(np.max(prob, axis=-1))
  turned_label = None if label is None else turned(label)
  spacing = viewer_spacing(case.spacing, case.affine)
  return Scan(name, turned(image[..., 0]), turned_label, maps, confidence, spacing, run.experiment.source.class_names)


def _patch_around(mask: np.ndarray, patch: Sequence[int]) -> tuple[slice, ...]:
  """Where a patch lies that has the middle of the mask's box in its own, as far as the scan goes; a smaller scan is left whole."""
  inside = np.argwhere(mask) if mask.any() else np.array([[0] * mask.ndim, mask.shape])
  middle = (inside.min(axis=0) + inside.max(axis=0)) // 2
  starts = [min(max(int(at) - side // 2, 0), max(size - side, 0)) for at, side, size in zip(middle, patch, mask.shape, strict=True)]
  return tuple(slice(start, start + side) for start, side in zip(starts, patch, strict=True))
