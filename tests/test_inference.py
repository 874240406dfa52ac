"""Sliding windows against the published placement, and against a plain loop."""

import itertools
import logging
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.inference import SliceWise, SlidingWindow, WholeVolume, flip_averaged, sliding_window, whole_scan
from ssl_jax.types import EvalConfig, InputError

ORACLE = pathlib.Path(__file__).parent / "data" / "sliding_window.npz"


def oracle_predict(images):
  """Two analytic networks whose logits, averaged, are ±0.75 z; z depends on the voxel's place in the window."""
  grids = jnp.meshgrid(*(jnp.linspace(-1, 1, size) for size in images.shape[1:4]), indexing="ij")
  z = images[..., 0] + 0.7 * grids[0] - 0.4 * grids[1] + 0.9 * grids[2]
  logits = jnp.stack([-z, z], axis=-1)
  return jax.nn.softmax((logits + 0.5 * logits) / 2, axis=-1)


def placed_predict(images):
  """Three classes from two channels, different at every place of the window, for any rank."""
  shape = images.shape[1:-1]
  place = jnp.sin(jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape))
  return jax.nn.softmax(jnp.stack([images[..., 0] + place, images[..., 1] * place, images[..., 0] - images[..., 1]], -1), axis=-1)


def naive(predict, image, patch, stride):
  """The published loop, one window at a time, in NumPy."""
  padding = [(max(p - s, 0) // 2, max(p - s, 0) - max(p - s, 0) // 2) for s, p in zip(image.shape[:-1], patch, strict=True)]
  padded = np.pad(image, [*padding, (0, 0)])
  size = padded.shape[:-1]
  total, count = 0.0, np.zeros((*size, 1))
  for index in np.ndindex(*(int(np.ceil((s - p) / t)) + 1 for s, p, t in zip(size, patch, stride, strict=True))):
    start = [min(t * i, s - p) for i, s, p, t in zip(index, size, patch, stride, strict=True)]
    window = tuple(slice(a, a + p) for a, p in zip(start, patch, strict=True))
    probabilities = np.asarray(predict(padded[window][None]))[0]
    total = np.zeros((*size, probabilities.shape[-1])) if isinstance(total, float) else total
    total[window] += probabilities
    count[window] += 1
  return (total / count)[tuple(slice(a, a + s) for (a, _), s in zip(padding, image.shape[:-1], strict=True))]


@pytest.mark.parametrize("case", range(3))
@pytest.mark.parametrize("window_batch", [1, 4])
def test_matches_published_scores_and_labels(case, window_batch):
  oracle = np.load(ORACLE)
  image, stride, patch = oracle[f"image_{case}"], oracle[f"stride_{case}"], oracle["patch"]
  stride = np.minimum(stride, patch)  # the third case has one window; its published stride exceeds the patch
  found = sliding_window(oracle_predict, image[..., None], patch=patch.tolist(), stride=stride.tolist(), window_batch=window_batch)[..., 1]
  np.testing.assert_allclose(found, oracle[f"score_{case}"], atol=1e-5)
  np.testing.assert_array_equal(found > 0.5, oracle[f"label_{case}"])


@pytest.mark.parametrize(
  ("spatial", "patch", "stride"),
  [
    ((19, 23, 11), (8, 8, 8), (3, 5, 8)),
    ((5, 20, 8), (8, 8, 8), (4, 4, 4)),
    ((7, 7, 7), (8, 8, 8), (8, 8, 8)),
    ((33, 17, 9), (16, 16, 8), (1, 16, 7)),
    ((21, 13), (8, 6), (3, 2)),
    ((3, 40), (16, 16), (16, 5)),
  ],
)
@pytest.mark.parametrize("window_batch", [1, 3])
def test_equals_the_plain_loop(spatial, patch, stride, window_batch):
  image = np.random.default_rng(0).normal(size=(*spatial, 2)).astype(np.float32)
  expected = naive(placed_predict, image, patch, stride)
  found = sliding_window(placed_predict, image, patch=patch, stride=stride, window_batch=window_batch)
  assert found.shape == (*spatial, 3) and found.dtype == np.float32
  np.testing.assert_allclose(found, expected, atol=1e-6)
  np.testing.assert_allclose(sliding_window(placed_predict, jnp.asarray(image), patch=patch, stride=stride), expected, atol=1e-6)


@pytest.mark.parametrize("reserved", [False, True])
def test_compiles_once_per_volume_and_not_for_new_weights(caplog, reserved):
  def recognisable_predict(state, images):
    return placed_predict(images + state["shift"])

  rng = np.random.default_rng(1)
  shapes = [(40, 30, 12), (33, 25, 9), (35, 17, 16), (64, 64, 20), (12, 20, 10), (20, 65, 12)]
  window = SlidingWindow(recognisable_predict, patch=(16, 16, 8), stride=(8, 8, 4), window_batch=2)
  if reserved:
    window.reserve(shapes)
  with jax.log_compiles(), caplog.at_level(logging.WARNING):
    for i, shape in enumerate(shapes):
      image = rng.normal(size=(*shape, 2)).astype(np.float32)
      shift = np.float32(i)
      found = window({"shift": shift}, image)
      expected = naive(lambda images, shift=shift: placed_predict(images + shift), image, (16, 16, 8), (8, 8, 4))
      np.testing.assert_allclose(found, expected, atol=1e-6)
  compiled = [record for record in caplog.records if re.search(r"Finished XLA compilation of jit\(.*average_windows", record.getMessage())]
  assert len(compiled) == (1 if reserved else 2)  # the last scan needs a longer second axis than all before


@pytest.mark.parametrize("spatial", [(17, 16, 5), (30, 33)])
def test_whole_volume_pads_and_crops(spatial):
  image = np.random.default_rng(2).normal(size=(*spatial, 2)).astype(np.float32)
  seen = []

  def pointwise(images):
    seen.append(images.shape)
    return jax.nn.softmax(images, axis=-1)

  np.testing.assert_allclose(WholeVolume(lambda _, images: pointwise(images))((), image), jax.nn.softmax(image, axis=-1), atol=1e-6)
  assert seen == [(1, *(-(-size // 16) * 16 for size in spatial), 2)]


@pytest.mark.parametrize(
  ("patch", "stride", "window_batch", "shape", "message"),
  [
    ((8, 8, 8), (0, 4, 4), 1, (9, 9, 9, 2), "stride"),
    ((8, 8, 8), (9, 4, 4), 1, (9, 9, 9, 2), "stride"),
    ((8, 8, 8), (4, 4), 1, (9, 9, 9, 2), "one entry per spatial axis"),
    ((8, 8), (4, 4), 0, (9, 9, 2), "window_batch"),
    ((8, 8, 8), (4, 4, 4), 1, (9, 9, 2), "does not fit"),
    ((8, 8), (4, 4), 1, (0, 9, 2), "does not fit"),
  ],
)
def test_wrong_geometry_is_named(patch, stride, window_batch, shape, message):
  with pytest.raises(InputError, match=message):
    sliding_window(placed_predict, np.zeros(shape, np.float32), patch=patch, stride=stride, window_batch=window_batch)


def test_whole_volume_rejects_a_multiple_of_zero():
  with pytest.raises(InputError, match="multiple"):
    WholeVolume(lambda _, images: placed_predict(images), multiple=0)


@pytest.mark.parametrize(("spatial", "patch", "stride"), [((19, 23, 11), (8, 8, 8), (3, 5, 8)), ((5, 20, 8), (8, 7, 8), (4, 4, 4))])
def test_gaussian_weights_equal_the_plain_loop(spatial, patch, stride):
  image = np.random.default_rng(3).normal(size=(*spatial, 2)).astype(np.float32)
  profile = np.ones((), np.float64)
  for size in patch:
    profile = profile[..., None] * np.exp(-0.5 * ((np.arange(size) - (size - 1) / 2) / (size / 8)) ** 2)
  weigh = lambda predict: lambda images: np.asarray(predict(images), np.float64) * profile[..., None]
  expected = naive(weigh(placed_predict), image, patch, stride) / naive(weigh(lambda x: np.ones((*x.shape[:-1], 1))), image, patch, stride)
  window = SlidingWindow(lambda _, images: placed_predict(images), patch=patch, stride=stride, window_batch=3, weights="gaussian")
  found = window((), image)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  assert np.abs(found - sliding_window(placed_predict, image, patch=patch, stride=stride)).max() > 0.01


@pytest.mark.parametrize("axes", [(), (1,), (0, 2), (0, 1, 2)])
def test_flips_are_averaged_and_turned_back(axes):
  image = np.random.default_rng(4).normal(size=(2, 6, 5, 4, 2)).astype(np.float32)
  combinations = [tuple(a + 1 for a in chosen) for n in range(len(axes) + 1) for chosen in itertools.combinations(axes, n)]
  expected = np.mean([np.flip(placed_predict(jnp.flip(image, chosen)), chosen) for chosen in combinations], axis=0)
  found = jax.jit(flip_averaged(lambda shift, images: placed_predict(images + shift), axes))(0.0, image)
  assert len(combinations) == 2 ** len(axes)
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_configuration_chooses_the_predictor():
  predict = lambda _, images: placed_predict(images)
  kinds = {
    SliceWise: whole_scan(predict, (8, 8), EvalConfig()),
    WholeVolume: whole_scan(predict, (8, 8, 8), EvalConfig(whole_volume=True)),
    SlidingWindow: whole_scan(predict, (8, 8, 8), EvalConfig(stride=(4, 4, 4), flips=(0,), window_weights="gaussian")),
  }
  image = np.random.default_rng(5).normal(size=(9, 8, 8, 2)).astype(np.float32)
  assert all(type(found) is kind and found((), image).shape == (9, 8, 8, 3) for kind, found in kinds.items())
  twice = np.flip(kinds[SlidingWindow]((), np.flip(image, 0).copy()), 0)
  np.testing.assert_allclose(kinds[SlidingWindow]((), image), twice, atol=1e-6)
