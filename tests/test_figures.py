"""Figures: sizes of the PNGs, and contours in the class's colour where a class ends."""

import numpy as np
import pytest
from matplotlib import image as png

from ssl_jax.report.figures import COLOURS, contact_sheet, contours, overlay_pixels, representative_slices


def read(file):
  return np.rint(255 * png.imread(file)[..., :3]).astype(int)


def square(shape=(20, 30), value=1):
  label = np.zeros(shape, np.uint8)
  label[5:10, 8:16] = value
  return label


def is_colour(pixels, value):
  return (pixels == COLOURS[value - 1]).all(axis=-1)


def test_contours_by_hand():
  label = np.zeros((6, 6), np.uint8)
  label[1:5, 0:4] = 1
  label[2, 1] = 2
  expected = np.zeros((6, 6), bool)
  expected[1, 0:4] = expected[4, 0:4] = expected[1:5, 0] = expected[1:5, 3] = True  # column 0 touches the border of the picture
  expected[2, 1] = True  # the other class,
  expected[[1, 3, 2, 2], [1, 1, 0, 2]] = True  # and its neighbours
  np.testing.assert_array_equal(contours(label), expected)


def test_contact_sheet(tmp_path):
  images = np.random.default_rng(0).random((5, 20, 30, 2)).astype(np.float32)
  labels = np.stack([square(value=1 + i % 2) for i in range(5)])
  sheet = read(contact_sheet(images, labels, tmp_path / "new" / "sheet.png", columns=3, side=30))
  assert sheet.shape == (2 * 20 + 2, 3 * 30 + 4, 3)
  for i in range(5):
    panel = sheet[i // 3 * 22 :, i % 3 * 32 :][:20, :30]
    np.testing.assert_array_equal(is_colour(panel, 1 + i % 2), contours(labels[i]))
  assert not sheet[22:, 64:].any(), "the last place stays empty"
  assert read(contact_sheet(images, labels, tmp_path / "small.png", columns=5, side=15)).shape == (10, 5 * 15 + 8, 3)


def test_grey_is_the_first_channel(tmp_path):
  image = np.zeros((10, 10, 2), np.float32)
  image[:5, :, 0], image[..., 1] = 7.0, np.random.default_rng(0).random((10, 10))
  sheet = read(contact_sheet(image[None], np.zeros((1, 10, 10), np.uint8), tmp_path / "sheet.png", side=10))
  assert (sheet[:5] == 255).all() and (sheet[5:] == 0).all()


def test_pixels_of_a_slice_and_of_a_volume():
  label, prediction = square(), np.roll(square(), 3, axis=0)
  image = np.random.default_rng(0).random((20, 30, 1)).astype(np.float32)
  panels = overlay_pixels(image, label, prediction, side=30)
  assert panels.shape == (20, 3 * 30 + 4, 3)
  for left, shown in ((0, np.zeros_like(label)), (32, label), (64, prediction)):
    np.testing.assert_array_equal(is_colour(panels[:, left : left + 30], 1), contours(shown))
  volume = np.zeros((20, 30, 9), np.uint8)
  volume[..., 2:7] = label[..., None]
  assert representative_slices(volume) == [3, 4, 5]
  assert representative_slices(np.zeros_like(volume)) == [2, 4, 6]
  assert representative_slices(volume[..., 2:3]) == [0]
  panels = overlay_pixels(np.repeat(image[:, :, None], 9, axis=2), volume, volume * 0, side=60)
  assert panels.shape == (3 * 40 + 4, 3 * 60 + 4, 3)
  assert is_colour(panels[:, 62:122], 1).any() and not is_colour(panels[:, 124:], 1).any()
  assert overlay_pixels(image, None, prediction, side=30).shape == (20, 62, 3)


def test_shapes_must_agree():
  with pytest.raises(ValueError, match="one shape"):
    overlay_pixels(np.zeros((4, 4, 1)), np.zeros((4, 4), int), np.zeros((4, 5), int))
