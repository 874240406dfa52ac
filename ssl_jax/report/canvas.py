"""What all figures share: files, colours, sections with outlines. Figures are objects of their own, without pyplot's global state."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ssl_jax.report.figures import COLOURS
from ssl_jax.report.scans import Scan, largest_section, pixel_size, section, spread_sections

# On white, told apart with any common colour blindness (after Okabe and Ito); further ones start over with another dash.
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")
_DPI = 110
_PANEL = 2.1  # inches, width
_WINDOW = (0.5, 99.5)  # percentiles of intensity shown as black and white


def save(figure: Figure, file: Path) -> Path:
  """Writes a figure in the format of the file's ending, whole or not at all; returns `file`."""
  file.parent.mkdir(parents=True, exist_ok=True)
  partial = file.with_name(f".{file.name}.partial")
  try:
    figure.savefig(partial, format=file.suffix.removeprefix("."), dpi=_DPI)
    os.replace(partial, file)
  finally:
    partial.unlink(missing_ok=True)
  return file


def class_colour(value: int) -> tuple[float, float, float]:
  """RGB in 0..1 of a class from 1 on."""
  red, green, blue = (float(part) / 255 for part in COLOURS[(value - 1) % len(COLOURS)])
  return red, green, blue


def line_style(index: int) -> dict[str, Any]:
  """Colour and dash of the index-th of several lines."""
  return {"color": LINES[index % len(LINES)], "linestyle": DASHES[index // len(LINES) % len(DASHES)]}


def sections_of(scan: Scan, plane: str, spread: bool = True) -> list[tuple[str, int]]:
  """Which sections of a scan a figure shows.

  Args:
    scan: with something in the foreground.
    plane: "all": the section of each plane with most foreground; "axial", "coronal" or "sagittal": sections of that plane.
    spread: three sections of one plane; otherwise the one with most foreground.

  Returns: planes and positions; of a 2D image its only one.
  """
  foreground = scan.foreground
  if foreground.shape[2] == 1:
    return [("axial", 0)]
  if plane == "all":
    return [(each, largest_section(foreground, each)) for each in ("axial", "coronal", "sagittal")]
  return [(plane, position) for position in (spread_sections(foreground, plane) if spread else [largest_section(foreground, plane)])]


def grid(shapes: Sequence[tuple[float, float]], columns: int) -> tuple[Figure, np.ndarray]:
  """A figure of rows of panels.

  Args:
    shapes: height and width of a panel of each row, in any unit.
    columns: how many panels a row has.

  Returns: the figure and its axes, object[rows, columns].
  """
  heights = [_PANEL * min(max(height / width, 0.4), 1.6) for height, width in shapes]
  figure = Figure(figsize=(_PANEL * columns + 0.4, sum(heights) + 0.8), layout="constrained")
  axes = figure.subplots(len(shapes), columns, squeeze=False, gridspec_kw={"height_ratios": heights})
  figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)  # type: ignore[union-attr, call-arg]
  return figure, axes


def extent(scan: Scan, plane: str) -> tuple[float, float]:
  """Height and width of a section in mm."""
  rows, columns = section(scan.image, plane, 0).shape
  height, width = pixel_size(scan.spacing, plane)
  return rows * height, columns * width


def show(axes: Any, scan: Scan, plane: str, position: int, values: np.ndarray | None = None, **style: Any) -> Any:
  """Draws a section of the image, or of `values` on its grid with the given style of `imshow`; returns what a colour bar needs."""
  if values is None:
    low, high = np.percentile(scan.image, _WINDOW)
    values, style = scan.image, {"cmap": "gray", "vmin": low, "vmax": max(high, low + 1e-6), **style}
  height, width = pixel_size(scan.spacing, plane)
  shown = axes.imshow(section(values, plane, position), origin="lower", interpolation="nearest", aspect=height / width, **style)
  axes.set(xticks=[], yticks=[])
  axes.spines[:].set_visible(False)
  return shown


def outline(axes: Any, label: np.ndarray, plane: str, position: int, colour: Any = None, **style: Any) -> None:
  """Draws the outline of every class of integer[X, Y, Z] on a section: of its own colour, or of `colour`."""
  cut = np.pad(section(label, plane, position), 1)
  rows, columns = (np.arange(size) - 1 for size in cut.shape)
  limits = axes.get_xlim(), axes.get_ylim()
  for value in range(1, int(cut.max()) + 1):
    if (cut == value).any():
      axes.contour(columns, rows, cut == value, [0.5], colors=[colour or class_colour(value)], **{"linewidths": 1.3, **style})
  axes.set(xlim=limits[0], ylim=limits[1])


def legend_below(figure: Figure, handles: Sequence[Any]) -> None:
  """Puts one legend under all panels."""
  figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5), frameon=False, fontsize=8)


def class_handles(class_names: Sequence[str]) -> list[Line2D]:
  """Legend entries of the outlines of the foreground classes."""
  return [Line2D([], [], color=class_colour(value), label=name) for value, name in enumerate(class_names) if value]


def patch_handle(colour: Any, label: str) -> Patch:
  """Legend entry of a filled area."""
  return Patch(facecolor=colour, label=label)
