"""Views drawn on the device: where pixels go, and what colours become."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from ssl_jax.ops import views

RNG = np.random.default_rng(0)
IMAGE = RNG.random((2, 9, 9, 2), np.float32)
LABEL = RNG.integers(0, 4, (2, 9, 9)).astype(np.int32)


def pose(angle_deg, flip):
  return views.Pose(jnp.full(2, math.radians(angle_deg)), jnp.full(2, flip))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("turns", range(4))
def test_quarter_turns_and_flips_move_pixels_exactly(turns, flip):
  turned_image, turned_label = views.turn_image(IMAGE, pose(90 * turns, flip)), views.turn_label(LABEL, pose(90 * turns, flip))
  for turned, original in ((turned_image, IMAGE), (turned_label, LABEL)):
    expected = np.rot90(original[:, ::-1] if flip else original, turns, axes=(1, 2))
    np.testing.assert_allclose(turned, expected, atol=1e-5)


def test_a_small_rotation_equals_scipy():
  angle = math.radians(17)
  matrix = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
  offset = 4 - matrix @ (4, 4)
  for sample in range(2):
    for channel in range(2):
      expected = ndimage.affine_transform(IMAGE[sample, ..., channel], matrix, offset, order=1, mode="grid-constant")
      np.testing.assert_allclose(views.turn_image(IMAGE, pose(17, False))[sample, ..., channel], expected, atol=1e-5)
    nearest = ndimage.affine_transform(LABEL[sample], matrix, offset, order=0, mode="grid-constant")
    np.testing.assert_array_equal(views.turn_label(LABEL, pose(17, False))[sample], nearest)


def test_poses_are_drawn_evenly_and_stay_within_their_limits():
  angle, flip = views.draw_pose(jax.random.key(0), 4000, square=True)
  degrees = np.degrees(np.asarray(angle))
  quarter = np.round(degrees / 90).astype(int)
  assert np.abs(degrees - 90 * quarter).max() <= 20.001
  assert np.bincount(quarter, minlength=4).min() > 900 and 0.45 < np.mean(flip) < 0.55
  halves = np.degrees(np.asarray(views.draw_pose(jax.random.key(0), 400, square=False).angle))
  assert set(np.round(halves / 90).astype(int)) == {0, 2}


def test_colour_jitter_follows_its_formula():
  key = jax.random.key(3)
  factors = [np.asarray(views._factors(k, IMAGE, 0.3)) for k in jax.random.split(key)]
  bright = np.clip(IMAGE * factors[0], 0, 1)
  mean = bright.mean((1, 2), keepdims=True)
  np.testing.assert_allclose(views.colour_jitter(key, IMAGE, 0.3), np.clip(mean + (bright - mean) * factors[1], 0, 1), atol=1e-6)
  assert all(((f >= 0.7) & (f <= 1.3)).all() for f in factors) and len(np.unique(factors[0])) == 2
  assert views.colour_jitter(key, IMAGE, 0.0) is IMAGE
  assert float(views.colour_jitter(key, 5 * IMAGE - 2, 1.0).max()) <= 3.0


def test_blur_keeps_constants_and_equals_scipy_at_a_fixed_width():
  assert np.allclose(views.gaussian_blur(jax.random.key(0), jnp.full((2, 8, 8, 1), 0.4)), 0.4)
  blurred = views.gaussian_blur(jax.random.key(0), IMAGE, (1.0, 1.0))
  np.testing.assert_allclose(blurred[0, ..., 0], ndimage.gaussian_filter(IMAGE[0, ..., 0], 1.0, mode="nearest", radius=4), atol=1e-5)
  assert np.std(blurred) < np.std(IMAGE)
  sharper = np.asarray(views.sharpen(jax.random.key(1), IMAGE))
  assert sharper.shape == IMAGE.shape and np.isfinite(sharper).all() and not np.allclose(sharper, IMAGE)
