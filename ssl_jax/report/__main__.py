"""Command line: tables and figures of runs.

`python -m ssl_jax.report RUN_DIR... [--spread=auto|cases|seeds|bootstrap|interval] [--published=own|all|none] [--dataset=NAME]` prints one
table of many runs, `python -m ssl_jax.report compare RUN_A RUN_B [--predictor=student]` compares two case by case; both take
`[--unit=voxels|mm] [--format=markdown|csv|latex] [--output=FILE]`.
`python -m ssl_jax.report FIGURE RUN_DIR... [--output=DIR] [--format=png|svg]` draws one: see `ssl_jax.report.draw`, or `FIGURE --help`.
"""

import argparse
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ssl_jax.report.arguments import Parser
from ssl_jax.report.compare import choose, comparison
from ssl_jax.report.draw import FIGURES, draw
from ssl_jax.report.published import DATASETS
from ssl_jax.report.render import FORMATS, Table, render
from ssl_jax.report.results import HEADLINE, load_results
from ssl_jax.report.tables import PUBLISHED_ROWS, SPREADS, UNITS, result_tables
from ssl_jax.types import write_whole


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


def _draw(figure: str, arguments: Sequence[str]) -> None:
  for file in draw([figure, *arguments]):
    print(file)


# First argument -> what runs the others; without one of these, a table of runs.
SUBCOMMANDS: Mapping[str, Callable[[Sequence[str]], None]] = {
  "compare": _compare,
  **{figure: functools.partial(_draw, figure) for figure in FIGURES},
}


if __name__ == "__main__":
  sys.exit(main())
