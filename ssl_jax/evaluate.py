"""From a state to numbers: whole scans, one row per case, a summary per predictor and, with several classes, per class."""

import csv
import functools
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tqdm

from ssl_jax import metrics
from ssl_jax.core import distributed, sharding
from ssl_jax.data import Case
from ssl_jax.data.transforms import resize_nearest
from ssl_jax.experiment import Experiment
from ssl_jax.types import InputError, TrainState, write_whole

_QUALITY_CASES = 4  # scans on which pseudo-labels are compared with hidden labels


def evaluate(
  experiment: Experiment, state: TrainState, watch: Callable[[Case, np.ndarray], None] | None = None
) -> dict[str, dict[str, Any]]:
  """Scores every predictor of the method on the evaluation scans.

  Args:
    experiment: from `open_experiment`.
    state: what to score.
    watch: is shown the first scan and its label map from the first predictor.

  Returns:
    Predictor name -> its result, the first being what the paper evaluates: `{"method", "predictor", "select", "checkpoint", "step", "seed",
    "split", "data", "empty_policy", "cases", "summary"}`, with several foreground classes also `"classes"`: class -> summary. Distances are
    in voxels of the evaluated grid, and in mm under `*_mm`.
  """
  cfg, split = experiment.cfg, experiment.split
  names = split.evaluation[: cfg.eval.max_cases or None]
  if not names:
    raise InputError(f"config.data.split: {cfg.data.split} leaves no case to evaluate")
  local, error = sharding.on_one_device(state), None
  own: list[dict[str, dict[str, Any]]] = []
  try:
    own = _rows(experiment, local, names, watch)
  except InputError as found:
    error = found
  distributed.raise_together(error)
  shares = distributed.gather(own)
  in_order = [shares[i % len(shares)][i // len(shares)] for i in range(len(names))]
  rows = {predictor: [row[predictor] for row in in_order] for predictor in experiment.predictors}
  summarise = functools.partial(metrics.summarise, num_resamples=cfg.eval.num_resamples, seed=cfg.seed)
  foreground = experiment.source.class_names[1:]

  def per_class(cases: list[dict[str, Any]]) -> dict[str, Any]:
    return {"classes": {name: summarise(metrics.of_class(cases, name)) for name in foreground}} if len(foreground) > 1 else {}

  return {
    predictor: {
      "method": cfg.method["name"],
      "predictor": predictor,
      "select": cfg.eval.select,
      "checkpoint": experiment.select,
      "step": int(state.step),
      "seed": cfg.seed,
      "split": split.name,
      "data": {key: getattr(cfg.data, key) for key in ("dataset", "num_labelled", "downsample", "test_list")},
      "empty_policy": cfg.eval.empty,
      "cases": cases,
      "summary": summarise(cases),
      **per_class(cases),
    }
    for predictor, cases in rows.items()
  }


def _rows(
  experiment: Experiment, state: TrainState, names: Sequence[str], watch: Callable[[Case, np.ndarray], None] | None
) -> list[dict[str, dict[str, Any]]]:
  """Returns this process's share of the cases, every so manieth: predictor -> scores of the case."""
  rows = []
  own = names[jax.process_index() :: jax.process_count()]
  hidden = jax.process_index() > 0
  for name in tqdm.tqdm(own, desc="evaluate", unit="scan", mininterval=1.0, leave=False, dynamic_ncols=True, disable=hidden):
    case = experiment.source.load(name)
    if case.label is None:
      raise InputError(f"{name}: this evaluation case has no label file; take it out of the list, or use --mode=predict")
    row: dict[str, dict[str, Any]] = {}
    for predictor, predict in experiment.predictors.items():
      label = np.argmax(np.asarray(predict(state, case.image)), axis=-1)
      if watch and name == names[0] and not row:
        watch(case, label)
      row[predictor] = {"case": name, **score(label, case, experiment.source.class_names, experiment.cfg.eval.empty)}
    rows.append(row)
  return rows


def score(label: np.ndarray, case: Case, class_names: tuple[str, ...], empty: str) -> dict[str, Any]:
  """Scores one predicted label map.

  Args:
    label: integer[*spatial], the prediction.
    case: the scan with its true label.
    class_names: background first.
    empty: see `metrics.case_metrics`.

  Returns:
    Metric -> mean over the foreground classes, those with NaN left out; `empty` -> whether the prediction or the label of any class is
    empty; with several classes also `<class>/<metric>`.
  """
  per_class = {}
  for value, name in enumerate(class_names[1:], start=1):
    pred, true = label == value, np.asarray(case.label) == value
    row = metrics.case_metrics(pred, true, empty=empty)
    mm = metrics.case_metrics(pred, true, spacing=case.spacing, empty=empty)
    per_class[name] = {**row, **{f"{k}_mm": mm[k] for k in ("hd95", "asd")}}
  mean = {key: _mean([row[key] for row in per_class.values()]) for key in next(iter(per_class.values())) if key != "empty"}
  mean["empty"] = any(row["empty"] for row in per_class.values())
  if len(per_class) > 1:
    mean |= {f"{name}/{key}": value for name, row in per_class.items() for key, value in row.items()}
  return mean


def write_results(results: Mapping[str, Mapping[str, Any]], workdir: Path) -> None:
  """Writes `results_<predictor>.json`, where NaN is null, and, one row a case, `results_<predictor>.csv`."""
  for predictor, result in results.items():
    write_whole(workdir / f"results_{predictor}.json", json.dumps(_null_for_nan(result), indent=2, allow_nan=False))
    text = io.StringIO()
    table = csv.DictWriter(text, fieldnames=list(result["cases"][0]))
    table.writeheader()
    table.writerows(result["cases"])
    write_whole(workdir / f"results_{predictor}.csv", text.getvalue())


def _mean(values: list[float]) -> float:
  known = [value for value in values if not math.isnan(value)]
  return float(np.mean(known)) if known else math.nan


def _null_for_nan(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {key: _null_for_nan(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_null_for_nan(item) for item in value]
  return None if isinstance(value, float) and math.isnan(value) else value


def pseudo_label_quality(experiment: Experiment, state: TrainState) -> dict[str, float]:
  """Compares pseudo-labels with the hidden labels of a few unlabelled scans or slices, where the data set has them.

  One centred patch a scan, or the whole resized slice. For every stage the method names (CRLN: before and after rectification): the share
  of reliable voxels, and the Dice of all and of reliable pseudo-labels against the foreground.

  Source: CRLN, Figs. 1 and 11.
  """
  if experiment.pseudo_labels is None:
    return {}
  state = sharding.on_one_device(state)
  found: dict[str, list[float]] = {}
  fit = _centre_patch if experiment.cfg.data.view == "crop" else resize_nearest
  hidden = [name for name in experiment.split.unlabelled if experiment.source.has_label(name)]
  for name in hidden[:_QUALITY_CASES]:
    case = experiment.source.load(name)
    image, label = (fit(np.asarray(a), experiment.cfg.data.patch) for a in (case.image, case.label))
    for stage, (prob, reliable) in jax.device_get(experiment.pseudo_labels(state, image[None])).items():
      pseudo, true = np.argmax(prob[0], axis=-1) > 0, label > 0
      values = {
        "share_reliable": float(np.mean(reliable)),
        "dice_all": metrics.dice(pseudo, true),
        "dice_reliable": metrics.dice(pseudo & reliable[0], true & reliable[0]),
      }
      for key, value in values.items():
        found.setdefault(f"pseudo_{stage}/{key}", []).append(value)
  return {key: float(np.mean(values)) for key, values in found.items()}


def _centre_patch(array: np.ndarray, patch: tuple[int, ...]) -> np.ndarray:
  """Crops or zero-pads the leading axes to `patch` around the centre."""
  for axis, side in enumerate(patch):
    lack = max(side - array.shape[axis], 0)
    array = np.pad(array, [(lack // 2, lack - lack // 2) if a == axis else (0, 0) for a in range(array.ndim)])
    start = (array.shape[axis] - side) // 2
    array = np.take(array, range(start, start + side), axis=axis)
  return array
