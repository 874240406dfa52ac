"""From what `check` found to the command that trains on it."""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ssl_jax.data.check import Findings
from ssl_jax.types import InputError

_DIVISOR = 16  # networks halve a side four times
_PATCH_VOXELS, _SMALL_PATCH_VOXELS = 112 * 112 * 80, 64 * 64 * 32  # the published patch on the Left Atrium, and at half resolution
_LARGEST_SLICE, _SMALL_SLICE = 256, 128
_ANISOTROPIC = 3.0  # slices at least so many times thicker than pixels are wide: a 2D network, as nnU-Net and the ACDC papers decide
_FEW_SLICES = 32  # or fewer than a quarter of the sides: headers of published files do not always tell the thickness
# Benchmark -> (what prepares its raw files, a configuration for the prepared ones)
_BENCHMARKS = {
  "la_nrrd": ("la", "crln_la"),
  "la_h5": ("", "crln_la"),
  "pancreas_nifti": ("pancreas", "crln_pancreas"),
  "pancreas_h5": ("", "crln_pancreas"),
  "brats_nifti": ("brats", "crln_brats"),
  "brats_h5": ("", "crln_brats"),
  "acdc_nifti": ("acdc", "cml_acdc"),
  "acdc_h5": ("", "cml_acdc"),
  "synapse_nifti": ("synapse", "cmems_synapse"),
  "synapse_npz": ("", "cmems_synapse"),
}
_OWN = "configs/own_data.py"


def suggest(findings: Findings) -> list[tuple[str, str, dict[str, Any]]]:
  """What to train a folder with.

  Args:
    findings: of a folder with at least one readable case.

  Returns: (when to use it, configuration, overrides by dotted key), the first being the one for an accelerator; empty for raw benchmark
    files, which are to be prepared first.
  """
  root = os.path.abspath(os.path.expanduser(findings.root))
  if findings.kind != "msd":
    preparation, config = _BENCHMARKS[findings.kind]
    overrides = {"data.source": findings.kind, "data.root": root}
    return [] if preparation else [("as published", f"configs/{config}.py", overrides)]
  shape, spacing = _median([case.shape for case in findings.cases]), _median([case.spacing for case in findings.cases])
  shared: dict[str, Any] = {"data.root": root, "data.normalise": _normalisation(findings), **_split(findings)}
  if len(shape) == 2 or spacing[2] >= _ANISOTROPIC * max(spacing[:2]) or shape[2] < min(_FEW_SLICES, min(shape[:2]) / 4):
    plain = {"data.slices": False} if len(shape) == 2 else {}
    sides = {choice: _slice_patch(shape, most) for choice, most in (("2d", _LARGEST_SLICE), ("2d,small", _SMALL_SLICE))}
    flags = {choice: {**shared, **plain, "data.patch": patch} for choice, patch in sides.items()}
    return [("whole slices", f"{_OWN}:cml,2d", flags["2d"]), ("on a CPU", f"{_OWN}:cml,2d,small", flags["2d,small"])]
  full, half = _patch(shape, _PATCH_VOXELS), _patch(shape / 2, _SMALL_PATCH_VOXELS)
  windows = lambda patch: {"data.patch": patch, "eval.stride": tuple(side // 2 for side in patch)}
  return [
    ("full resolution", f"{_OWN}:crln", {**shared, **windows(full)}),
    ("half resolution, for a CPU", f"{_OWN}:crln,small", {**shared, **windows(half)}),
  ]


def describe(findings: Findings) -> str:
  """Returns the suggestions as commands that can be pasted into a shell."""
  if not findings.cases:
    return "no case can be read, so there is nothing to suggest"
  lines = [f"classes: {', '.join(findings.class_names)}; channels: {findings.channels}; both are read from the folder"]
  preparation = _BENCHMARKS.get(findings.kind, ("", ""))[0]
  if preparation:
    lines.append(
      f"\n# prepare the files once, then check OUT\npython -m ssl_jax.data prepare {preparation} {shlex.quote(findings.root)} OUT"
    )
  for when, config, overrides in suggest(findings):
    flags = " \\\n".join(f"  {_flag(key, value)}" for key, value in overrides.items())
    lines.append(f"\n# {when}\npython -m ssl_jax.main --config={config} \\\n{flags}")
  return "\n".join(lines)


def write_config(findings: Findings, file: Path) -> None:
  """Writes the first suggestion as a configuration file, which appears whole or not at all.

  Raises:
    InputError: the file exists, its folder does not, or there is nothing to suggest.
  """
  if file.exists():
    raise InputError(f"--write: {file} exists; name another file, or remove it")
  if file.suffix != ".py" or not file.parent.is_dir():
    raise InputError(f"--write: {file} must be a .py file in a folder that exists, such as configs/mine.py")
  suggestions = suggest(findings) if findings.cases else []
  if not suggestions:
    raise InputError(f"--write: nothing to write for {findings.root}; it needs a readable case, and raw benchmark files are prepared first")
  partial = file.with_suffix(".partial")
  partial.write_text(_source(file, *suggestions[0][1:]), encoding="utf-8")
  partial.replace(file)


def _source(file: Path, config: str, overrides: Mapping[str, Any]) -> str:
  path, _, choice = config.partition(":")
  module = Path(path).stem
  method = choice.partition(",")
  takes, gives = (f'method="{method[0]}"', f'method + "{method[1]}{method[2]}"' if method[2] else "method") if choice else ("", "")
  lines = [f"  config.{key} = {value!r}" for key, value in overrides.items()]
  return "\n".join(
    [
      '"""Suggested by `python -m ssl_jax.data check`.',
      "",
      f"    python -m ssl_jax.main --config={file.as_posix()}{':' + method[0] if choice else ''}",
      '"""',
      "",
      f"from configs import {module}",
      "",
      "",
      f"def get_config({takes}):",
      '  """Returns the configuration."""',
      f"  config = {module}.get_config({gives})",
      *lines,
      "  return config",
      "",
    ]
  )


def _flag(key: str, value: Any) -> str:
  return f"--config.{key}={shlex.quote(str(value))}"


def _median(rows: list[tuple[Any, ...]]) -> np.ndarray:
  """Along each axis, over the cases of the most frequent rank."""
  ranks = [len(row) for row in rows]
  return np.median([row for row in rows if len(row) == max(set(ranks), key=ranks.count)], axis=0)


def _patch(shape: np.ndarray, most_voxels: int) -> tuple[int, ...]:
  """Multiples of 16 that fit into a typical scan, the longest shortened until there are at most so many voxels."""
  patch = [max(int(side) // _DIVISOR * _DIVISOR, _DIVISOR) for side in shape]
  while np.prod(patch) > most_voxels:
    patch[int(np.argmax(patch))] -= _DIVISOR
  return tuple(patch)


def _slice_patch(shape: np.ndarray, largest: int) -> tuple[int, ...]:
  return tuple(min(max(round(float(side) / _DIVISOR), 1) * _DIVISOR, largest) for side in shape[:2])


def _normalisation(findings: Findings) -> str:
  """Scans that come with zero mean and unit variance stay as they are."""
  channels = [channel for case in findings.cases for channel in case.intensity]
  return "none" if all(abs(mean) < 0.05 and abs(std - 1) < 0.05 for *_, mean, std in channels) else "zscore"


def _split(findings: Findings) -> dict[str, str]:
  """Labelled test cases are there to be evaluated on."""
  return {"data.split": "official"} if findings.test_names else {}
