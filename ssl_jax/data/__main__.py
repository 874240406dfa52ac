"""Command line: `python -m ssl_jax.data check ROOT`, and importers from what the challenges share to the files that methods read.

```
python -m ssl_jax.data import-la RAW_FOLDER OUT_FOLDER --seed=0
python -m ssl_jax.data import-pancreas NIFTI_FOLDER OUT_FOLDER --exclude-duplicates
python -m ssl_jax.data import-brats NIFTI_FOLDER OUT_FOLDER
python -m ssl_jax.data import-acdc NIFTI_FOLDER OUT_FOLDER
python -m ssl_jax.data import-synapse NIFTI_FOLDER OUT_FOLDER
```
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ssl_jax.data import acdc, brats, la, pancreas, synapse
from ssl_jax.data.sources import open_source
from ssl_jax.types import DataConfig, InputError

# Source -> glob patterns of which any file shows its layout; the first that fits is taken.
LAYOUTS = {
  "la_h5": (la.H5_PATTERN.format("*"),),
  "la_nrrd": (la.RAW_PATTERN.format("*"),),
  "pancreas_h5": (pancreas.H5_PATTERN.format("*"),),
  "acdc_h5": (acdc.H5_PATTERN.format("patient*_frame*"),),
  "synapse_npz": ("train_npz/*_slice*.npz",),
  "brats_h5": (brats.H5_PATTERN.format("*"),),
  "msd": ("dataset.json",),
  "brats_nifti": tuple(f"{folder}/*_flair.nii*" for folder in brats.NIFTI_FOLDERS),
  "acdc_nifti": tuple(f"{folder}/patient*_frame*.nii*" for folder in acdc.PATIENTS),
  "synapse_nifti": tuple(f"{folder}/img[0-9]*.nii*" for folder in synapse.IMAGE_FOLDERS),
  "pancreas_nifti": tuple(f"{folder}/label[0-9]*.nii*" for folder in pancreas.NIFTI_FOLDERS),
}


def check(root: str) -> int:
  """Reads every case of a data folder, prints what is there, and returns the number of problems.

  Raises:
    InputError: the folder as a whole cannot be used.
  """
  folder = Path(root).expanduser()
  kind = next((name for name, patterns in LAYOUTS.items() if any(any(folder.glob(pattern)) for pattern in patterns)), "msd")
  source = open_source(DataConfig(source=kind, root=root, slices=kind == "synapse_npz"))
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
  importers: dict[str, tuple[Callable[..., tuple[str, ...]], str]] = {
    "import-la": (la.import_la, "raw Left Atrium challenge files -> the prepared h5 layout"),
    "import-pancreas": (pancreas.import_pancreas, "Pancreas-CT as NIfTI files -> the prepared h5 layout"),
    "import-brats": (brats.import_brats, "BraTS 2019 challenge files -> the prepared h5 layout, FLAIR and whole tumour"),
    "import-acdc": (acdc.import_acdc, "ACDC challenge files -> the prepared h5 layout, volumes and slices"),
    "import-synapse": (synapse.import_synapse, "Synapse challenge files -> TransUNet's layout, training slices and test volumes"),
  }
  for command, (_, words) in importers.items():
    importer = commands.add_parser(command, help=words)
    importer.add_argument("raw_folder")
    importer.add_argument("out_folder")
    if command == "import-la":
      importer.add_argument("--seed", type=int, default=0, help="of the random crop margins")
    if command == "import-pancreas":
      importer.add_argument("--exclude-duplicates", action="store_true", help="leave out cases 25 and 70, which repeat other scans")
  checker = commands.add_parser("check", help="read every case and report what is there")
  checker.add_argument("root")
  options = vars(parser.parse_args(arguments))
  command, folders = options.pop("command"), [options.pop(key, None) for key in ("raw_folder", "out_folder")]
  try:
    if command == "check":
      return int(check(options["root"]) > 0)
    names = importers[command][0](*folders, **options)
    print(f"{len(names)} cases written to {folders[1]}")
    return 0
  except InputError as error:
    print(f"error: {error}")
    return 2


if __name__ == "__main__":
  raise SystemExit(main())
