"""Time of the distances of whole scans, ours beside medpy's, alternating in one run.

  python -m benchmarks.surface [--root=data/la] [--scans=4] [--rounds=5]

`--root` is a folder with `labelsTr/*.nii.gz`; without it the scans are phantom blobs. Each is compared with a distorted copy, ragged and
with islands, as an early network's prediction is: as it is on disk, and in the middle of the challenge's uncropped field. The values of
both sides must agree.
"""

import argparse
import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
from medpy.metric import binary as medpy
from scipy import ndimage

from benchmarks.components import atria, distorted
from ssl_jax import metrics

Side = Callable[[np.ndarray, np.ndarray, tuple[float, ...]], tuple[float, ...]]
BLOBS = (200, 140, 88)  # as cropped Left Atrium scans
FIELD = (576, 576, 88)
SIDES: dict[str, tuple[Side, Side]] = {
  "hd95 + asd": (
    lambda pred, label, mm: (metrics.hd95(pred, label, spacing=mm), metrics.asd(pred, label, spacing=mm)),
    lambda pred, label, mm: (medpy.hd95(pred, label, mm), medpy.asd(pred, label, mm)),
  ),
  "Dice, Jaccard, hd95, asd": (
    lambda pred, label, mm: tuple(map(metrics.case_metrics(pred, label, spacing=mm).get, metrics.METRICS)),
    lambda pred, label, mm: (medpy.dc(pred, label), medpy.jc(pred, label), medpy.hd95(pred, label, mm), medpy.asd(pred, label, mm)),
  ),
}


def scans(root: Path | None, count: int) -> Iterator[tuple[np.ndarray, np.ndarray, tuple[float, ...]]]:
  """Yields prediction, label and spacing in mm."""
  rng = np.random.default_rng(0)
  if root is None:
    for label in atria(None, count, BLOBS, rng):
      yield distorted(label, rng), label, (0.625, 0.625, 0.625)
    return
  import nibabel

  for file in sorted((root / "labelsTr").glob("*.nii.gz"))[:count]:
    scan = nibabel.load(file)
    label = np.asarray(scan.dataobj) > 0
    yield distorted(label, rng), label, tuple(map(float, scan.header.get_zooms()))


def measure(sides: tuple[Side, Side], scan: tuple[np.ndarray, np.ndarray, tuple[float, ...]], rounds: int) -> list[list[float]]:
  """Seconds of both sides in every round; the sides take turns."""
  times: list[list[float]] = [[], []]
  for _ in range(rounds):
    found = []
    for side, taken in zip(sides, times, strict=True):
      start = time.perf_counter()
      found.append(side(*scan))
      taken.append(time.perf_counter() - start)
    np.testing.assert_allclose(*found, rtol=1e-6)
  return times


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--root", type=Path, help="folder with labelsTr/*.nii.gz; default: phantom blobs")
  parser.add_argument("--scans", default=4, type=int)
  parser.add_argument("--rounds", default=5, type=int)
  options = parser.parse_args()
  versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("numpy", "scipy", "medpy"))
  print(f"{datetime.date.today()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}")
  print(f"{options.scans} scans, {options.rounds} rounds, median (fastest) in s; the values agree to 1e-6\n")
  print("| field | what | ours | medpy | medpy / ours |\n|---|---|---:|---:|---:|")
  pairs = list(scans(options.root, options.scans))
  for field, of_field in (("cropped", lambda mask: mask), ("×".join(map(str, FIELD)), in_field)):
    for what, sides in SIDES.items():
      taken: list[list[float]] = [[], []]
      for pred, label, mm in pairs:
        for all_times, times in zip(taken, measure(sides, (of_field(pred), of_field(label), mm), options.rounds), strict=True):
          all_times += times
      cells = (f"{statistics.median(times):.2f} ({min(times):.2f})" for times in taken)
      ratio = statistics.median(taken[1]) / statistics.median(taken[0])
      print(f"| {field} | {what} | {' | '.join(cells)} | {ratio:.1f} |", flush=True)
  islands, surface = zip(
    *((ndimage.label(pred)[1] - 1, surface_voxels(pred) + surface_voxels(label)) for pred, label, _ in pairs), strict=True
  )
  shapes = ", ".join("×".join(map(str, label.shape)) for _, label, _ in pairs)
  print(f"\nCropped: {shapes}; {min(islands)} to {max(islands)} islands; {min(surface)} to {max(surface)} surface voxels of both masks.")


def in_field(mask: np.ndarray) -> np.ndarray:
  """The mask in the middle of `FIELD`."""
  lack = [max(full - side, 0) for full, side in zip(FIELD, mask.shape, strict=True)]
  return np.pad(mask, [(n // 2, n - n // 2) for n in lack])


def surface_voxels(mask: np.ndarray) -> int:
  return int((mask & ~ndimage.binary_erosion(mask)).sum())


if __name__ == "__main__":
  main()
