"""NIfTI images in, label maps out: preparation as in training, a predictor, and the way back to each image's own grid."""

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tqdm

from ssl_jax import data
from ssl_jax.types import DataConfig, InputError

Segment = Callable[[np.ndarray], np.ndarray]
"""f32[*spatial, channels], prepared -> f32[*spatial, C] probabilities."""


@dataclasses.dataclass(frozen=True)
class Segmented:
  """One scan, segmented, on its own grid.

  Attributes:
    label: u8[*spatial].
    probabilities: f32[*spatial, C], which add up to 1.
  """

  label: np.ndarray
  probabilities: np.ndarray


def segment_case(case: data.Case, segment: Segment, cfg: DataConfig) -> Segmented:
  """Prepares a scan as the training scans were, predicts, and brings the probabilities back to the scan's grid.

  Args:
    case: as it was read.
    segment: the predictor.
    cfg: how scans are prepared, and in `patch` the network's rank.

  Raises:
    InputError: the scan cannot be prepared so, or the network does not take its rank.
  """
  shape, ranks = case.image.shape[:-1], (2, 3) if len(cfg.patch) == 2 else (len(cfg.patch),)
  if len(shape) not in ranks:
    raise InputError(f"{case.name}: shape {shape} does not fit a {len(cfg.patch)}D network; give it images of {ranks[-1]} axes")
  prepared = data.prepare_case(case, cfg)
  prob = data.to_scan(segment(prepared.image), prepared, case)
  return Segmented(np.argmax(prob, axis=-1).astype(np.uint8), prob)


def segment_files(
  segment: Segment,
  inputs: Path,
  output: Path,
  cfg: DataConfig,
  *,
  channels: int,
  class_names: tuple[str, ...],
  probabilities: bool = False,
  overwrite: bool = False,
) -> list[Path]:
  """Segments NIfTI images.

  Args:
    segment: the predictor.
    inputs: a NIfTI file, or a folder of them; several channels as `<case>_0000`, `_0001`, … or as a last axis.
    output: folder for `<case>.nii.gz`, uint8 classes on the input's grid with its affine.
    cfg: how scans are prepared.
    channels: how many the network takes.
    class_names: background first.
    probabilities: also write `<case>_probabilities.nii.gz`, float32, classes as the last axis.
    overwrite: segment images again whose files are in `output` already.

  Returns:
    The files written.

  Raises:
    InputError: there is no image, or `output` cannot be written. A single image that cannot be read or does not fit is named; among several
      images such ones are printed to stderr, the others done, and their number raised at the end.
  """
  images, problems = data.open_images(inputs, channels, class_names)
  count = len(images.names) + len(problems)
  _make_folder(output, inputs)
  files = {name: [output / f"{name}.nii.gz"] for name in images.names}
  if probabilities:
    files = {name: [*paths, output / f"{name}_probabilities.nii.gz"] for name, paths in files.items()}
  todo = [name for name, paths in files.items() if overwrite or not all(path.is_file() for path in paths)]
  if len(todo) < len(files):
    print(f"{len(files) - len(todo)} of {count} images are segmented in {output} already; --overwrite does them again")
  for error in problems.values():
    _report(error, count)
  written = []
  for name in tqdm.tqdm(todo, desc="predict", unit="scan", dynamic_ncols=True):
    image = images.files(name)[0]
    try:
      found = segment_case(images.load(name), segment, cfg)
    except InputError as error:
      problems[name] = error if str(image) in str(error) else InputError(f"{image}: {error}")
      _report(problems[name], count)
      continue
    # The label map last: its presence says that the scan is done.
    for values, file in reversed(list(zip((found.label, found.probabilities), files[name], strict=False))):
      data.save_like(values, image, file)
    written += files[name]
  if problems and count == 1:
    raise next(iter(problems.values()))
  if problems:
    raise InputError(f"{len(problems)} of {count} images were not segmented, see above; the others are in {output}")
  return written


def _make_folder(output: Path, inputs: Path) -> None:
  if output.resolve() == (inputs if inputs.is_dir() else inputs.parent).resolve():
    raise InputError(f"--output: {output} is where the images are; name another folder, since label maps are named as their images")
  try:
    output.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise InputError(f"--output: {output} cannot be made a folder ({error.strerror}); name another") from error
  if not os.access(output, os.W_OK):
    raise InputError(f"--output: {output} cannot be written to; change its permissions or name another")


def _report(error: InputError, count: int) -> None:
  """Prints what is wrong with one image among several; of a single one it is raised."""
  if count > 1:
    tqdm.tqdm.write(f"error: {error}", file=sys.stderr)
