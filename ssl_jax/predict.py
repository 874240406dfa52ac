"""New images in, label maps out, in the geometry of the input."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import tqdm

from ssl_jax import data
from ssl_jax.experiment import open_experiment, restore
from ssl_jax.types import Config, InputError


def predict(cfg: Config, workdir: Path, inputs: Path, output: Path) -> list[Path]:
  """Segments NIfTI images with the predictor that the paper evaluates; needs the run's folder, not its data.

  Args:
    cfg: the run's configuration: preprocessing, patch, stride, and which checkpoint.
    workdir: the run's folder.
    inputs: a NIfTI file, or a folder of them; several channels as `<case>_0000`, `_0001`, … or as a last axis.
    output: folder for `<case>.nii.gz`, uint8 classes on the input's grid with its affine.

  Returns:
    The files written.

  Raises:
    InputError: the folder holds no run, an image cannot be read or does not fit the network, or the run's source
      prepared its scans in a way that prediction does not repeat.
  """
  if not (workdir / "run.json").is_file():
    raise InputError(f"{workdir}: no run here; train first, or name another --workdir")
  data.check_predictable(cfg.data)
  run = json.loads((workdir / "run.json").read_text())
  images = data.prepare(data.open_images(inputs, run["channels"], tuple(run["class_names"])), cfg.data)
  experiment = open_experiment(cfg, images)
  state = restore(experiment, workdir)
  segment = next(iter(experiment.predictors.values()))
  output.mkdir(parents=True, exist_ok=True)
  written = []
  for name in tqdm.tqdm(images.names, desc="predict", unit="scan"):
    original: Any = nib.load(images.files(name)[0])
    prob = np.asarray(segment(state, images.load(name).image))
    downsampled = min(len(cfg.data.patch), prob.ndim - 1)  # axes
    label = _to_grid(np.argmax(prob, axis=-1).astype(np.uint8), cfg.data.downsample, original.shape[:downsampled])
    mask = nib.Nifti1Image(label, original.affine)
    mask.header.set_xyzt_units(*original.header.get_xyzt_units())
    for form in ("sform", "qform"):  # keep which of the two the input relies on
      affine, code = getattr(original.header, f"get_{form}")(coded=True)
      getattr(mask, f"set_{form}")(affine, int(code))
    written.append(output / f"{name}.nii.gz")
    nib.save(mask, written[-1])
  return written


def _to_grid(label: np.ndarray, factor: int, shape: tuple[int, ...]) -> np.ndarray:
  """Repeats each voxel `factor` times along the axes that `shape` names; what downsampling cut off takes its neighbour's class."""
  for axis, side in enumerate(shape):
    label = np.repeat(label, factor, axis=axis)
    lack = side - label.shape[axis]
    label = np.pad(label, [(0, lack) if a == axis else (0, 0) for a in range(label.ndim)], mode="edge")
  return label
