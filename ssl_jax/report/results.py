"""Reads what `evaluate` wrote, and says what of it is wrong."""

import contextlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ssl_jax import config
from ssl_jax.metrics import METRICS
from ssl_jax.types import InputError

HEADLINE = "student"  # the predictor that the papers evaluate
_SUMMARY = ("mean", "std", "bootstrap_std")


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
    result = _nan_for_null(json.loads(file.read_text(encoding="utf-8")))
    _check(result)
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    what = f"lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
    raise InputError(f"{file}: not a result of --mode=eval ({what}); delete it or evaluate again") from error
  except OSError as error:
    raise InputError(f"{file}: cannot be read ({error.strerror})") from error
  if all(math.isnan(result["summary"][metric]["mean"]) for metric in METRICS):
    raise InputError(f"{file}: no case has a value, every number is NaN; look at the predictions and labels, then evaluate again")
  name = re.sub(r"_seed\d+$", "", file.resolve().parent.name)
  return {"name": name, "file": str(file), **_facts_of_run(file.with_name("config.json")), **result}


def _facts_of_run(file: Path) -> dict[str, Any]:
  """What results written before they had `data` lack, from the configuration beside them when that can be read."""
  with contextlib.suppress(OSError, ValueError, TypeError):
    data = config.from_json(file).data
    return {"data": {key: getattr(data, key) for key in ("dataset", "num_labelled", "downsample", "test_list")}}
  return {}


def _check(result: Any) -> None:
  """Raises the first of what `_load` catches when `result` lacks something that a table shows."""
  if not isinstance(result, dict):
    raise TypeError("a JSON object is expected")
  for key in ("method", "predictor", "select", "step", "seed"):
    _ = result[key]
  if not isinstance(result["cases"], list) or not result["cases"]:
    raise ValueError("it has no cases")
  names = [case["case"] for case in result["cases"]]
  if len(set(names)) < len(names):
    raise ValueError("a case occurs twice")
  for case in result["cases"]:
    for metric in METRICS:
      float(case[metric])
  for summary in (result["summary"], *result.get("classes", {}).values()):
    for metric in METRICS:
      for key in _SUMMARY:
        float(summary[metric][key])
    int(summary["num_empty"]), int(summary["num_cases"])


def _nan_for_null(value: Any) -> Any:
  if isinstance(value, dict):
    return {key: _nan_for_null(item) for key, item in value.items()}
  if isinstance(value, list):
    return [_nan_for_null(item) for item in value]
  return math.nan if value is None else value
