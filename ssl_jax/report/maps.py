"""Figures of sections of scans: overlays with errors, confidence maps, several runs side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ssl_jax.metrics import dice
from ssl_jax.report import canvas
from ssl_jax.report.scans import Scan

MISSED, ADDED, CONFUSED = range(1, 4)
ERRORS: Mapping[int, tuple[str, tuple[float, float, float]]] = {
  MISSED: ("false negative", (0.835, 0.369, 0.0)),
  ADDED: ("false positive", (0.337, 0.706, 0.914)),
  CONFUSED: ("wrong class", (0.941, 0.894, 0.259)),
}


def error_map(label: np.ndarray, prediction: np.ndarray) -> np.ndarray:
  """u8 of the common shape: 0 right, `MISSED` (background predicted), `ADDED` (true background), `CONFUSED` (another foreground class)."""
  errors = np.where(label == 0, ADDED, np.where(prediction == 0, MISSED, CONFUSED))
  return np.where(label == prediction, 0, errors).astype(np.uint8)


def overlay(scan: Scan, plane: str = "all") -> Figure:
  """Image, outlines of the label and of the prediction, and where they differ; one row a section.

  Args:
    scan: with one prediction; without a label, only image and prediction are shown.
    plane: see `canvas.sections_of`.
  """
  whole, scan = scan, scan.cropped()
  ((title, prediction),) = scan.maps.items()
  sections = canvas.sections_of(scan, plane)
  figure, axes = canvas.grid([canvas.extent(scan, plane) for plane, _ in sections], 2 if scan.label is None else 4)
  for row, (plane, position) in zip(axes, sections, strict=True):
    for panel in row:
      canvas.show(panel, scan, plane, position)
    row[0].set_ylabel(scan.place(plane, position), fontsize=8)
    if scan.label is None:
      canvas.outline(row[1], prediction, plane, position)
      continue
    canvas.outline(row[1], scan.label, plane, position)
    canvas.outline(row[2], prediction, plane, position)
    _show_errors(row[3], scan, prediction, plane, position)
  for panel, heading in zip(
    axes[0], ("Image", "Prediction") if scan.label is None else ("Image", "Label", "Prediction", "Errors"), strict=True
  ):
    panel.set_title(heading, fontsize=9)
  figure.suptitle(f"{scan.name}, {title}{_dice(whole, whole.maps[title])}", fontsize=10)
  handles: list[Any] = canvas.class_handles(scan.class_names)
  if scan.label is not None:
    kinds = [kind for kind in ERRORS if kind != CONFUSED or len(scan.class_names) > 2]
    handles += [canvas.patch_handle(ERRORS[kind][1], ERRORS[kind][0]) for kind in kinds]
  canvas.legend_below(figure, handles)
  return figure


def comparison(scans: Sequence[Scan], plane: str = "axial") -> Figure:
  """Label and every run's prediction side by side; one row a scan, the section with most foreground.

  Args:
    scans: all with predictions of the same runs.
    plane: of the sections; "all" shows three rows a scan.
  """
  cropped = [scan.cropped() for scan in scans]
  rows = [
    (whole, scan, view, position)
    for whole, scan in zip(scans, cropped, strict=True)
    for view, position in canvas.sections_of(scan, plane, spread=False)
  ]
  titles = list(scans[0].maps)
  figure, axes = canvas.grid([canvas.extent(scan, view) for _, scan, view, _ in rows], 1 + len(titles))
  for row, (whole, scan, view, position) in zip(axes, rows, strict=True):
    for panel in row:
      canvas.show(panel, scan, view, position)
    row[0].set_ylabel(f"{scan.name}\n{scan.place(view, position)}", fontsize=8)
    if scan.label is not None:
      canvas.outline(row[0], scan.label, view, position)
    for panel, title in zip(row[1:], titles, strict=True):
      if scan.label is not None:
        canvas.outline(panel, scan.label, view, position, "white", linewidths=0.8, linestyles="dotted")
        panel.set_xlabel(_dice(whole, whole.maps[title]).removeprefix(", "), fontsize=8, labelpad=1)
      canvas.outline(panel, scan.maps[title], view, position)
  for panel, heading in zip(axes[0], ("Label" if scans[0].label is not None else "Image", *titles), strict=True):
    panel.set_title(heading, fontsize=9)
  canvas.legend_below(figure, canvas.class_handles(scans[0].class_names))
  return figure


def confidence(scan: Scan, plane: str = "all") -> Figure:
  """Probability of the predicted class, with the prediction's outline, at every stage; of two stages their difference as well.

  Args:
    scan: with `confidence` maps.
    plane: see `canvas.sections_of`.

  Source: CRLN, Fig. 9.
  """
  stages = list(scan.confidence)
  change = scan.confidence[stages[1]] - scan.confidence[stages[0]] if len(stages) == 2 else None
  sections = canvas.sections_of(scan, plane)
  figure, axes = canvas.grid([canvas.extent(scan, plane) for plane, _ in sections], 1 + len(stages) + (change is not None))
  least, most = 1 / len(scan.class_names), float(np.abs(change).max()) if change is not None else 0.0
  for row, (plane, position) in zip(axes, sections, strict=True):
    canvas.show(row[0], scan, plane, position)
    row[0].set_ylabel(plane, fontsize=8)
    if scan.label is not None:
      canvas.outline(row[0], scan.label, plane, position)
    for panel, stage in zip(row[1:], stages, strict=False):
      bar = canvas.show(panel, scan, plane, position, scan.confidence[stage], cmap="cividis", vmin=least, vmax=1)
      canvas.outline(panel, scan.maps[stage], plane, position, "white", linewidths=0.9)
    if change is not None:
      bar_of_change = canvas.show(row[-1], scan, plane, position, change, cmap="PuOr_r", vmin=-max(most, 1e-3), vmax=max(most, 1e-3))
  headings = ["Image, label" if scan.label is not None else "Image", *(stage.capitalize() for stage in stages)]
  headings += [f"{stages[1].capitalize()} − {stages[0]}"] if change is not None else []
  for panel, heading in zip(axes[0], headings, strict=True):
    panel.set_title(heading, fontsize=9)
  beside: dict[str, Any] = {"location": "bottom", "shrink": 0.6, "aspect": 30}
  figure.colorbar(bar, ax=list(axes[-1, 1 : 1 + len(stages)]), **beside).set_label("Probability of the predicted class", fontsize=8)
  if change is not None:
    figure.colorbar(bar_of_change, ax=[axes[-1, -1]], **{**beside, "shrink": 0.9, "aspect": 15}).set_label("Change", fontsize=8)
  figure.suptitle(scan.name, fontsize=10)
  return figure


def _show_errors(panel: Any, scan: Scan, prediction: np.ndarray, plane: str, position: int) -> None:
  errors = error_map(np.asarray(scan.label), prediction)
  rgba = np.zeros((*errors.shape, 4), np.float32)
  for kind, (_, colour) in ERRORS.items():
    rgba[errors == kind] = (*colour, 0.75)
  # channels travel beside the three axes that a section knows
  layers = np.stack([canvas.section(rgba[..., channel], plane, position) for channel in range(4)], axis=-1)
  limits = panel.get_xlim(), panel.get_ylim()
  panel.imshow(layers, origin="lower", interpolation="nearest", aspect=panel.get_aspect())
  panel.set(xlim=limits[0], ylim=limits[1])
  canvas.outline(panel, np.asarray(scan.label), plane, position, "white", linewidths=0.6)


def _dice(scan: Scan, prediction: np.ndarray) -> str:
  """Returns ", Dice 91.2 %" over the whole scan, the mean of several classes."""
  if scan.label is None:
    return ""
  values = [dice(prediction == value, scan.label == value) for value in range(1, len(scan.class_names))]
  return f", Dice {100 * float(np.mean(values)):.1f} %"
