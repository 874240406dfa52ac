"""Markdown tables of results: one row per method and predictor."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssl_jax.metrics import METRICS

SPREADS = ("auto", "cases", "seeds", "bootstrap")
UNITS = ("voxels", "mm")
_HEADINGS = {"dice": "Dice ↑ [%]", "jaccard": "Jaccard ↑ [%]", "hd95": "95HD ↓", "asd": "ASD ↓"}
_IN_PERCENT = ("dice", "jaccard")


def load_results(folders: Iterable[str | Path]) -> list[dict[str, Any]]:
  """Reads every `results_*.json` under the folders of some runs.

  Args:
    folders: of one run each, or of several runs.
  Returns: the results in order of their paths, each with a `name`: the folder's, without `_seed<number>`, so that runs of one
    configuration under several seeds share it.
  Raises: ValueError when a folder has no results, or a file is not what `evaluate` writes.
  """
  results = []
  for folder in map(Path, folders):
    files = sorted(folder.rglob("results_*.json"))
    if not files:
      raise ValueError(f"{folder}: no results_*.json here; run --mode=eval on this --workdir first")
    results += [_load(file) for file in files]
  return results


def markdown_table(results: Sequence[Mapping[str, Any]], *, spread: str = "auto", unit: str = "voxels") -> str:
  """A Markdown table of results, and a line under it that says what the numbers are.

  Args:
    results: what `evaluate` returns for one predictor each, from `load_results` or at hand. Results that differ in nothing but their
      seed are one row.
    spread: what follows ±, a standard deviation: over `cases`, over `seeds`, or of the mean over `bootstrap` resamples of the test cases.
      `auto` is `seeds` when some row has several, else `cases`.
    unit: of the distances, `voxels` (of the evaluated grid) or `mm`.
  Returns: lines joined by newlines, without one at the end. When results have several foreground classes, the table shows their mean and
    a second one every class.
  Raises: ValueError on no results, or an unknown `spread` or `unit`.
  """
  if not results:
    raise ValueError("no results to show")
  if spread not in SPREADS or unit not in UNITS:
    raise ValueError(f"spread must be one of {', '.join(SPREADS)} and unit one of {', '.join(UNITS)}; got {spread!r}, {unit!r}")
  rows = _rows(results)
  if spread == "auto":
    spread = "seeds" if any(len(row) > 1 for row in rows) else "cases"
  headings = [*(_HEADINGS[name] for name in METRICS), "Empty"]
  cells = lambda row: [*(_cell(row, name, spread, unit) for name in METRICS), _empty(row)]
  lines = [*_table(["Method (predictor)"], headings, [[_label(row[0]), *cells(row)] for row in rows]), "", _caption(rows, spread, unit)]
  per_class = [
    [_label(row[0]), name, *cells([{**result, "summary": result["classes"][name]} for result in row])]
    for row in rows
    for name in row[0].get("classes", ())
  ]
  if per_class:
    lines += ["", "The same for every class:", "", *_table(["Method (predictor)", "Class"], headings, per_class)]
  return "\n".join(lines)


def _table(names: Sequence[str], numbers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
  """Lines of a Markdown table whose columns are `names`, then `numbers`, which are aligned to the right."""
  lines = [[*names, *numbers], [*["---"] * len(names), *["---:"] * len(numbers)], *rows]
  return [f"| {' | '.join(line)} |" for line in lines]


def published_table(rows: Sequence[tuple[str, Mapping[str, float], Sequence[Mapping[str, Any]]]], *, num_seeds: int) -> str:
  """A Markdown table of variants of one experiment, published numbers beside ours, and a line under it that says what ours are.

  Args:
    rows: per variant its name, the published number of each metric that is known (Dice and Jaccard in percent), and one result, as
      `evaluate` returns it, of each finished seed.
    num_seeds: how many seeds a variant should have.
  Returns: lines joined by newlines, without one at the end. A metric without any published number has no such column; ± is the standard
    deviation over seeds, left out for one; variants without results show "–".
  """
  known = {name for _, published, _ in rows for name in published}
  columns = [(name, whose) for name in METRICS for whose in ("paper", "ours") if whose == "ours" or name in known]
  headings = [*(f"{_HEADINGS[name]} {whose}" for name, whose in columns), "Seeds"]
  table = []
  for variant, published, results in rows:
    ours = {name: _cell(results, name, "seeds", "voxels") if results else "–" for name in METRICS}
    paper = {name: f"{published[name]:.2f}" if name in published else "" for name in METRICS}
    cells = [(ours if whose == "ours" else paper)[name] for name, whose in columns]
    table.append([variant, *cells, f"{len(results)}/{num_seeds}"])
  finished = [result for _, _, results in rows for result in results]
  caption = f"{_facts(finished, 'seeds', 'voxels')}." if finished else "No run has finished."
  return "\n".join([*_table(["Variant"], headings, table), "", caption])


def _load(file: Path) -> dict[str, Any]:
  try:
    result = json.loads(file.read_text())
    name = re.sub(r"_seed\d+$", "", file.resolve().parent.name)
    _ = [result[key] for key in ("method", "predictor", "select", "step", "seed", "cases")], result["summary"]["dice"]
    return {"name": name, **result}
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f"{file}: not a result of --mode=eval ({error!r}); delete it or evaluate again") from error


def _rows(results: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
  """Groups results by everything but the seed; a seed that a group has already begins a row of its own."""
  rows: list[list[Mapping[str, Any]]] = []
  for result in results:
    row = next((row for row in rows if _key(row[0]) == _key(result) and all(r["seed"] != result["seed"] for r in row)), None)
    if row is None:
      rows.append([result])
    else:
      row.append(result)
  return rows


def _key(result: Mapping[str, Any]) -> tuple[Any, ...]:
  cases = tuple(case["case"] for case in result["cases"])
  return _label(result), *(result.get(key) for key in ("method", "select", "step", "split")), cases


def _label(result: Mapping[str, Any]) -> str:
  return f"{result.get('name', result['method'])} ({result['predictor']})"


def _cell(row: Sequence[Mapping[str, Any]], name: str, spread: str, unit: str) -> str:
  key = f"{name}_mm" if unit == "mm" and name not in _IN_PERCENT else name
  try:
    summaries = [result["summary"][key] for result in row]
  except KeyError as error:
    raise ValueError(f"{_label(row[0])}: the results have no distances in {unit}") from error
  mean = np.mean([summary["mean"] for summary in summaries])
  if spread == "seeds":
    # One seed has no spread; saying 0 would claim that seeds do not matter.
    deviation = np.std([summary["mean"] for summary in summaries], ddof=1) if len(row) > 1 else None
  else:
    deviation = np.mean([summary["std" if spread == "cases" else "bootstrap_std"] for summary in summaries])
  scale = 100 if name in _IN_PERCENT else 1
  return f"{scale * mean:.2f}" + (f" ± {scale * deviation:.2f}" if deviation is not None else "")


def _empty(row: Sequence[Mapping[str, Any]]) -> str:
  return f"{sum(r['summary']['num_empty'] for r in row)}/{sum(r['summary']['num_cases'] for r in row)}"


def _caption(rows: Sequence[Sequence[Mapping[str, Any]]], spread: str, unit: str) -> str:
  facts = _facts([result for row in rows for result in row], spread, unit)
  return f"{facts}. Empty: cases in which the prediction or the label of a class is empty, over all cases."


def _facts(results: Sequence[Mapping[str, Any]], spread: str, unit: str) -> str:
  what = {
    "cases": "Mean ± standard deviation over cases",
    "seeds": "Mean ± standard deviation over seeds",
    "bootstrap": "Mean ± its standard deviation over resamples of the cases",
  }[spread]
  facts = [what, f"distances in {unit}", f"{_values(results, 'select')} checkpoint", f"step {_values(results, 'step')}"]
  facts += [f"{_values(results, 'split')} split"] if all("split" in result for result in results) else []
  return f"{'; '.join(facts)}; seed {_values(results, 'seed')}"


def _values(results: Sequence[Mapping[str, Any]], key: str) -> str:
  return ", ".join(map(str, dict.fromkeys(result[key] for result in results)))
