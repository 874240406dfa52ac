"""Time to find the largest component of four masks, ours beside SciPy's labelling, alternating in one run.

  python -m benchmarks.components [--root=data/la] [--shape=112,112,80] [--batch=4] [--rounds=15] [--json=PATH]

`--root` is a folder with `labelsTr/*.nii.gz`; without it the shapes are phantom blobs. Both are distorted as an early network's predictions
are: a ragged surface and islands. The other masks are hard cases: noise close to where one component takes over, and a single path of width
1 through the whole volume.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from scipy import ndimage

from benchmarks import common
from ssl_jax.ops import components

Side = Callable[[np.ndarray], np.ndarray]


def scipy_largest(masks: np.ndarray) -> np.ndarray:
  """A loop over samples, as published code has it (with scikit-image)."""
  return np.stack([_scipy_one(mask) for mask in np.asarray(masks)])


def _scipy_one(mask: np.ndarray) -> np.ndarray:
  labels, _ = ndimage.label(mask, np.ones((3,) * mask.ndim))
  return labels == 1 + np.argmax(np.bincount(labels.ravel(), minlength=2)[1:])


def scipy_in_jit(masks: jax.Array) -> jax.Array:
  return jax.pure_callback(scipy_largest, jax.ShapeDtypeStruct(masks.shape, masks.dtype), masks)


def compiled(function: Callable[[jax.Array], jax.Array]) -> Side:
  jitted = jax.jit(function)
  return lambda masks: jax.block_until_ready(jitted(masks))


def atria(root: Path | None, batch: int, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
  """Labels, or blobs, cut out around their centre and distorted."""
  return np.stack([distorted(_label(root, i, shape, rng), rng) for i in range(batch)])


def _label(root: Path | None, index: int, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
  if root is None:
    field = ndimage.gaussian_filter(rng.standard_normal(shape), 12)
    distance = sum(((x - s / 2) / (0.35 * s)) ** 2 for x, s in zip(np.indices(shape), shape, strict=True))
    return distance + field / field.std() / 3 < 1
  import nibabel

  label = np.asarray(nibabel.load(sorted((root / "labelsTr").glob("*.nii.gz"))[index]).dataobj) > 0
  label = np.pad(label, [(s, s) for s in shape])
  start = [round(c) - s // 2 for c, s in zip(ndimage.center_of_mass(label), shape, strict=True)]
  return label[tuple(slice(b, b + s) for b, s in zip(start, shape, strict=True))]


def distorted(label: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  noise = ndimage.gaussian_filter(rng.standard_normal(label.shape), 2)
  return ndimage.gaussian_filter(label.astype(np.float32), 3) + 0.15 * noise / noise.std() > 0.3


def path(shape: tuple[int, ...]) -> np.ndarray:
  """To and fro along the last axis, row after row, slice after slice."""
  mask = np.zeros(shape, bool)
  mask[::2, ::2] = True
  last = (shape[1] - 1) // 2 * 2
  for z in range(0, shape[0], 2):
    mask[z, 1:last:4, -1] = mask[z, 3:last:4, 0] = True
    mask[z + 1 : z + 2, last if z % 4 == 0 else 0, 0] = True
  return mask


def main() -> None:
  parser = common.parser(__doc__)
  parser.add_argument("--root", type=Path, help="folder with labelsTr/*.nii.gz; default: phantom blobs")
  parser.add_argument("--shape", default="112,112,80", type=common.sides_of)
  parser.add_argument("--batch", default=4, type=int)
  args = parser.parse_args()
  rng = np.random.default_rng(0)
  sides = {
    "ours: hooking (CPU, GPU)": compiled(functools.partial(components._of_each, spread=components._hook)),
    "ours: sweeps (TPU)": compiled(functools.partial(components._of_each, spread=components._sweep)),
    "SciPy in `jit`, by callback": compiled(scipy_in_jit),
    "SciPy in a loop": scipy_largest,
  }
  cases = {
    "atria" if args.root else "blobs": atria(args.root, args.batch, args.shape, rng),
    "noise, 10 % of the voxels": rng.random((args.batch, *args.shape)) < 0.1,
    "one path": np.stack([path(args.shape)] * args.batch),
  }
  rows: list[common.Row] = []
  for number, (case, masks) in enumerate(cases.items()):
    placed, expected = jax.device_put(masks), scipy_largest(masks)
    measured = {}
    for name, side in sides.items():
      if number == 0 or "sweeps" not in name:  # sweeps take hundreds of rounds on hard cases
        measured[name] = functools.partial(side, masks if name == "SciPy in a loop" else placed)
        np.testing.assert_array_equal(measured[name](), expected, name)
    rows += common.rows_of(case, common.take_turns(measured, args.rounds))
  common.report(f"Largest component of {'x'.join(map(str, (args.batch, *args.shape)))}, {args.rounds} rounds", rows, args.json)


if __name__ == "__main__":
  main()
