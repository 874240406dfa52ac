"""Command line: what is in a data folder, and from what the challenges share to the files that methods read.

```
python -m ssl_jax.data check FOLDER --write=configs/mine.py
python -m ssl_jax.data prepare la RAW_FOLDER OUT_FOLDER --seed=0
python -m ssl_jax.data prepare pancreas NIFTI_FOLDER OUT_FOLDER --exclude-duplicates
python -m ssl_jax.data prepare brats NIFTI_FOLDER OUT_FOLDER
python -m ssl_jax.data prepare acdc NIFTI_FOLDER OUT_FOLDER
python -m ssl_jax.data prepare synapse NIFTI_FOLDER OUT_FOLDER
```
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ssl_jax.data import acdc, brats, la, pancreas, synapse
from ssl_jax.data.check import examine, summary
from ssl_jax.data.suggest import describe, write_config
from ssl_jax.types import InputError

# Benchmark -> what writes its prepared files, and what it does.
_PREPARE: dict[str, tuple[Callable[..., tuple[str, ...]], str]] = {
  "la": (la.prepare_la, "raw Left Atrium challenge files (nrrd) -> the h5 files of UA-MT"),
  "pancreas": (pancreas.prepare_pancreas, "Pancreas-CT as NIfTI files -> the h5 files of CoraNet and MC-Net"),
  "brats": (brats.prepare_brats, "BraTS 2019 challenge files -> the h5 files of SSL4MIS, FLAIR and whole tumour"),
  "acdc": (acdc.prepare_acdc, "ACDC challenge files -> the h5 files of SSL4MIS, volumes and slices"),
  "synapse": (synapse.prepare_synapse, "Synapse challenge files -> the files of TransUNet, training slices and test volumes"),
}


def check(root: str, write: str | None = None) -> int:
  """Reads every case of a data folder, prints what is there and how to train on it, and returns the number of problems.

  Args:
    root: the folder.
    write: a configuration file to write with the suggested settings.

  Raises:
    InputError: the folder as a whole cannot be used, or the file cannot be written.
  """
  findings = examine(root, show=print)
  print(f"\n{summary(findings)}\n\n{describe(findings)}")
  if write:
    write_config(findings, Path(write))
    print(f"\nwritten: {write}")
  return len(findings.problems)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(prog="python -m ssl_jax.data", description="Inspect and prepare data folders.")
  commands = parser.add_subparsers(dest="command", required=True)
  checker = commands.add_parser("check", help="read every case; report what is there, what is wrong, and how to train on it")
  checker.add_argument("root", metavar="FOLDER")
  checker.add_argument("--write", metavar="FILE", help="also write the suggestion as a configuration file, such as configs/mine.py")
  prepare = commands.add_parser("prepare", help="write a benchmark's files as its methods read them, from what the challenge shares")
  benchmarks = prepare.add_subparsers(dest="benchmark", required=True)
  for name, (_, words) in _PREPARE.items():
    benchmark = benchmarks.add_parser(name, help=words, description=words)
    benchmark.add_argument("raw_folder", metavar="IN")
    benchmark.add_argument("out_folder", metavar="OUT")
    if name == "la":
      benchmark.add_argument("--seed", type=int, default=0, help="of the random crop margins")
    if name == "pancreas":
      benchmark.add_argument("--exclude-duplicates", action="store_true", help="leave out cases 25 and 70, which repeat other scans")
  return parser


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs one command and returns the exit status: 0, 1 for a problem found by `check`, 2 for a wrong input."""
  options = vars(_parser().parse_args(arguments))
  try:
    if options.pop("command") == "check":
      return int(check(**options) > 0)
    folders = [options.pop(key) for key in ("raw_folder", "out_folder")]
    names = _PREPARE[options.pop("benchmark")][0](*folders, **options)
    print(f"{len(names)} cases written to {folders[1]}")
    return 0
  except InputError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
  raise SystemExit(main())
