"""Command line: tables and figures of runs.

`python -m ssl_jax.report RUN_DIR... [--spread=auto|cases|seeds|bootstrap|interval] [--published=own|all|none] [--dataset=NAME]` prints one
table of many runs, `python -m ssl_jax.report compare RUN_A RUN_B [--predictor=student]` compares two case by case; both take
`[--unit=voxels|mm] [--format=markdown|csv|latex] [--output=FILE]`.
`python -m ssl_jax.report overlay RUN_DIR [--cases=2] [--output=DIR]` draws labels and predictions on slices of the evaluation scans.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from ssl_jax.report.compare import choose, comparison
from ssl_jax.report.figures import overlay
from ssl_jax.report.published import DATASETS
from ssl_jax.report.render import FORMATS, Table, render
from ssl_jax.report.results import HEADLINE, load_results
from ssl_jax.report.tables import PUBLISHED_ROWS, SPREADS, UNITS, result_tables
from ssl_jax.types import InputError, write_whole


class Parser(argparse.ArgumentParser):
  """Says what is wrong in one line, as all errors here are said."""

  def error(self, message: str) -> NoReturn:  # noqa: D102
    raise InputError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a subcommand, or prints the table of all results under some folders; returns the exit status."""
  arguments = list(sys.argv[1:] if argv is None else argv)
  subcommand = SUBCOMMANDS.get(arguments[0]) if arguments else None
  try:
    if subcommand:
      subcommand(arguments[1:])
    else:
      _print_table(arguments)
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


def _print_table(arguments: Sequence[str]) -> None:
  parser = Parser(
    prog="python -m ssl_jax.report", description=f"Table of the results of runs; {', '.join(SUBCOMMANDS)} as first word do other things."
  )
  parser.add_argument("folders", nargs="+", metavar="RUN_DIR", help="folder of a run, or of several")
  parser.add_argument("--spread", choices=SPREADS, default="auto", help="what follows a mean")
  parser.add_argument("--published", choices=PUBLISHED_ROWS, default="own", help="whose printed numbers stand beside ours")
  parser.add_argument("--dataset", choices=DATASETS, help="which benchmark this is, when the data's folder has another name")
  options = _parse(parser, arguments)
  results = load_results(options.folders)
  if options.dataset:
    results = [{**r, "data": {**r["data"], "dataset": options.dataset}} if "data" in r else r for r in results]
  tables = result_tables(
    results,
    spread=options.spread,
    unit=options.unit,
    published=options.published,
    all_facts=options.format == "csv",
  )
  _put(tables, options)


def _compare(arguments: Sequence[str]) -> None:
  parser = Parser(
    prog="python -m ssl_jax.report compare",
    description="Differences between two runs on the same cases, with bootstrap intervals and Wilcoxon's signed-rank test.",
  )
  for name in ("a", "b"):
    parser.add_argument(name, metavar=f"RUN_{name.upper()}", help="folder of a run; of several seeds: separated by commas")
  parser.add_argument("--predictor", default=HEADLINE, help="whose results; student is what the papers evaluate")
  options = _parse(parser, arguments)
  a, b = (choose(load_results(side.split(",")), options.predictor) for side in (options.a, options.b))
  _put([comparison(a, b, unit=options.unit)], options)


def _parse(parser: Parser, arguments: Sequence[str]) -> argparse.Namespace:
  """Parses what all tables share as well."""
  parser.add_argument("--unit", choices=UNITS, default="voxels", help="of the distances")
  parser.add_argument("--format", choices=FORMATS, default="markdown")
  parser.add_argument("--output", type=Path, metavar="FILE", help="write here instead of printing")
  return parser.parse_args(arguments)


def _put(tables: Sequence[Table], options: argparse.Namespace) -> None:
  text = render(tables, options.format)
  if options.output is None:
    print(text)
  else:
    write_whole(options.output, text + "\n")


def _draw(arguments: Sequence[str]) -> None:
  parser = Parser(prog="python -m ssl_jax.report overlay", description="Image, label and prediction side by side, as PNG.")
  parser.add_argument("folder", type=Path, metavar="RUN_DIR", help="folder of a trained run")
  parser.add_argument("--cases", type=int, default=2, help="how many evaluation scans, the first of the list")
  parser.add_argument("--output", type=Path, help="folder for overlay_<case>.png; default: RUN_DIR")
  options = parser.parse_args(arguments)
  for file in draw_overlays(options.folder, options.cases, options.output or options.folder):
    print(file)


def draw_overlays(folder: Path, cases: int, output: Path) -> list[Path]:
  """Predicts the first evaluation scans of a run with what its paper evaluates and draws them; returns the files.

  Raises:
    InputError: the folder holds no trained run, or its data are not there.
  """
  from ssl_jax import config  # tables need neither JAX nor data
  from ssl_jax.experiment import open_experiment, restore

  if not (folder / "config.json").is_file():
    raise InputError(f"{folder}: no config.json, so no run; name the --workdir of one")
  experiment = open_experiment(config.from_json(folder / "config.json"))
  state, predict = restore(experiment, folder), next(iter(experiment.predictors.values()))
  files = []
  for name in experiment.split.evaluation[:cases]:
    case = experiment.source.load(name)
    prediction = np.argmax(np.asarray(predict(state, case.image)), axis=-1)
    files.append(overlay(case.image, case.label, prediction, output / f"overlay_{name.replace('/', '_')}.png"))
  return files


# First argument -> what runs the others; without one of these, a table of runs.
SUBCOMMANDS: Mapping[str, Callable[[Sequence[str]], None]] = {
  "compare": _compare,
  "overlay": _draw,
}


if __name__ == "__main__":
  sys.exit(main())
