"""Prepared benchmarks: one HDF5 file a case with datasets `image` (f32[X, Y, Z]) and `label` (u8[X, Y, Z]); the latter may be missing.

Left Atrium, Pancreas-CT and BraTS are shared like this; they differ in where the files lie, what their lists are called and the voxel size.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ssl_jax.data.case import Case, Source, SourceBase, assemble_case, check_volumes, read_list
from ssl_jax.types import InputError


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
    return _read(self.files(name)[0], lambda h5: "label" in h5)

  def load(self, name: str) -> Case:
    """Reads one case; the affine is the importer's where the file has one, else `spacing_mm` isotropic."""
    (file,) = self.files(name)

    def read(h5: h5py.File) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
      if "image" not in h5:
        raise InputError(f"{file}: dataset 'image' is missing; fetch or import the case again")
      affine = h5.attrs.get("affine", np.diag([self.spacing_mm] * 3 + [1.0]))
      return h5["image"][()].astype(np.float32), h5["label"][()] if "label" in h5 else None, np.asarray(affine)

    image, label, affine = _read(file, read)
    return assemble_case(name, image, check_volumes(image, label, (file,), (0, 1)), affine)


def import_cases(
  source: Source, root: Path, out: Path, pattern: str, list_files: Sequence[str], excluded: Collection[str] = ()
) -> tuple[str, ...]:
  """Writes the cases of another source in this layout and copies the list files; a file appears whole or not at all.

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
    target = out / pattern.format(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    with h5py.File(partial, "w") as h5:
      h5.create_dataset("image", data=case.image[..., 0], compression="gzip")
      if case.label is not None:
        h5.create_dataset("label", data=case.label, compression="gzip")
      h5.attrs["affine"] = case.affine
    partial.replace(target)
  for file in list_files:
    listed = read_list(root / file)
    if listed is not None:
      write_list(out / file, [name for name in listed if name not in excluded])
  return source.names


def write_list(file: Path, names: Sequence[str]) -> None:
  """Writes case names, one a line."""
  file.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def _read(file: Path, read: Callable[[h5py.File], Any]) -> Any:
  try:
    with h5py.File(file, "r") as h5:
      return read(h5)
  except InputError:
    raise
  except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
    raise InputError(f"{file} cannot be read, it is truncated or not HDF5: {error}; fetch it again") from error
