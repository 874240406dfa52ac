"""Command line: `python -m ssl_jax.data import-la RAW_FOLDER OUT_FOLDER --seed=0` and `python -m ssl_jax.data check ROOT`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ssl_jax.data.la import import_la
from ssl_jax.data.sources import open_source
from ssl_jax.types import DataConfig, InputError


def check(root: str) -> int:
  """Reads every case of a data folder, prints what is there, and returns the number of problems.

  Raises:
    InputError: the folder as a whole cannot be used.
  """
  folder = Path(root).expanduser()
  layouts = {"la_h5": "*/mri_norm2.h5", "la_nrrd": "*/lgemri.nrrd"}
  kind = next((name for name, pattern in layouts.items() if any(folder.glob(pattern))), "msd")
  source = open_source(DataConfig(source=kind, root=root))
  print(f"{root}: source {kind!r}, {source.channels} channel(s), classes {', '.join(source.class_names)}")
  print(f"{len(source.train_names)} training cases, {len(source.test_names)} test cases")
  labelled = problems = 0
  for name in source.names:
    try:
      case = source.load(name)
    except InputError as error:
      problems += 1
      print(f"PROBLEM {name}: {error}")
      continue
    labelled += case.label is not None
    counts = (
      "no label" if case.label is None else f"voxels per class {np.bincount(case.label.ravel(), minlength=source.num_classes).tolist()}"
    )
    spacing = tuple(round(side, 3) for side in case.spacing)
    print(f"{name}: shape {case.image.shape[:-1]}, spacing {spacing} mm, {counts}")
  print(f"{labelled} labelled, {len(source.names) - labelled - problems} unlabelled, {problems} with problems")
  return problems


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs one command and returns the exit status: 0, 1 for a problem found by `check`, 2 for a wrong input."""
  parser = argparse.ArgumentParser(prog="python -m ssl_jax.data", description="Prepare and inspect data folders.")
  commands = parser.add_subparsers(dest="command", required=True)
  importer = commands.add_parser("import-la", help="raw Left Atrium challenge files -> the prepared h5 layout")
  importer.add_argument("raw_folder")
  importer.add_argument("out_folder")
  importer.add_argument("--seed", type=int, default=0, help="of the random crop margins")
  checker = commands.add_parser("check", help="read every case and report what is there")
  checker.add_argument("root")
  options = parser.parse_args(arguments)
  try:
    if options.command == "check":
      return int(check(options.root) > 0)
    names = import_la(options.raw_folder, options.out_folder, options.seed)
    print(f"{len(names)} cases written to {options.out_folder}")
    return 0
  except InputError as error:
    print(f"error: {error}")
    return 2


if __name__ == "__main__":
  raise SystemExit(main())
