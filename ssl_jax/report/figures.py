"""Pictures of 2D slices without axes or text: contours of labels and predictions on grey images. Rows run along an image's first axis."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

# Class 1, 2, ...: bright on grey and told apart with any common colour blindness (after Okabe and Ito); further classes start over.
COLOURS = np.array(
  [(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167), (255, 255, 255)], np.uint8
)
_GAP = 2  # pixels between panels
_WINDOW = (0.5, 99.5)  # percentiles of intensity shown as black and white


def contact_sheet(images: np.ndarray, labels: np.ndarray, file: Path, columns: int = 8, side: int = 112) -> Path:
  """Writes thumbnails with the contours of their labels, row by row.

  Args:
    images: f32[N, X, Y, channels]; the first channel is shown, from its 0.5th to its 99.5th percentile.
    labels: integer[N, X, Y], 0 = background.
    file: the PNG.
    columns: thumbnails in a row.
    side: longest side of a thumbnail in pixels; nearest pixels are taken.

  Returns: `file`.
  """
  return _write_png(_grid([_panel(image, label, side) for image, label in zip(images, labels, strict=True)], columns), file)


def overlay_pixels(image: np.ndarray, label: np.ndarray | None, prediction: np.ndarray, side: int = 224) -> np.ndarray:
  """Returns one row a slice: the image, the image with the label's contours (when there is a label), and with the prediction's.

  Of a volume three slices along the last axis are shown, at a quarter, half and three quarters of those that hold some foreground.

  Args:
    image: f32[X, Y, channels] or f32[X, Y, Z, channels].
    label, prediction: integer[X, Y] or integer[X, Y, Z].
    side: longest side of a panel in pixels.

  Returns: u8[height, width, 3].

  Raises: ValueError when the shapes differ.
  """
  maps = [prediction] if label is None else [label, prediction]
  if any(each.shape != image.shape[:-1] for each in maps):
    raise ValueError(f"image {image.shape[:-1]}, label and prediction {[each.shape for each in maps]} must have one shape")
  slices = [()] if prediction.ndim == 2 else [(Ellipsis, z) for z in representative_slices(maps[0])]
  panels = []
  for at in slices:
    grey = image[..., 0][at][..., None]
    panels += [_panel(grey, each, side) for each in (None, *(each[at] for each in maps))]
  return _grid(panels, columns=1 + len(maps))


def representative_slices(label: np.ndarray) -> list[int]:
  """Positions at a quarter, half and three quarters of the slices of integer[X, Y, Z] with foreground, or of all when none has any."""
  filled = np.flatnonzero(label.any(axis=(0, 1)))
  candidates = filled if filled.size else np.arange(label.shape[2])
  return sorted({int(candidates[int(part * (candidates.size - 1) + 0.5)]) for part in (0.25, 0.5, 0.75)})


def contours(label: np.ndarray) -> np.ndarray:
  """Pixels of a class in integer[X, Y] with another class, or the picture's border, on one of their four sides: bool[X, Y]."""
  padded = np.pad(label, 1)
  neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
  return (label > 0) & np.logical_or.reduce([each != label for each in neighbours])


def _panel(image: np.ndarray, label: np.ndarray | None, side: int) -> np.ndarray:
  """u8[x, y, 3] of one slice, at most `side` pixels long."""
  low, high = np.percentile(image[..., 0], _WINDOW)
  grey = np.clip((image[..., 0] - low) / max(high - low, 1e-6), 0, 1)
  pixels = [(np.arange(size) + 0.5) / size * extent for size, extent in zip(_fit(grey.shape, side), grey.shape, strict=True)]
  nearest = np.ix_(*(position.astype(int) for position in pixels))
  rgb = np.repeat(np.rint(255 * grey[nearest]).astype(np.uint8)[..., None], 3, axis=-1)
  if label is not None:
    shown = label[nearest]
    outline = contours(shown)
    rgb[outline] = COLOURS[(shown[outline].astype(int) - 1) % len(COLOURS)]
  return rgb


def _fit(shape: tuple[int, ...], side: int) -> tuple[int, ...]:
  return tuple(max(round(extent * side / max(shape)), 1) for extent in shape)


def _grid(panels: Sequence[np.ndarray], columns: int) -> np.ndarray:
  """Panels of one size row by row on black, `_GAP` pixels apart."""
  columns = min(columns, len(panels))
  rows = -(-len(panels) // columns)
  height, width = (extent + _GAP for extent in panels[0].shape[:2])
  sheet = np.zeros((rows * height - _GAP, columns * width - _GAP, 3), np.uint8)
  for i, panel in enumerate(panels):
    top, left = i // columns * height, i % columns * width
    sheet[top : top + panel.shape[0], left : left + panel.shape[1]] = panel
  return sheet


def _write_png(rgb: np.ndarray, file: Path) -> Path:
  from matplotlib import image as png  # half a second that commands without figures need not spend

  file.parent.mkdir(parents=True, exist_ok=True)
  png.imsave(file, rgb)
  return file
