"""Command line of the figures: `python -m ssl_jax.report FIGURE RUN_DIR... [--output=FOLDER] [--format=png|svg]`."""

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ssl_jax.report.arguments import Parser
from ssl_jax.types import InputError

FIGURES = {
  "overlay": "image, label, prediction and errors; a file a scan",
  "surfaces": "3D surfaces of label and predictions, coloured by distance; several runs side by side",
  "grid": "label and predictions of several runs side by side; a row a scan",
  "confidence": "probability of the predicted class, of pseudo-labels at every stage; a file a scan",
  "curves": "losses and validation Dice over steps; several runs in one figure",
  "pseudo": "quality of pseudo-labels and µ over steps",
}
PLANES = ("axial", "coronal", "sagittal")
_OF_HISTORY = ("curves", "pseudo")
_OF_ONE_RUN = ("overlay", "confidence")
_CASES = {"overlay": "2", "confidence": "1", "surfaces": "2", "grid": "3"}


def draw(arguments: Sequence[str]) -> list[Path]:
  """Draws what the command line asks for.

  Args:
    arguments: the figure's name, then folders and options.

  Returns:
    The files: `<figure>_<case>` of figures of one scan, else `<figure>`.

  Raises:
    InputError: a folder has not what the figure needs.
  """
  options = _parse(arguments)
  from ssl_jax.report import canvas, scans  # tables need neither matplotlib nor JAX

  runs = scans.find_runs(options.folders, "metrics.jsonl" if options.figure in _OF_HISTORY else "config.json")
  if options.figure in _OF_ONE_RUN and len(runs) > 1:
    raise InputError(f"{options.figure} shows one run, not {', '.join(runs)}: name one of their folders, or draw a grid")
  output = options.output or Path(os.path.commonpath([folder.resolve() for folder in runs.values()]))
  figures = _histories(options, runs) if options.figure in _OF_HISTORY else _sections(options, runs)
  return [canvas.save(figure, output / f"{name.replace('/', '_')}.{options.format}") for name, figure in figures]


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
  parser = Parser(prog="python -m ssl_jax.report", description="Figures of runs.", allow_abbrev=False)
  figures = parser.add_subparsers(dest="figure", required=True)
  for name, what in FIGURES.items():
    of = figures.add_parser(name, help=what, description=f"Draws {what}.", allow_abbrev=False)
    of.add_argument("folders", nargs="+", type=Path, metavar="RUN_DIR", help="folder of a run, or of several")
    of.add_argument("--output", type=Path, help="folder for the files; default: RUN_DIR, or the folder that holds them all")
    of.add_argument("--format", choices=("png", "svg"), default="png")
    if name not in _OF_HISTORY:
      of.add_argument("--cases", default=_CASES[name], help="how many evaluation scans, or names separated by commas; default: %(default)s")
    if name not in (*_OF_HISTORY, "confidence"):
      of.add_argument("--predictor", help="such as teacher; default: what the method's paper evaluates")
    if name in ("overlay", "confidence", "grid"):
      default = "axial" if name == "grid" else "all"
      of.add_argument("--plane", choices=("all", *PLANES), default=default, help="of the sections; default: %(default)s")
  return parser.parse_args(arguments)


def _histories(options: argparse.Namespace, runs: Mapping[str, Path]) -> Iterator[tuple[str, Any]]:
  from ssl_jax.report import curves

  histories = {title: curves.read_history(folder / "metrics.jsonl") for title, folder in runs.items()}
  yield options.figure, (curves.training if options.figure == "curves" else curves.pseudo_labels)(histories)


def _sections(options: argparse.Namespace, runs: Mapping[str, Path]) -> Iterator[tuple[str, Any]]:
  from ssl_jax.report import maps, scans, surfaces

  if options.figure == "surfaces":
    surfaces.require()  # before minutes of prediction
  if options.figure == "confidence":
    (folder,) = runs.values()
    yield from ((f"confidence_{scan.name}", maps.confidence(scan, options.plane)) for scan in scans.with_confidence(folder, options.cases))
    return
  found = scans.predicted(runs, options.cases, options.predictor)
  if options.figure == "overlay":
    yield from ((f"overlay_{scan.name}", maps.overlay(scan, options.plane)) for scan in found)
  else:
    yield options.figure, surfaces.comparison(found) if options.figure == "surfaces" else maps.comparison(found, options.plane)
