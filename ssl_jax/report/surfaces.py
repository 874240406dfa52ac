"""Figures of surfaces in 3D; needs scikit-image."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LightSource, Normalize
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d.art3d import Poly3DCollection
from scipy import ndimage
from scipy.spatial import cKDTree

from ssl_jax.report import canvas
from ssl_jax.report.scans import Scan
from ssl_jax.types import InputError

_SMOOTHING = 0.8  # voxels, standard deviation: without it every voxel is a step
_MOST_TRIANGLES = 40_000  # of one surface; drawing takes a second for as many
_COLOURS = "YlOrRd"  # pale where surfaces agree, so that shading shows
_VIEW = {"elev": 20, "azim": 55}  # from the patient's front, right and above


def require() -> Callable[..., Any]:
  """Returns scikit-image's marching cubes.

  Raises:
    InputError: it is not installed.
  """
  try:
    from skimage.measure import marching_cubes
  except ImportError as error:
    raise InputError("surfaces need scikit-image: pip install scikit-image") from error
  return marching_cubes


def surface(mask: np.ndarray, spacing: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
  """Triangles around a mask, found by marching cubes at 0.5 after a slight smoothing; parts that it would erase stay as they are.

  Args:
    mask: bool[X, Y, Z], any axes to the patient's left, front, head.
    spacing: mm along them.

  Returns: corners f64[n, 3] in mm, axes to the right, front, head; triangles i64[m, 3] of them, counter-clockwise seen from
    outside. An empty mask has none of either.

  Raises:
    InputError: see `require`.
  """
  marching_cubes = require()
  if not mask.any():
    return np.empty((0, 3)), np.empty((0, 3), int)
  inside = np.argwhere(mask)
  low = np.maximum(inside.min(axis=0) - 3, 0)
  part = mask[tuple(slice(a, b + 4) for a, b in zip(low, inside.max(axis=0), strict=True))]
  padded = np.pad(part, 3).astype(np.float32)
  smooth = ndimage.gaussian_filter(padded, _SMOOTHING)
  parts, _ = ndimage.label(padded)
  smooth = np.where((parts == 0) | np.isin(parts, parts[smooth > 0.5]), smooth, padded)
  for stride in (1, 2, 4, 8):
    corners, triangles, _, _ = marching_cubes(smooth, 0.5, spacing=tuple(spacing), step_size=stride)
    if len(triangles) <= _MOST_TRIANGLES:
      break
  corners = (corners + (low - 3) * np.array(spacing)) * (-1, 1, 1)
  return corners, triangles


def comparison(scans: Sequence[Scan]) -> Figure:
  """Surfaces of the label, in its classes' colours, and of every run's prediction, coloured by the distance to it; one row a scan.

  Without a label predictions have their classes' colours.

  Raises:
    InputError: see `surface`; or a scan of one slice.
  """
  for scan in scans:
    if min(scan.image.shape) == 1:
      raise InputError(f"{scan.name}: a single slice has no surface; draw an overlay")
  titles, with_label = list(scans[0].maps), all(scan.label is not None for scan in scans)
  columns = [*(["Label"] if with_label else []), *titles]
  rows = []
  for scan in scans:
    labels = [*(each for each in (scan.label,) if each is not None and with_label), *scan.maps.values()]
    shapes = [_classes(each, scan) for each in labels]
    rows.append((scan, shapes, [_distances(shape, shapes[0]) for shape in shapes] if with_label else None))
  found = np.concatenate([np.empty(0), *(values for _, _, distances in rows for values in (distances or [])[1:])])
  known = found[np.isfinite(found)]
  norm = Normalize(0, max(float(np.percentile(known, 99)), 1.0) if known.size else 1.0)
  figure = Figure(figsize=(2.4 * len(columns) + 0.8, 1.9 * len(rows) + 0.4), layout="constrained")
  for i, (scan, shapes, distances) in enumerate(rows):
    corners = np.concatenate([points for shape in shapes for points, _ in shape])
    for j, shape in enumerate(shapes):
      axes: Any = figure.add_subplot(len(rows), len(columns), i * len(columns) + j + 1, projection="3d")
      _draw(axes, shape, None if distances is None or j == 0 else norm, None if distances is None else distances[j], corners)
      if i == 0:
        axes.set_title(columns[j], fontsize=9)
      if j == 0:
        axes.text2D(0.0, 0.5, scan.name, transform=axes.transAxes, ha="center", va="center", rotation=90, fontsize=8)
  if found.size:
    bar = figure.colorbar(ScalarMappable(norm, _COLOURS), ax=figure.axes, shrink=0.6, aspect=25, extend="max")
    bar.set_label("Distance to the label's surface [mm]", fontsize=8)
  if len(scans[0].class_names) > 2 or not found.size:
    canvas.legend_below(
      figure, [canvas.patch_handle(h.get_color(), str(h.get_label())) for h in canvas.class_handles(scans[0].class_names)]
    )
  return figure


Shape = list[tuple[np.ndarray, np.ndarray]]  # a surface per foreground class


def _classes(label: np.ndarray, scan: Scan) -> Shape:
  return [surface(label == value, scan.spacing) for value in range(1, len(scan.class_names))]


def _distances(shape: Shape, reference: Shape) -> np.ndarray:
  """Distance in mm of each triangle, its corners' mean, to the same class in `reference`, its nearest corner; infinite when it has none."""
  values = [np.empty(0)]
  for (corners, triangles), (others, _) in zip(shape, reference, strict=True):
    known = len(others) and len(triangles)
    values.append(cKDTree(others).query(corners)[0][triangles].mean(axis=1) if known else np.full(len(triangles), np.inf))
  return np.concatenate(values)


def _draw(axes: Any, shape: Shape, norm: Normalize | None, distances: np.ndarray | None, corners: np.ndarray) -> None:
  """Adds all classes as one collection, because matplotlib sorts triangles by depth within one only."""
  from matplotlib import colormaps

  triangles = np.concatenate([points[faces] for points, faces in shape])
  colours = np.concatenate([np.tile(canvas.class_colour(value + 1), (len(faces), 1)) for value, (_, faces) in enumerate(shape)])
  if norm is not None and distances is not None:
    colours = colormaps[_COLOURS](np.clip(norm(distances), 0, 1))[:, :3]
  if len(triangles):
    light = LightSource(azdeg=300, altdeg=50)
    axes.add_collection3d(
      Poly3DCollection(triangles, facecolors=colours, shade=True, lightsource=light, antialiased=False, rasterized=True, clip_on=False)
    )
  low, high = (corners.min(axis=0), corners.max(axis=0)) if len(corners) else (np.zeros(3), np.ones(3))
  axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), zlim=(low[2], high[2]))
  axes.set_box_aspect(high - low, zoom=1.2)
  axes.set_proj_type("ortho")
  axes.view_init(**_VIEW)
  axes.set_axis_off()
