"""Command line: `python -m ssl_jax.report RUN_DIR... [--spread=auto|cases|seeds|bootstrap] [--unit=voxels|mm]` prints a Markdown table."""

import argparse
import sys
from collections.abc import Sequence

from ssl_jax.report.tables import SPREADS, UNITS, load_results, markdown_table


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the table of all results under some folders; returns the exit status."""
  parser = argparse.ArgumentParser(prog="python -m ssl_jax.report", description="Markdown table of the results of runs.")
  parser.add_argument("folders", nargs="+", metavar="RUN_DIR", help="folder of a run, or of several")
  parser.add_argument("--spread", choices=SPREADS, default="auto", help="what follows ±")
  parser.add_argument("--unit", choices=UNITS, default="voxels", help="of the distances")
  options = parser.parse_args(argv)
  try:
    print(markdown_table(load_results(options.folders), spread=options.spread, unit=options.unit))
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main())
