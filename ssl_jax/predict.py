"""Segments new images with a trained run, from the run's folder alone."""

from pathlib import Path

from ssl_jax import data
from ssl_jax.experiment import open_run, restore
from ssl_jax.segment import segment_files
from ssl_jax.types import Config


def predict(cfg: Config, workdir: Path, inputs: Path, output: Path, *, probabilities: bool = False, overwrite: bool = False) -> list[Path]:
  """Segments NIfTI images with the predictor that the paper evaluates.

  Args:
    cfg: the run's configuration: preparation, patch, stride, weights, flips, and which checkpoint.
    workdir: the run's folder; its data need not be there.
    inputs, output, probabilities, overwrite: see `segment.segment_files`.

  Returns:
    The files written.

  Raises:
    InputError: the folder holds no run, the run's source prepared its scans in a way that prediction does not repeat, or see
      `segment.segment_files`.
  """
  data.check_predictable(cfg.data)
  experiment = open_run(cfg, workdir)
  state = restore(experiment, workdir)
  predictor = next(iter(experiment.predictors.values()))
  source = experiment.source
  return segment_files(
    lambda image: predictor(state, image),
    inputs,
    output,
    cfg.data,
    channels=source.channels,
    class_names=source.class_names,
    probabilities=probabilities,
    overwrite=overwrite,
  )
