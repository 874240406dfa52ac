"""Paired comparison of two runs on the same cases."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ssl_jax.metrics import METRICS, compare_paired, of_class
from ssl_jax.report.render import Cell, Number, Table
from ssl_jax.report.results import values_of
from ssl_jax.report.tables import HEADINGS, IN_PERCENT, UNITS, label, metric_key, select_text
from ssl_jax.types import InputError

_SAME = ("split", "empty_policy")  # must agree, where both results say
_P_LEAST = 1e-4


def choose(results: Sequence[dict[str, Any]], predictor: str) -> list[dict[str, Any]]:
  """Returns the results of one predictor of one run under one or several seeds.

  Raises: InputError when there is no such predictor, or the results are of more than one run.
  """
  found = [result for result in results if result["predictor"] == predictor]
  if not found:
    raise InputError(f"no predictor {predictor!r} in {results[0]['file']}; there is {', '.join(sorted({r['predictor'] for r in results}))}")
  first = found[0]
  for other in found[1:]:
    if any(other.get(key) != first.get(key) for key in ("name", "method", "select", "step", "data", "empty_policy")):
      raise InputError(f"{first['file']} and {other['file']} are not one run under several seeds; name the folder of one run a side")
    if other["seed"] == first["seed"]:
      raise InputError(f"{first['file']} and {other['file']} have the same seed; name the folder of one run a side")
    _check_cases(first, other)
  return found


def comparison(a: Sequence[dict[str, Any]], b: Sequence[dict[str, Any]], *, unit: str = "voxels") -> Table:
  """A table of the differences between two runs, a row per metric and, with several classes, per class and metric.

  Args:
    a, b: from `choose`; several seeds are averaged case by case.
    unit: of the distances, `voxels` or `mm`.
  Returns: the means over cases that have a value on both sides, the mean of a − b with its 95 % bootstrap interval, the p-value of
    Wilcoxon's signed-rank test, and in how many cases which run is better.
  Raises: InputError when the runs were not evaluated on the same cases in the same way, or nothing can be compared.
  """
  if unit not in UNITS:
    raise InputError(f"unit must be one of {', '.join(UNITS)}, got {unit!r}")
  _check_same(a[0], b[0], unit)
  classes = [name for name in a[0].get("classes", ()) if name in b[0].get("classes", ())]
  rows: list[list[Cell]] = []
  for name in ["", *classes]:
    cases_a, cases_b = ([of_class(r["cases"], name) if name else r["cases"] for r in side] for side in (a, b))
    for metric in METRICS:
      rows.append([*([name or "mean"] if classes else []), HEADINGS[metric], *_cells(cases_a, cases_b, metric, unit)])
  if all(row[-1] == "–" for row in rows):
    raise InputError(f"{a[0]['file']} and {b[0]['file']}: fewer than two cases have a value in both; nothing to compare")
  names = [*(["Class"] if classes else []), "Metric"]
  numbers = ["A", "B", "A − B [95 % interval]", "p", "Cases", "A better", "B better"]
  return Table(names, numbers, rows, _caption(a, b, unit))


def _cells(a: Sequence[Sequence[dict[str, Any]]], b: Sequence[Sequence[dict[str, Any]]], metric: str, unit: str) -> list[Cell]:
  key, scale = metric_key(metric, unit), 100 if metric in IN_PERCENT else 1
  order = {case["case"]: i for i, case in enumerate(a[0])}
  try:
    means = [np.mean([values_of(sorted(cases, key=lambda case: order[case["case"]]), key) for cases in side], axis=0) for side in (a, b)]
  except KeyError as error:
    raise InputError(f"{error} is missing in some case; evaluate both runs again") from error
  if np.count_nonzero(~np.isnan(means[0] - means[1])) < 2:
    return ["–"] * 7
  found = compare_paired(*(scale * mean for mean in means))
  better = (found.num_higher, found.num_lower) if metric in IN_PERCENT else (found.num_lower, found.num_higher)
  p: Cell = Number(found.p_value, digits=4) if found.p_value >= _P_LEAST else f"< {_P_LEAST:.4f}"
  difference = Number(found.difference, interval=found.interval)
  return [Number(found.mean_a), Number(found.mean_b), difference, p, *map(str, (found.num_cases, *better))]


def _check_same(a: dict[str, Any], b: dict[str, Any], unit: str) -> None:
  _check_cases(a, b)
  for key in _SAME:
    if key in a and key in b and a[key] != b[key]:
      raise InputError(f"{a['file']} and {b['file']} differ in {key}: {a[key]!r} and {b[key]!r}; evaluate both with the same settings")
  grids = [result.get("data", {}).get("downsample") for result in (a, b)]
  if None not in grids and grids[0] != grids[1] and unit == "voxels":
    raise InputError(f"{a['file']} and {b['file']} have voxels of different size (downsample {grids[0]} and {grids[1]}); use --unit=mm")


def _check_cases(a: dict[str, Any], b: dict[str, Any]) -> None:
  names = [{case["case"] for case in result["cases"]} for result in (a, b)]
  for here, there, only in ((a, b, names[0] - names[1]), (b, a, names[1] - names[0])):
    if only:
      raise InputError(
        f"{here['file']} has {len(only)} cases that {there['file']} lacks, {min(only)} for one; evaluate both on the same cases"
      )


def _caption(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]], unit: str) -> str:
  sides = []
  for letter, side in (("A", a), ("B", b)):
    empty = sum(r["summary"]["num_empty"] for r in side)
    facts = [f"{select_text(side[0])} checkpoint", f"step {side[0]['step']}", f"seed {', '.join(str(r['seed']) for r in side)}"]
    policy = side[0].get("empty_policy", "not recorded")
    facts += [f"{empty} empty of {sum(r['summary']['num_cases'] for r in side)}", f"empty policy {policy}"]
    sides.append(f"{letter}: {label(side[0])}, {', '.join(facts)}.")
  split = f"; {a[0]['split']} split" if "split" in a[0] else ""
  return " ".join(
    [
      *sides,
      f"Paired by case{', seeds averaged' if max(len(a), len(b)) > 1 else ''}; distances in {unit}{split}.",
      "Interval: percentile bootstrap of the mean difference over cases. p: two-sided Wilcoxon signed-rank test, not corrected for the",
      "number of metrics and classes. Both speak of these cases alone, not of other seeds.",
    ]
  )
