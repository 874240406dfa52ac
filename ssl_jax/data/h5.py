"""Prepared benchmarks: files with arrays `image` (f32) and `label` (u8, may be missing), HDF5 or NumPy's npz.

Left Atrium, Pancreas-CT and BraTS are shared as one file a case, [X, Y, Z]; they differ in where the files lie, what their lists are called
and the voxel size. ACDC and Synapse are shared for 2D networks: volumes as [S, X, Y], and training slices [X, Y] in files of their own.
"""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ssl_jax.data.case import Case, Source, SourceBase, assemble_case, check_affine, check_file, check_size, check_volumes, read_list
from ssl_jax.data.preprocess import translation
from ssl_jax.types import UNREADABLE, DataConfig, InputError, nearest


@dataclasses.dataclass(frozen=True)
class H5Source(SourceBase):
  """Cases of one such folder.

  Attributes:
    root: the data folder.
    pattern: a case's file below `root`; `{}` stands for the case's name.
    spacing_mm: isotropic voxel size of files without an affine; those that the importers write have one.
  """

  root: Path = Path()
  pattern: str = "{}.h5"
  spacing_mm: float = 1.0

  def files(self, name: str) -> tuple[Path, ...]:
    """The case's one file."""
    return (self.root / self.pattern.format(name),)

  def has_label(self, name: str) -> bool:
    """Whether the file holds a dataset `label`."""
    return _read(self.files(name)[0], lambda arrays: "label" in arrays)

  def load(self, name: str) -> Case:
    """Reads one case; the affine is the importer's where the file has one, else `spacing_mm` isotropic."""
    (file,) = self.files(name)
    image, label, affine = _read_arrays(file, self.spacing_mm)
    return assemble_case(name, image, check_volumes(image, label, (file,), range(self.num_classes)), affine)


@dataclasses.dataclass(frozen=True)
class StackSource(SourceBase):
  """Cases of a benchmark for 2D networks: volumes whose files are [S, X, Y], and slices in files of their own.

  A volume that has no file of its own is put together from its slices. Voxels without an affine measure 1.

  Attributes:
    volumes: name -> file.
    slices: name -> file, slices of a volume in their order.
    volume_of: slice -> its volume; empty where training cases are volumes.
  """

  volumes: Mapping[str, Path] = dataclasses.field(default_factory=dict)
  slices: Mapping[str, Path] = dataclasses.field(default_factory=dict)
  volume_of: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def files(self, name: str) -> tuple[Path, ...]:
    """The file of the slice or volume, or those of the volume's slices."""
    file = self.slices.get(name) or self.volumes.get(name)
    return (file,) if file else tuple(self.slices[part] for part, volume in self.volume_of.items() if volume == name)

  def has_label(self, name: str) -> bool:
    """Whether every file of the case holds a `label`."""
    return all(_read(file, lambda arrays: "label" in arrays) for file in self.files(name))

  def load(self, name: str) -> Case:
    """Reads a slice, image f32[X, Y, 1], or a volume, image f32[X, Y, S, 1]; the label of a slice may mark no voxel.

    Raises:
      InputError: a file is damaged or is not of that rank, or a volume's slices differ in shape.
    """
    files = self.files(name)
    images, labels, affines = zip(*(_read_arrays(file, 1.0) for file in files), strict=True)
    image, label = images[0], labels[0]
    if name in self.volumes:
      image, label = (array if array is None or array.ndim != 3 else np.moveaxis(array, 0, -1) for array in (image, label))
    elif name not in self.slices:
      for file, plane, mask in zip(files, images, labels, strict=True):
        check_volumes(plane, mask, (file,), range(self.num_classes), rank=2)
        if plane.shape != image.shape:
          raise InputError(f"{file}: shape {plane.shape} differs from {files[0].name}'s {image.shape}; slices of a volume share one grid")
      image = np.stack(images, axis=-1)
      label = None if any(mask is None for mask in labels) else np.stack(labels, axis=-1)
    label = check_volumes(image, label, files, range(self.num_classes), rank=2 if name in self.slices else 3)
    return assemble_case(name, image, None if label is None else np.ascontiguousarray(label), affines[0])


def find_slices(folder: Path, naming: str) -> tuple[dict[str, Path], dict[str, str]]:
  """Slice -> file and slice -> volume, sorted by volume and then by number.

  Args:
    folder: that holds the files; it may be missing.
    naming: regular expression for the whole file name, with groups `slice`, `volume` and `number`.
  """
  matches = [(match, file) for file in folder.glob("*") if (match := re.fullmatch(naming, file.name))]
  matches.sort(key=lambda pair: (pair[0]["volume"], int(pair[0]["number"])))
  return {match["slice"]: file for match, file in matches}, {match["slice"]: match["volume"] for match, _ in matches}


def order_slices(file: Path, cfg: DataConfig, volume_of: Mapping[str, str], train: Sequence[str], test: Sequence[str]) -> tuple[str, ...]:
  """Training slices: those that the list names, in its order, or without a list all slices of the training volumes.

  Args:
    file: the list, one slice a line.
    cfg: tells whether the list was asked for by name.
    volume_of: slice -> volume of all slices on disk, in order.
    train, test: names of volumes.

  Raises:
    InputError: a list that was asked for is missing or names a slice that has no file or is not of a training volume, or scans are to be
      normalised, which single slices cannot be.
  """
  if cfg.normalise != "none":
    raise InputError(
      f"config.data.normalise={cfg.normalise!r} is over whole scans, but {cfg.source!r} trains on slices in files of their own; set it to "
      "'none', which is as published"
    )
  listed = read_list(file)
  if listed is None and cfg.slice_list != DataConfig.slice_list:
    raise InputError(f"data.slice_list: {file} does not exist; write one slice a line, or drop the option")
  for name in listed or ():
    volume = volume_of.get(name)
    if volume is None:
      raise InputError(f"{file}: slice {name!r} has no file; {nearest(name, volume_of) if len(volume_of) < 9999 else 'fetch it again'}")
    if volume not in train:
      why = "a test volume, whose slices may not train" if volume in test else "no training volume; correct one of the lists"
      raise InputError(f"{file}: {name!r} is of {volume!r}, {why}")
  if listed is not None:
    return listed
  of_volume: dict[str, list[str]] = {}
  for name, volume in volume_of.items():
    of_volume.setdefault(volume, []).append(name)
  return tuple(name for volume in train for name in of_volume.get(volume, ()))


def import_cases(
  source: Source, root: Path, out: Path, pattern: str, list_files: Sequence[str], excluded: Collection[str] = ()
) -> tuple[str, ...]:
  """Writes the cases of another source in the layout of `H5Source` and copies the list files; a file appears whole or not at all.

  Args:
    source: what to write; every case is read once.
    root: folder of the list files; those that are missing are left out.
    out: folder to write; files of the same name are replaced.
    pattern: as in `H5Source`.
    list_files: names of list files.
    excluded: case names to leave out of the lists.

  Returns: the names of the cases written.

  Raises:
    InputError: a case or a list is damaged.
  """
  for name in source.names:
    case = source.load(name)
    write_arrays(out / pattern.format(name), case.image[..., 0], case.label, case.affine)
  for file in list_files:
    listed = read_list(root / file)
    if listed is not None:
      write_list(out / file, [name for name in listed if name not in excluded])
  return source.names


def write_stack(file: Path, case: Case) -> None:
  """Writes a volume of one channel as [S, X, Y]; the affine stays that of voxel (x, y, s)."""
  label = None if case.label is None else np.moveaxis(case.label, -1, 0)
  write_arrays(file, np.moveaxis(case.image[..., 0], -1, 0), label, case.affine)


def write_slices(files: Sequence[Path], case: Case) -> None:
  """Writes the slices of a volume of one channel, each [X, Y], into one file each."""
  for k, file in enumerate(files):
    label = None if case.label is None else case.label[:, :, k]
    write_arrays(file, case.image[:, :, k, 0], label, case.affine @ translation((0, 0, k)))


def write_arrays(file: Path, image: np.ndarray, label: np.ndarray | None, affine: np.ndarray) -> None:
  """Writes one file, npz or HDF5 by its ending, with folders above it; it appears whole or not at all."""
  arrays: dict[str, Any] = {"image": image} if label is None else {"image": image, "label": label}
  file.parent.mkdir(parents=True, exist_ok=True)
  partial = file.with_suffix(".partial")
  if file.suffix == ".npz":
    with partial.open("wb") as stream:
      np.savez_compressed(stream, affine=affine, **arrays)
  else:
    with h5py.File(partial, "w") as h5:
      for key, array in arrays.items():
        h5.create_dataset(key, data=array, compression="gzip")
      h5.attrs["affine"] = affine
  partial.replace(file)


def write_list(file: Path, names: Sequence[str]) -> None:
  """Writes case names, one a line."""
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def _read_arrays(file: Path, spacing_mm: float) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
  """Image f32, label or `None`, affine f64[4, 4]: the importer's where the file has one, else `spacing_mm` isotropic."""

  def read(arrays: Any) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    if "image" not in arrays:
      raise InputError(f"{file}: dataset 'image' is missing; fetch or import the case again")
    notes = arrays.attrs if isinstance(arrays, h5py.File) else arrays
    affine = np.asarray(notes["affine"] if "affine" in notes else np.diag([spacing_mm] * 3 + [1.0]))
    if affine.shape != (4, 4) or affine.dtype.kind not in "iuf":
      raise InputError(
        f"{file}: 'affine' has shape {affine.shape} of {affine.dtype}, expected 4 x 4 numbers; fetch or import the case again"
      )
    check_affine(affine, file)
    image, label = _array(arrays, "image", file), _array(arrays, "label", file) if "label" in arrays else None
    return image.astype(np.float32), label, affine.astype(np.float64)

  return _read(file, read)


def _array(arrays: Any, key: str, file: Path) -> np.ndarray:
  """Reads one array of real numbers, which must lie in this very file: HDF5 can also point to others."""
  if isinstance(arrays, h5py.File):
    array = _dataset(arrays, key, file)
  else:
    check_size((arrays.zip.getinfo(f"{key}.npy").file_size,), 1, file, compressed=True)
    array = arrays[key]
  if getattr(array, "dtype", np.dtype(object)).kind not in "biuf":
    raise InputError(f"{file}: {key!r} is no array of real numbers; fetch or import the case again")
  return array


def _dataset(arrays: h5py.File, key: str, file: Path) -> np.ndarray:
  found = arrays[key] if isinstance(arrays.get(key, getlink=True), h5py.HardLink) else None
  if not isinstance(found, h5py.Dataset) or found.is_virtual or found.external or found.shape is None:
    raise InputError(f"{file} cannot be read, {key!r} is no array in this file; fetch or import the case again")
  check_size(found.shape, found.dtype.itemsize, file, compressed=True)
  return found[()]


@contextlib.contextmanager
def _open(file: Path) -> Iterator[Any]:
  check_file(file)
  with np.load(file, allow_pickle=False) if file.suffix == ".npz" else h5py.File(file, "r") as arrays:
    yield arrays


def _read(file: Path, read: Callable[[Any], Any]) -> Any:
  try:
    with _open(file) as arrays:
      return read(arrays)
  except InputError:
    raise
  except UNREADABLE as error:
    kind = "NumPy's npz" if file.suffix == ".npz" else "HDF5"
    reason = " ".join(str(error).split())
    raise InputError(f"{file} cannot be read, it is truncated or not {kind}: {reason}; fetch it again") from error
