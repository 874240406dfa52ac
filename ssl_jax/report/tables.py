"""Tables of results: one row per method and predictor, published numbers beside ours."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ssl_jax.metrics import METRICS, interval, of_class
from ssl_jax.report.published import Published, find
from ssl_jax.report.render import Cell, Number, Table, render
from ssl_jax.report.results import values_of
from ssl_jax.types import InputError

SPREADS = ("auto", "cases", "seeds", "bootstrap", "interval")
UNITS = ("voxels", "mm")
PUBLISHED_ROWS = ("own", "all", "none")
HEADINGS = {"dice": "Dice ↑ [%]", "jaccard": "Jaccard ↑ [%]", "hd95": "95HD ↓", "asd": "ASD ↓"}
IN_PERCENT = ("dice", "jaccard")
_SPREAD_TEXT = {
  "cases": "Mean ± standard deviation over cases",
  "seeds": "Mean ± standard deviation over seeds",
  "bootstrap": "Mean ± its standard deviation over resamples of the cases",
  "interval": "Mean [95 % bootstrap interval over cases]",
}
_EMPTY_TEXT = {
  "published": "such a prediction has distance 0, as in published code",
  "worst": "such a prediction has the volume's diagonal as distance",
  "exclude": "means of distances leave them out",
}
_FACTS = ("Labelled", "Checkpoint", "Step", "Split", "Resolution", "Empty policy")

Result = Mapping[str, Any]


def markdown_table(results: Sequence[Result], *, spread: str = "auto", unit: str = "voxels") -> str:
  """A Markdown table of results, and a line under it that says what the numbers are; see `result_tables`."""
  return render(result_tables(results, spread=spread, unit=unit, published="none"), "markdown")


def result_tables(
  results: Sequence[Result], *, spread: str = "auto", unit: str = "voxels", published: str = "own", all_facts: bool = False
) -> list[Table]:
  """Tables of results as papers have them.

  Args:
    results: what `evaluate` returns for one predictor each, from `load_results` or at hand. Results that differ in nothing but their
      seed are one row.
    spread: what follows a mean: the standard deviation over `cases`, over `seeds`, or of the mean over `bootstrap` resamples of the test
      cases, or the bootstrap `interval` of the mean over cases. `auto` is `seeds` when some row has several, else `cases`.
    unit: of the distances, `voxels` (of the evaluated grid) or `mm`.
    published: beside ours the printed numbers for the same data set and number of labelled scans of the `own` method, of `all`, or `none`.
    all_facts: give every fact about a run a column; by default those have one in which rows differ, and the caption names the others.
  Returns: the table, and when results have several foreground classes, whose mean it shows, a second one with every class.
  Raises: ValueError on no results, or an unknown `spread`, `unit` or `published`.
  """
  if not results:
    raise ValueError("no results to show")
  for name, value, known in (("spread", spread, SPREADS), ("unit", unit, UNITS), ("published", published, PUBLISHED_ROWS)):
    if value not in known:
      raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
  rows = _rows(results)
  if spread == "auto":
    spread = "seeds" if any(len(row) > 1 for row in rows) else "cases"
  shown = [fact for fact in _FACTS if all_facts or len({_fact(row[0], fact) for row in rows}) > 1]
  names, numbers = ["Method (predictor)", *shown, *(["Seeds"] if all_facts else [])], [*HEADINGS.values(), "Empty"]
  facts_of = lambda row: [*(_fact(row[0], fact) for fact in shown), *([_values(row, "seed")] if all_facts else [])]
  printed = _printed(rows, published)
  lines: list[list[Cell]] = []
  per_class: list[list[Cell]] = []
  for row, beside in zip(rows, printed, strict=True):
    lines.append([label(row[0]), *facts_of(row), *_cells(row, spread, unit)])
    lines += [[_title(p), *_printed_facts(p, names[1:]), *_printed_cells(p.values, unit)] for p in beside]
    for name in row[0].get("classes", ()):
      of_name = [{**r, "summary": r["classes"][name], "cases": of_class(r["cases"], name)} for r in row]
      per_class.append([label(row[0]), *facts_of(row), name, *_cells(of_name, spread, unit)])
      dice = [(p, d) for p in beside for known, d in p.classes.items() if known.lower() == name.lower()]
      per_class += [[_title(p), *_printed_facts(p, names[1:]), name, *_printed_cells({"dice": d}, unit)] for p, d in dice]
  caption = [f"{_facts([r for row in rows for r in row], spread, unit)}.", _empty_text(results), *_remarks(rows, printed, unit)]
  tables = [Table(names, numbers, lines, " ".join(caption))]
  if per_class:
    tables.append(Table([*names, "Class"], numbers, per_class, "The same for every class; above is the mean over classes."))
  return tables


def published_table(rows: Sequence[tuple[str, Mapping[str, float], Sequence[Result]]], *, num_seeds: int) -> str:
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
  headings = [*(f"{HEADINGS[name]} {whose}" for name, whose in columns), "Seeds"]
  table: list[list[Cell]] = []
  for variant, published, results in rows:
    ours: dict[str, Cell] = {name: _cell(results, name, "seeds", "voxels") if results else "–" for name in METRICS}
    paper: dict[str, Cell] = {name: Number(published[name]) if name in published else "" for name in METRICS}
    table.append([variant, *((ours if whose == "ours" else paper)[name] for name, whose in columns), f"{len(results)}/{num_seeds}"])
  finished = [result for _, _, results in rows for result in results]
  caption = f"{_facts(finished, 'seeds', 'voxels')}." if finished else "No run has finished."
  return render([Table(["Variant"], headings, table, caption)], "markdown")


def label(result: Result) -> str:
  """Name of a row: the run's, or the method's, and the predictor."""
  return f"{result.get('name', result['method'])} ({result['predictor']})"


def metric_key(name: str, unit: str) -> str:
  """Key of a metric in a row of cases."""
  return f"{name}_mm" if unit == "mm" and name not in IN_PERCENT else name


def select_text(result: Result) -> str:
  """Which checkpoint was evaluated, and whether choosing it looked at the evaluated cases."""
  chosen = result.get("checkpoint", result["select"])
  text = "best, picked on the evaluated cases" if chosen == "best" else chosen
  return f"published: {text}" if result["select"] == "published" else text


def _rows(results: Sequence[Result]) -> list[list[Result]]:
  """Groups results by everything but the seed; a seed that a group has already begins a row of its own."""
  rows: list[list[Result]] = []
  for result in results:
    row = next((row for row in rows if _key(row[0]) == _key(result) and all(r["seed"] != result["seed"] for r in row)), None)
    if row is None:
      rows.append([result])
    else:
      row.append(result)
  return rows


def _key(result: Result) -> tuple[Any, ...]:
  cases = tuple(case["case"] for case in result["cases"])
  facts = (result.get(key) for key in ("method", "checkpoint", "empty_policy", "data"))
  return label(result), *facts, *(result.get(key) for key in ("select", "step", "split")), cases


def _cells(row: Sequence[Result], spread: str, unit: str) -> list[Cell]:
  empty = f"{sum(r['summary']['num_empty'] for r in row)}/{sum(r['summary']['num_cases'] for r in row)}"
  return [*(_cell(row, name, spread, unit) for name in METRICS), empty]


def _cell(row: Sequence[Result], name: str, spread: str, unit: str) -> Number:
  key, scale = metric_key(name, unit), 100 if name in IN_PERCENT else 1
  try:
    summaries = [result["summary"][key] for result in row]
    mean = scale * float(np.mean([summary["mean"] for summary in summaries]))
    if math.isnan(mean):
      return Number(mean)
    if spread == "interval":
      of_cases = np.mean([values_of(result["cases"], key) for result in row], axis=0)
      low, high = interval(of_cases[~np.isnan(of_cases)])
      return Number(mean, interval=(scale * low, scale * high))
  except KeyError as error:
    raise InputError(f"{row[0].get('file', label(row[0]))}: the results have no distances in {unit}; evaluate again") from error
  if spread == "seeds":
    # One seed has no spread; saying 0 would claim that seeds do not matter.
    return Number(mean, scale * float(np.std([summary["mean"] for summary in summaries], ddof=1)) if len(row) > 1 else None)
  return Number(mean, scale * float(np.mean([summary["std" if spread == "cases" else "bootstrap_std"] for summary in summaries])))


def _fact(result: Result, fact: str) -> str:
  """One fact about a run in words, "" when its results do not say."""
  data = result.get("data", {})
  if fact == "Split":
    name, listed = result.get("split", ""), data.get("test_list", "test.list")
    return f"{name}, {listed}" if name == "official" and listed != "test.list" else str(name)
  if fact == "Resolution":
    return "" if not data else "full" if data["downsample"] == 1 else f"1/{data['downsample']}"
  if fact == "Labelled":
    return str(data.get("num_labelled", ""))
  return {"Checkpoint": select_text(result), "Step": str(result["step"]), "Empty policy": result.get("empty_policy", "")}[fact]


def _printed(rows: Sequence[Sequence[Result]], published: str) -> list[list[Published]]:
  """What is published beside each row: beside the first of a method its own numbers, beside the last row those of methods not shown."""
  beside: list[list[Published]] = [[] for _ in rows]
  if published == "none":
    return beside
  shown: list[Published] = []
  settings: dict[tuple[str, int], None] = {}
  for row, found in zip(rows, beside, strict=True):
    if data := row[0].get("data"):
      setting = (data["dataset"], data["num_labelled"])
      settings[setting] = None
      found += [p for p in find(*setting, row[0]["method"]) if p not in shown]
      shown += found
  if published == "all":
    beside[-1] += [p for setting in settings for p in find(*setting) if p not in shown]
  return beside


def _title(published: Published) -> str:
  return f"{published.method} (published: {published.where}; checkpoint: {published.select or 'not stated'})"


def _printed_facts(published: Published, names: Sequence[str]) -> list[Cell]:
  known = {"Labelled": str(published.num_labelled), "Checkpoint": published.select or "not stated"}
  return [known.get(name, "") for name in names]


def _printed_cells(values: Mapping[str, float], unit: str) -> list[Cell]:
  in_unit = {name: value for name, value in values.items() if unit == "voxels" or name in IN_PERCENT}
  return [*(Number(in_unit.get(name, math.nan)) for name in METRICS), ""]


def _facts(results: Sequence[Result], spread: str, unit: str) -> str:
  said = {fact: list(dict.fromkeys(text for r in results if (text := _fact(r, fact)))) for fact in _FACTS}
  facts = [_SPREAD_TEXT[spread], f"distances in {unit}"]
  facts += [f"{text} labelled" for text in [", ".join(said["Labelled"])] if text]
  facts += [f"{' / '.join(said['Checkpoint'])} checkpoint", f"step {', '.join(said['Step'])}"]
  facts += [f"{' / '.join(said['Split'])} split"] if said["Split"] else []
  facts += [f"resolution {', '.join(said['Resolution'])}"] if said["Resolution"] not in ([], ["full"]) else []
  return f"{'; '.join(facts)}; seed {_values(results, 'seed')}"


def _empty_text(results: Sequence[Result]) -> str:
  policies = list(dict.fromkeys(r.get("empty_policy", "") for r in results))
  how = "; ".join(f"{_EMPTY_TEXT[policy]} (`{policy}`)" if policy in _EMPTY_TEXT else "policy not recorded" for policy in policies)
  return f"Empty: cases in which the prediction or the label of a class is empty, over all cases; {how}."


def _remarks(rows: Sequence[Sequence[Result]], printed: Sequence[Sequence[Published]], unit: str) -> list[str]:
  """What keeps published numbers and ours apart."""
  if not any(printed):
    return []
  remarks = ["Published: as printed, on the official test cases at full resolution."]
  if unit == "mm":
    remarks.append("Published distances are in voxels and not shown.")
  reasons = [f"{_fact(row[0], 'Split')} split" for row in rows if _fact(row[0], "Split") not in ("official", "")]
  reasons += [f"{text} resolution" for row in rows if (text := _fact(row[0], "Resolution")) not in ("full", "")]
  if reasons:
    remarks.append(f"Ours are not comparable with them where they have: {', '.join(dict.fromkeys(reasons))}.")
  return remarks


def _values(results: Sequence[Result], key: str) -> str:
  return ", ".join(map(str, dict.fromkeys(result[key] for result in results)))
