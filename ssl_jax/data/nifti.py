"""Benchmarks that come as pairs of NIfTI files, an image and a label, somewhere below one folder."""

import contextlib
import dataclasses
import gzip
import logging
import math
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from ssl_jax.data.case import SourceBase, check_affine, check_file, check_size, check_volumes, spacing_of
from ssl_jax.types import InputError

logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # what it finds in a header is in the error that follows

# Length of the header, in either byte order, which a file begins with.
_KINDS: Mapping[bytes, Any] = {
  length.to_bytes(4, order): kind for length, kind in ((348, nib.Nifti1Image), (540, nib.Nifti2Image)) for order in ("little", "big")
}
_MOST_PADDING = 1024  # bytes that may follow the voxels


@dataclasses.dataclass(frozen=True)
class NiftiSource(SourceBase):
  """Image and label files by case name; a case without a label file is unlabelled. Subclasses add `load`.

  Attributes:
    canonical: turn volumes to RAS; otherwise voxels keep their order on disk.
  """

  images: Mapping[str, Path] = dataclasses.field(default_factory=dict)
  labels: Mapping[str, Path] = dataclasses.field(default_factory=dict)
  canonical: bool = True

  def has_label(self, name: str) -> bool:
    """Whether the case has a label file."""
    return name in self.labels

  def files(self, name: str) -> tuple[Path, ...]:
    """The image file, then the label file where there is one."""
    return (self.images[name],) + ((self.labels[name],) if name in self.labels else ())

  def read(self, name: str, known: Sequence[int]) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Reads one case; where both volumes are turned to RAS, they agree when their headers do.

    Args:
      name: of the case.
      known: label values that may occur.

    Returns: image f32[X, Y, Z] with the header's intensity scaling applied, label u8[X, Y, Z] or `None`, affine f64[4, 4].

    Raises:
      InputError: a file is damaged, or image and label differ in shape or lie more than a voxel apart.
    """
    files = self.files(name)
    image, affine = read_volume(files[0], np.float32, self.canonical)
    if len(files) == 1:
      return image, check_volumes(image, None, files, known), affine
    raw, label_affine = read_volume(files[1], None, self.canonical)
    label = check_volumes(image, raw, files, known)
    ends = np.array([[0, 0, 0, 1], [side - 1 for side in image.shape] + [1]]).T
    apart_mm = np.linalg.norm((label_affine @ ends - affine @ ends)[:3], axis=0).max()
    if apart_mm > max(spacing_of(affine)):
      raise InputError(
        f"{files[1]}: its header places it up to {apart_mm:.1f} mm from {files[0].name}; if the voxels of both files are in the same "
        f"order, save the label with the image's affine, else resample one onto the other"
      )
    return image, label, affine


def read_volume(file: Path, dtype: Any, canonical: bool = True) -> tuple[np.ndarray, np.ndarray]:
  """Reads a volume of one channel.

  Args:
    file: NIfTI, one channel.
    dtype: of the result, `None` for the file's own.
    canonical: permute and flip the axes, without interpolation, to run right, anterior, superior as nearly as they can.

  Returns: [X, Y, Z] and f64[4, 4], which maps a voxel of it to the same mm point as the file's header does.

  Raises:
    InputError: the file is damaged, has several channels, or its header gives no usable affine.
  """
  volume, affine, _ = read_nifti(file, dtype)
  volume = volume[..., 0] if volume.ndim == 4 and volume.shape[-1] == 1 else volume
  if volume.ndim != 3:
    raise InputError(f"{file}: shape {volume.shape} is not that of one 3D volume; save one volume a file")
  check_affine(affine, file)
  if not canonical:
    return volume, affine
  orientation = io_orientation(affine)
  return apply_orientation(volume, orientation), affine @ inv_ornt_aff(orientation, volume.shape)


def find_nifti(root: Path, folders: Sequence[str], naming: str) -> dict[str, Path]:
  """Case name -> file, sorted by name.

  Args:
    root: the data folder.
    folders: glob patterns of the folders to look in, relative to `root`.
    naming: regular expression for the whole file name, case ignored, with a group `case`.

  Raises:
    InputError: two files are of one case.
  """
  found: dict[str, Path] = {}
  for file in sorted(file for folder in folders for file in root.glob(f"{folder}/*.nii*")):
    match = re.fullmatch(naming, file.name, re.IGNORECASE)
    if match and file.is_file():
      other = found.setdefault(match["case"], file)
      if other != file:
        raise InputError(f"{file} and {other} are of the same case {match['case']!r}; remove one")
  return dict(sorted(found.items()))


def read_nifti(file: Path, dtype: Any) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
  """Returns a file's voxels, affine and spacing in mm; raises `InputError` when it is damaged."""
  with open_nifti(file) as (scan, stream):
    voxels = np.asanyarray(scan.dataobj, dtype=dtype)
    if len(stream.read(_MOST_PADDING + 1)) > _MOST_PADDING:  # at the end gzip also compares its checksum
      raise InputError(f"{file}: holds more than the {scan.shape} voxels its header claims; fetch it again")
    return voxels, scan.affine, tuple(float(zoom) for zoom in scan.header.get_zooms())


@contextlib.contextmanager
def open_nifti(file: Path) -> Iterator[tuple[Any, Any]]:
  """Yields an image with its header read and checked, its voxels not, and the stream it comes from.

  Raises:
    InputError: the file is damaged, also when that is found out while it is open.
  """
  check_file(file)
  compressed = file.suffix.lower() == ".gz"
  try:
    with gzip.open(file) if compressed else file.open("rb") as stream:
      kind = _KINDS.get(stream.read(4))
      if kind is None:
        raise ValueError("it does not begin as one")
      stream.seek(0)
      scan = kind.from_file_map(kind.make_file_map({"image": stream}), mmap=False)  # a mapped file that shrinks ends the interpreter
      dtype = scan.get_data_dtype()
      if dtype.kind not in "biuf" or min(scan.shape, default=0) < 1:
        raise InputError(f"{file}: shape {scan.shape} of {dtype} is not a scan; save real numbers, one per voxel and channel")
      check_size(scan.shape, dtype.itemsize, file, compressed=compressed)
      yield scan, stream
  except InputError:
    raise
  except (OSError, EOFError, ValueError, OverflowError, MemoryError, zlib.error, ImageFileError, HeaderDataError, WrapStructError) as error:
    reason = " ".join(str(error).split()) or "its header asks for more memory than there is"
    raise InputError(f"{file} cannot be read, it is truncated or not NIfTI: {reason}; fetch it again") from error


def save_like(values: np.ndarray, like: Path, file: Path) -> None:
  """Writes voxels on the grid of another image: its affine, both transforms with their codes, voxel sizes and units.

  Args:
    values: number[*spatial] or number[*spatial, classes], spatial as in `like`; their dtype is the file's.
    like: NIfTI.
    file: `.nii.gz`, replaced if it is there; never seen half written.

  Raises:
    InputError: the file cannot be written.
  """
  original: Any = nib.load(like)
  if values.size == math.prod(original.shape):
    values = values.reshape(original.shape)  # a single channel may be an axis of its own
  image = nib.Nifti1Image(values, original.affine)
  zooms, rank = original.header.get_zooms(), min(values.ndim, len(original.shape))
  for form in ("sform", "qform"):  # keep which of the two the input relies on
    affine, code = getattr(original.header, f"get_{form}")(coded=True)
    getattr(image, f"set_{form}")(affine, int(code))
  image.header.set_zooms((*zooms[:rank], *[1.0] * (values.ndim - rank)))
  image.header["xyzt_units"] = int(original.header["xyzt_units"]) % 256  # also codes that mean nothing
  partial = file.with_name(f".partial_{file.name}")
  try:
    nib.save(image, partial)
    os.replace(partial, file)
  except OSError as error:
    raise InputError(f"{file} cannot be written: {error}") from error
  finally:
    partial.unlink(missing_ok=True)
