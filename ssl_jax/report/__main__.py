"""Command line: tables and figures of runs.

`python -m ssl_jax.report RUN_DIR... [--spread=auto|cases|seeds|bootstrap] [--unit=voxels|mm]` prints a Markdown table;
`python -m ssl_jax.report overlay RUN_DIR [--cases=2] [--output=DIR]` draws labels and predictions on slices of the evaluation scans.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ssl_jax.report.figures import overlay
from ssl_jax.report.tables import SPREADS, UNITS, load_results, markdown_table


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the table of all results under some folders, or draws overlays; returns the exit status."""
  arguments = list(sys.argv[1:] if argv is None else argv)
  try:
    subcommand = SUBCOMMANDS.get(arguments[0]) if arguments else None
    if subcommand:
      subcommand(arguments[1:])
    else:
      _print_table(arguments)
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


def _print_table(arguments: Sequence[str]) -> None:
  parser = argparse.ArgumentParser(
    prog="python -m ssl_jax.report", description="Markdown table of the results of runs; `overlay RUN_DIR` draws figures instead."
  )
  parser.add_argument("folders", nargs="+", metavar="RUN_DIR", help="folder of a run, or of several")
  parser.add_argument("--spread", choices=SPREADS, default="auto", help="what follows ±")
  parser.add_argument("--unit", choices=UNITS, default="voxels", help="of the distances")
  options = parser.parse_args(arguments)
  print(markdown_table(load_results(options.folders), spread=options.spread, unit=options.unit))


def _draw(arguments: Sequence[str]) -> None:
  parser = argparse.ArgumentParser(prog="python -m ssl_jax.report overlay", description="Image, label and prediction side by side, as PNG.")
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
  from ssl_jax.types import InputError

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
  "overlay": _draw,
}


if __name__ == "__main__":
  sys.exit(main())
