"""Reads what `evaluate` wrote, and says what of it is wrong."""

import contextlib
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ssl_jax import config
from ssl_jax.metrics import METRICS
from ssl_jax.types import InputError, read_json, shown

HEADLINE = "student"  # the predictor that the papers evaluate
_SUMMARY = ("mean", "std", "bootstrap_std")
_FACTS = {"method": str, "predictor": str, "select": str, "step": int, "seed": int}
_OPTIONAL_FACTS = {"name", "split", "checkpoint", "empty_policy"}
_DATA = {"dataset": str, "num_labelled": int, "downsample": int, "test_list": str}


def load_results(folders: Iterable[str | Path]) -> list[dict[str, Any]]:
  """Reads every `results_*.json` under the folders of some runs.

  Args:
    folders: of one run each, or of several runs.
  Returns: the results in order of their folders, what the paper evaluates first in each, with a `name`: the folder's, without
    `_seed<number>`, so that runs of one configuration under several seeds share it. Null is NaN again.
  Raises: InputError when a folder has no results, or a file is not what `evaluate` writes.
  """
  results, seen = [], set()
  for folder in map(Path, folders):
    files = sorted(folder.rglob("results_*.json"), key=lambda file: (file.parent, file.stem != f"results_{HEADLINE}", file.name))
    if not files:
      what = "no results_*.json here" if folder.is_dir() else "no such folder"
      raise InputError(f"{folder}: {what}; run --mode=eval on a --workdir, then name that folder")
    for file in files:
      if file.resolve() not in seen:
        seen.add(file.resolve())
        results.append(_load(file))
  return results


def values_of(cases: Sequence[dict[str, Any]], key: str) -> list[float]:
  """One metric of every case; NaN where it has no value."""
  return [float(case[key]) for case in cases]


def _load(file: Path) -> dict[str, Any]:
  try:
    result = _nan_for_null(read_json(file))
    _check(result)
  except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
    what = f"lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
    raise InputError(f"{file}: not a result of --mode=eval ({what[:500]}); delete it or evaluate again") from error
  if all(math.isnan(result["summary"][metric]["mean"]) for metric in METRICS):
    raise InputError(f"{file}: no case has a value, every number is NaN; look at the predictions and labels, then evaluate again")
  name = re.sub(r"_seed\d+$", "", file.resolve().parent.name)
  return {"name": name, **_facts_of_run(file.with_name("config.json")), **result, "file": str(file)}


def _facts_of_run(file: Path) -> dict[str, Any]:
  """What results written before they had `data` lack, from the configuration beside them when that can be read."""
  with contextlib.suppress(OSError, ValueError, TypeError):
    data = config.from_json(file).data
    return {"data": {key: getattr(data, key) for key in ("dataset", "num_labelled", "downsample", "test_list")}}
  return {}


def _check(result: Any) -> None:
  """Raises the first of what `_load` catches when `result` lacks something that a table shows, or holds something else there."""
  if not isinstance(result, dict):
    raise TypeError("a JSON object is expected")
  for key, kind in _FACTS.items():
    _need(result[key], kind, key)
  for key in _OPTIONAL_FACTS & result.keys():
    _need(result[key], str, key)
  if "data" in result:
    for key, kind in _DATA.items():
      _need(result["data"][key], kind, f"data.{key}")
  if not isinstance(result["cases"], list) or not result["cases"]:
    raise ValueError("it has no cases")
  classes = result.get("classes", {})
  for case in result["cases"]:
    _need(case["case"], str, "case")
    for metric in (*METRICS, *(f"{name}/{metric}" for name in classes for metric in METRICS)):
      _ = case[metric]
    for key, value in case.items():
      if key not in ("case", "empty") and not key.endswith("/empty"):
        _number(value, key)
  names = [case["case"] for case in result["cases"]]
  if len(set(names)) < len(names):
    raise ValueError("a case occurs twice")
  for summary in (result["summary"], *classes.values()):
    for metric in (*METRICS, *(key for key in summary if key.endswith("_mm"))):
      for key in _SUMMARY:
        _number(summary[metric][key], f"{metric}.{key}")
    for key in ("num_empty", "num_cases"):
      _need(summary[key], int, key)


def _need(value: Any, kind: type, key: str) -> None:
  if type(value) is not kind or (isinstance(value, int) and abs(value) >= 2**53):
    raise TypeError(f"{key} is {shown(value)}, expected {kind.__name__}")


def _number(value: Any, key: str) -> None:
  """NaN stands for no value."""
  if not isinstance(value, float) and (type(value) is not int or abs(value) >= 2**53) or math.isinf(value):
    raise TypeError(f"{key} is {shown(value)}, expected a number")


def _nan_for_null(value: Any) -> Any:
  if isinstance(value, dict):
    return {key: _nan_for_null(item) for key, item in value.items()}
  if isinstance(value, list):
    return [_nan_for_null(item) for item in value]
  return math.nan if value is None else value
