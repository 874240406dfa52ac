"""Time of the distances of whole scans, ours beside medpy's, alternating in one run.

  python -m benchmarks.surface [--root=data/la] [--scans=4] [--rounds=5] [--uncropped]

`--root` is a folder with `labelsTr/*.nii.gz`; without it the scans are phantom blobs. Each is compared with a distorted copy, ragged and
with islands, as an early network's prediction is: as it is on disk, and on demand in the middle of the challenge's uncropped
field. The values of both sides must agree.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from medpy.metric import binary as medpy
from scipy import ndimage

from benchmarks import common
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


def main() -> None:
  parser = common.parser(__doc__)
  parser.add_argument("--root", type=Path, help="folder with labelsTr/*.nii.gz; default: phantom blobs")
  parser.add_argument("--scans", default=4, type=int)
  parser.add_argument("--uncropped", action="store_true", help="in the uncropped field, too; minutes for medpy")
  options = parser.parse_args()
  pairs = list(scans(options.root, options.scans))
  rows: list[common.Row] = []
  fields = {"cropped": lambda mask: mask, **({"x".join(map(str, FIELD)): in_field} if options.uncropped else {})}
  for field, of_field in fields.items():
    for what, (ours, theirs) in SIDES.items():
      taken: dict[str, list[float]] = {"ours": [], "medpy": []}
      for pred, label, mm in pairs:
        given = (of_field(pred), of_field(label), mm)
        np.testing.assert_allclose(ours(*given), theirs(*given), rtol=1e-6)
        sides = {"ours": functools.partial(ours, *given), "medpy": functools.partial(theirs, *given)}
        for side, times in common.take_turns(sides, options.rounds).items():
          taken[side] += times
      rows += common.rows_of(f"{what}, {field}", taken)
  islands, surface = zip(
    *((ndimage.label(pred)[1] - 1, surface_voxels(pred) + surface_voxels(label)) for pred, label, _ in pairs), strict=True
  )
  shapes = ", ".join("x".join(map(str, label.shape)) for _, label, _ in pairs)
  common.report(
    f"Distances of {len(pairs)} scans, {options.rounds} rounds; the values agree to 1e-6. Cropped: {shapes}; "
    f"{min(islands)} to {max(islands)} islands; {min(surface)} to {max(surface)} surface voxels of both masks.",
    rows,
    options.json,
  )


def in_field(mask: np.ndarray) -> np.ndarray:
  """The mask in the middle of `FIELD`."""
  lack = [max(full - side, 0) for full, side in zip(FIELD, mask.shape, strict=True)]
  return np.pad(mask, [(n // 2, n - n // 2) for n in lack])


def surface_voxels(mask: np.ndarray) -> int:
  return int((mask & ~ndimage.binary_erosion(mask)).sum())


if __name__ == "__main__":
  main()
