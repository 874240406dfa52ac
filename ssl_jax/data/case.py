"""A scan in memory, what every source offers, and the checks that all sources share."""

import contextlib
import dataclasses
import difflib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
from nibabel.orientations import io_orientation

from ssl_jax.types import DataConfig, InputError, read_text, shown

MOST_VOXELS = 2**31  # of one file; as float32 they take 8 GiB
_DEFLATE_RATIO = 1032  # the most by which gzip, zip and HDF5's gzip filter make anything smaller


@dataclasses.dataclass(frozen=True)
class Case:
  """One scan.

  Attributes:
    image: f32[*spatial, channels].
    label: u8[*spatial] with values 0..C-1, or `None` when the case has no label file.
    spacing: voxel size in mm along each spatial axis.
    affine: f64[4, 4], voxel index -> mm (NIfTI's convention, RAS).
  """

  name: str
  image: np.ndarray
  label: np.ndarray | None
  spacing: tuple[float, ...]
  affine: np.ndarray


class Source(Protocol):
  """A set of cases. `train_names` and `test_names` are in the order of the benchmark's lists; `names` is both."""

  @property
  def train_names(self) -> tuple[str, ...]: ...  # noqa: D102
  @property
  def test_names(self) -> tuple[str, ...]: ...  # noqa: D102
  @property
  def names(self) -> tuple[str, ...]: ...  # noqa: D102
  @property
  def channels(self) -> int: ...  # noqa: D102
  @property
  def num_classes(self) -> int: ...  # noqa: D102
  @property
  def class_names(self) -> tuple[str, ...]: ...  # noqa: D102

  def has_label(self, name: str) -> bool:
    """Whether the case has a label file; opens no volume."""
    ...

  def files(self, name: str) -> tuple[Path, ...]:
    """The files a case is read from; empty for synthetic cases."""
    ...

  def load(self, name: str) -> Case:
    """Reads one case; raises `InputError` when its files are damaged or disagree."""
    ...


@dataclasses.dataclass(frozen=True)
class SourceBase:
  """What the sources on disk share: the two lists, and binary segmentation of one channel unless said otherwise."""

  train_names: tuple[str, ...]
  test_names: tuple[str, ...]
  channels: int = 1
  class_names: tuple[str, ...] = ("background", "left_atrium")

  @property
  def names(self) -> tuple[str, ...]:
    """All cases: the training list, then the test list."""
    return self.train_names + self.test_names

  @property
  def num_classes(self) -> int:
    """Number of classes, background included."""
    return len(self.class_names)


def unknown_name(key: str, value: str, known: Iterable[str]) -> InputError:
  """Returns the error for a name that is none of `known`, with the nearest one as a suggestion."""
  known = sorted(known)
  near = difflib.get_close_matches(str(value), known, n=1)
  hint = f"; did you mean {near[0]!r}?" if near else ""
  return InputError(f"{key}={value!r} is unknown, valid: {', '.join(known)}{hint}")


def check_root(root: str, advice: str) -> Path:
  """Returns the data folder as a path; raises `InputError` with `advice` (what it is, where it is had) when it is not there."""
  with contextlib.suppress(OSError, RuntimeError):  # a name that is too long, the home of a user who does not exist
    path = Path(root).expanduser()
    if root and path.is_dir():
      return path
  problem = f"data.root={shown(root)} is no folder" if root else "data.root is not set"
  raise InputError(f"{problem}: {advice} To try ssl_jax without any data, run --config=configs/quickstart.py.")


def find_cases(root: Path, pattern: str, advice: str) -> list[str]:
  """Sorted names of the cases that have a file below `root`.

  Args:
    root: the data folder.
    pattern: a case's file relative to `root`; `{}` stands for the case's name.
    advice: what to do when there is none.

  Raises:
    InputError: there is no such file.
  """
  before, after = pattern.split("{}")
  files = (path.relative_to(root).as_posix() for path in root.glob(pattern.format("*")))
  names = sorted(file[len(before) : len(file) - len(after)] for file in files)
  names = [name for name in names if not name.startswith(".")]  # macOS leaves `._*` copies
  if not names:
    raise InputError(f"{root} holds no {pattern.format('<case>')}: {advice}")
  return names


def read_list(path: Path) -> tuple[str, ...] | None:
  """Case names of a list file, one a line, or `None` when there is no such file.

  Raises:
    InputError: it is no text file, or a name repeats or would lead out of the data folder.
  """
  if not os.path.lexists(path):
    return None
  names = tuple(line.strip() for line in read_text(path).splitlines() if line.strip())
  for name in names:
    check_relative(name, path)
  repeated = sorted(name for name, count in Counter(names).items() if count > 1)
  if repeated:
    raise InputError(f"{path}: {shown(repeated[0])} is listed more than once; keep one line for each case")
  return names


def check_relative(entry: str, where: Path) -> None:
  """Raises `InputError` when a path written in the file `where` would lead out of the data folder."""
  path = PurePosixPath(entry.replace("\\", "/"))
  if not path.parts or path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
    raise InputError(f"{where}: entry {shown(entry)} leads out of the data folder; write plain case names")


def resolve_lists(
  root: Path, cfg: DataConfig, found_train: Sequence[str], found_test: Sequence[str] = (), endings: Sequence[str] = (".list",)
) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """Training and test names from the list files or, where a list is missing, from the folders in sorted order.

  Args:
    root: folder that holds the list files `cfg.train_list` and `cfg.test_list`.
    found_train, found_test: the cases on disk, sorted.
    endings: of the default list files, tried in this order; a name that the configuration gives is taken as it is.

  Raises:
    InputError: a list that was asked for by name is missing, names an unknown case, or shares a case with the other list.
  """
  files, lists = [], []
  for key in ("train_list", "test_list"):
    name, default = getattr(cfg, key), getattr(DataConfig, key)
    candidates = [root / name] if name != default else [root / Path(default).with_suffix(ending) for ending in endings]
    file = next((candidate for candidate in candidates if os.path.lexists(candidate)), candidates[0])
    listed = read_list(file)
    if listed is None and name != default:
      raise InputError(f"data.{key}: {file} does not exist; write one case name a line, or drop the option")
    known = set(found_train) | set(found_test)
    absent = [name for name in listed or () if name not in known]
    if absent:
      near = difflib.get_close_matches(absent[0], sorted(known), n=1)
      hint = f" (nearest: {near[0]!r})" if near else ""
      raise InputError(f"{file}: {len(absent)} of {len(listed or ())} entries have no data under {root}, first {shown(absent[0])}{hint}")
    files.append(file)
    lists.append(listed)
  test = tuple(found_test) if lists[1] is None else lists[1]
  train = tuple(name for name in found_train if name not in set(test)) if lists[0] is None else lists[0]
  shared = sorted(set(train) & set(test))
  if shared:
    raise InputError(f"{root}: {shared[0]!r} is in both {files[0].name} and {files[1].name}; a case may only be in one")
  return train, test


def problems_of(error: InputError) -> list[str]:
  """All that `raise_all` was given: the error's message and its notes."""
  return [str(error), *getattr(error, "__notes__", ())]


def raise_all(problems: Sequence[str]) -> None:
  """Raises `InputError` with the first problem as its message and the others as notes; returns when there is none."""
  if problems:
    error = InputError(problems[0])
    for problem in problems[1:]:
      error.add_note(problem)
    raise error


def attempt(problems: list[str], function: Callable[..., Any], *arguments: Any) -> Any:
  """Returns what `function` does, or `None` after adding to `problems` what it found wrong."""
  try:
    return function(*arguments)
  except InputError as error:
    problems += problems_of(error)
    return None


def check_image(image: np.ndarray, file: Path) -> None:
  """Raises `InputError` when an image holds NaN or infinite voxels."""
  bad = image.size - np.count_nonzero(np.isfinite(image))
  if bad:
    raise InputError(f"{file}: {bad} of {image.size} voxels are NaN or infinite; repair the file or leave the case out")


def check_affine(affine: np.ndarray, where: Path | str) -> None:
  """Raises `InputError` when an affine f64[4, 4] cannot be inverted or gives an axis no direction."""
  if not np.isfinite(affine).all() or np.linalg.det(affine[:3, :3]) == 0 or np.isnan(io_orientation(affine)).any():
    raise InputError(f"{where}: the header's affine is unusable, {affine.tolist()}; convert the scan again")


def check_file(file: Path) -> None:
  """Raises `InputError` when a path leads to no regular file: reading a folder fails, reading a pipe waits for ever."""
  if not file.is_file():
    raise InputError(f"{file} {'is no regular file' if file.exists() else 'does not exist'}; fetch it again")


def check_size(shape: Sequence[int], itemsize: int, file: Path, *, compressed: bool) -> None:
  """Raises `InputError` when a file cannot hold the voxels its header claims, or they are more than `MOST_VOXELS`; before any is read."""
  voxels, most = math.prod(shape), file.stat().st_size * (_DEFLATE_RATIO if compressed else 1)
  if min(shape, default=1) < 1:
    raise InputError(f"{file}: its header claims the shape {tuple(shape)}; fetch it again")
  if voxels * itemsize > most:
    raise InputError(
      f"{file} cannot be read, it is truncated: its header claims {tuple(shape)} voxels, more than it can hold; fetch it again"
    )
  check_voxels(shape, file)


def check_voxels(shape: Sequence[int], where: Path | str) -> None:
  """Raises `InputError` when there are more than `MOST_VOXELS`."""
  if math.prod(shape) > MOST_VOXELS:
    raise InputError(f"{where}: {' x '.join(map(str, shape))} voxels are more than the {MOST_VOXELS} that are read; crop or resample it")


def check_label(label: np.ndarray, shape: tuple[int, ...], file: Path, known: Sequence[int]) -> np.ndarray:
  """Returns the label as u8; raises `InputError` when its shape is not the image's or a value is not in `known`."""
  problems = []
  label = label.astype(np.uint8) if label.dtype == bool else label
  if label.shape != shape:
    problems.append(f"{file}: label shape {label.shape} differs from its image's {shape}; resample one onto the other")
  unexpected = np.setdiff1d(np.unique(label), np.asarray(known))
  if unexpected.size:
    named = ", ".join(f"{value:g}" for value in unexpected[:8]) + ", ..." * (unexpected.size > 8)
    words = f"value {named} is" if unexpected.size == 1 else f"values {named} are"
    problems.append(f"{file}: label {words} unknown, known values: {', '.join(str(k) for k in known)}")
  raise_all(problems)
  return label.astype(np.uint8)


def check_volumes(
  image: np.ndarray, label: np.ndarray | None, files: Sequence[Path], known: Sequence[int], rank: int = 3
) -> np.ndarray | None:
  """Checks what must hold for a volume of one channel, or for one slice of it, and returns the label as u8.

  Args:
    image: number[X, Y, Z], with `rank=2` number[X, Y].
    label: of the same shape, or `None` for a case without one.
    files: the image's file first, the label's last; one file may hold both.
    known: label values that may occur.
    rank: 3 for a volume, whose label must mark something; 2 for a slice, which may lie beside every organ.

  Raises:
    InputError: an image that is not of that rank or not finite, a label of another shape, with an unknown value or without any voxel.
  """
  if image.ndim != rank:
    raise InputError(f"{files[0]}: image shape {image.shape} is not {rank}D; save one {'volume' if rank == 3 else 'slice'} of one channel")
  problems: list[str] = []
  attempt(problems, check_image, image, files[0])
  if label is not None:
    if rank == 3 and not label.any():
      problems.append(f"{files[-1]}: the label marks no voxel; repair it, or remove the label to use the scan as unlabelled")
    label = attempt(problems, check_label, label, image.shape, files[-1], known)
  raise_all(problems)
  return label


def spacing_of(affine: np.ndarray) -> tuple[float, ...]:
  """Voxel size in mm along the three axes that f64[4, 4] `affine` maps to mm."""
  return tuple(float(side) for side in np.linalg.norm(affine[:3, :3], axis=0))


def assemble_case(name: str, image: np.ndarray, label: np.ndarray | None, affine: np.ndarray) -> Case:
  """Returns the case of a checked image [X, Y, Z] or [X, Y] of one channel; its spacing is that of the affine."""
  return Case(name, np.ascontiguousarray(image[..., None], dtype=np.float32), label, spacing_of(affine)[: image.ndim], affine)
