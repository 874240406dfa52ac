"""The weak view and the two-stream pipeline."""

import dataclasses
import itertools

import numpy as np
import pytest

from ssl_jax.data import Split, batches, fingerprint, make_split, open_source
from ssl_jax.data.transforms import weak_view
from ssl_jax.types import DataConfig, InputError, PhantomConfig

CFG = DataConfig(
  source="phantom",
  split="official",
  num_labelled=3,
  patch=(16, 16, 16),
  intensity_jitter=0.1,
  phantom=PhantomConfig(shape=(24, 20, 16), num_train=8, num_test=2),
)


@pytest.fixture(scope="module")
def source():
  return open_source(CFG)


def draw(source, cfg=CFG, **options):
  defaults = {"seed": 5, "batch_labelled": 4, "batch_unlabelled": 2, "start_step": 0, "num_steps": 6}
  split = options.pop("split", None) or make_split(cfg, source)
  return list(batches(cfg, source, split, **{**defaults, **options}))


def assert_same(first, second):
  assert len(first) == len(second)
  for a, b in zip(first, second, strict=True):
    for stream in ("labelled", "unlabelled"):
      assert a[stream].keys() == b[stream].keys()
      for key in a[stream]:
        np.testing.assert_array_equal(a[stream][key], b[stream][key])


def test_shapes_dtypes_and_no_label_of_unlabelled_cases(source):
  drawn = draw(source)
  assert len(drawn) == 6
  for batch in drawn:
    assert batch.keys() == {"labelled", "unlabelled"}
    assert batch["labelled"].keys() == {"image", "label", "index"} and batch["unlabelled"].keys() == {"image", "index"}
    assert batch["labelled"]["image"].shape == (4, 16, 16, 16, 1) and batch["labelled"]["image"].dtype == np.float32
    assert batch["labelled"]["label"].shape == (4, 16, 16, 16) and batch["labelled"]["label"].dtype == np.int32
    assert batch["unlabelled"]["image"].shape == (2, 16, 16, 16, 1)
    for stream, low, high in (("labelled", 0, 3), ("unlabelled", 3, 8)):
      assert batch[stream]["index"].dtype == np.int32
      assert ((batch[stream]["index"] >= low) & (batch[stream]["index"] < high)).all()


def test_every_pass_visits_each_case_once(source):
  index = np.concatenate([batch["labelled"]["index"] for batch in draw(source)])  # 24 rows, 8 passes over 3 cases
  passes = index.reshape(8, 3)
  assert (np.sort(passes, axis=1) == [0, 1, 2]).all() and len({tuple(row) for row in passes}) > 1
  unlabelled = np.concatenate([batch["unlabelled"]["index"] for batch in draw(source, num_steps=10)])
  assert (np.sort(unlabelled.reshape(4, 5), axis=1) == np.arange(3, 8)).all()


def test_resuming_at_a_step_continues_the_same_sequence(source):
  whole = draw(source)
  for start in (1, 4):
    assert_same(draw(source, start_step=start, num_steps=6 - start), whole[start:])
  assert draw(source, num_steps=0) == []


@pytest.mark.parametrize("count", [2, 4])
def test_processes_together_see_the_same_batch_in_the_same_order(source, count):
  whole = draw(source, batch_labelled=4, batch_unlabelled=4)
  shares = [draw(source, batch_labelled=4, batch_unlabelled=4, process_index=index, process_count=count) for index in range(count)]
  joined = [
    {stream: {key: np.concatenate([part[stream][key] for part in parts]) for key in parts[0][stream]} for stream in parts[0]}
    for parts in zip(*shares, strict=True)
  ]
  assert_same(joined, whole)


def test_threads_do_not_change_a_voxel(source):
  reference = draw(source, num_threads=0)
  for threads in (1, 4):
    assert_same(draw(source, num_threads=threads), reference)
  assert_same(draw(open_source(CFG)), reference)


def test_seeds_and_streams_differ(source):
  first, other = draw(source, num_steps=1)[0], draw(source, num_steps=1, seed=6)[0]
  assert not np.array_equal(first["labelled"]["image"], other["labelled"]["image"])
  cfg = dataclasses.replace(CFG, num_labelled=8)
  both = draw(source, cfg, batch_labelled=4, batch_unlabelled=4, num_steps=1)[0]
  assert not np.array_equal(both["labelled"]["image"], both["unlabelled"]["image"])


def test_all_cases_labelled_draws_their_images_as_unlabelled(source):
  cfg = dataclasses.replace(CFG, num_labelled=8)
  drawn = draw(source, cfg, num_steps=8)
  index = np.concatenate([batch["unlabelled"]["index"] for batch in drawn])
  assert set(index) == set(range(8)) and all("label" not in batch["unlabelled"] for batch in drawn)


def test_no_unlabelled_rows_and_a_batch_larger_than_the_set(source):
  cfg = dataclasses.replace(CFG, num_labelled=1)
  for batch in draw(source, cfg, batch_unlabelled=0, num_steps=2):
    assert batch["unlabelled"]["image"].shape == (0, 16, 16, 16, 1) and batch["unlabelled"]["index"].shape == (0,)
    assert (batch["labelled"]["index"] == 0).all() and len(batch["labelled"]["index"]) == 4


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"batch_labelled": 0}, "batch_labelled=0 must be at least 1"),
    ({"batch_labelled": 3, "process_count": 2}, "batch_labelled=3 .* multiple of the 2"),
    ({"batch_unlabelled": 3, "process_count": 2}, "batch_unlabelled=3"),
    ({"process_index": 1}, "process_index=1"),
    ({"seed": -1}, "seed=-1"),
    ({"seed": 2**31}, "seed="),
  ],
)
def test_wrong_numbers(source, options, message):
  with pytest.raises(InputError, match=message):
    draw(source, **options)


@pytest.mark.parametrize("patch", [(16, 16), (16, 16, 16, 16), (16, 16, 0)])
def test_patch_of_wrong_rank(source, patch):
  with pytest.raises(InputError, match=r"data\.patch=.*rank 3, such as 'phantom_000' of shape \(24, 20, 16\)"):
    draw(source, dataclasses.replace(CFG, patch=patch))


def test_an_error_while_reading_reaches_the_caller_as_it_is(source):
  class Damaged:
    def __init__(self):
      self.__dict__.update(names=source.names, channels=1, num_classes=2, class_names=source.class_names)

    def load(self, name):
      if name == "phantom_005":
        raise InputError("phantom_005 is damaged")
      return source.load(name)

  with pytest.raises(InputError, match="phantom_005 is damaged"):
    draw(Damaged(), split=make_split(CFG, source))


def test_fingerprint_changes_with_content_and_split(source, tmp_path):
  split = make_split(CFG, source)
  first = fingerprint(CFG, source, split)
  assert len(first) == 64 and first == fingerprint(CFG, open_source(CFG), split)
  assert first != fingerprint(CFG, source, Split(split.labelled[:2], split.labelled[2:] + split.unlabelled, split.evaluation, split.name))
  reseeded = dataclasses.replace(CFG, phantom=dataclasses.replace(CFG.phantom, seed=1))
  assert first != fingerprint(reseeded, open_source(reseeded), split)


def test_fingerprint_of_files_ignores_where_they_lie(tmp_path):
  h5py = pytest.importorskip("h5py")
  prints = []
  for folder, value in (("one", 0), ("two", 0), ("three", 1)):
    for name in ("a", "b"):
      (tmp_path / folder / name).mkdir(parents=True)
      with h5py.File(tmp_path / folder / name / "mri_norm2.h5", "w") as h5:
        h5["image"], h5["label"] = np.full((4, 4, 4), value, np.float32), np.zeros((4, 4, 4), np.uint8)
    cfg = DataConfig(source="la_h5", root=str(tmp_path / folder), num_labelled=1, num_holdout=1)
    source = open_source(cfg)
    prints.append(fingerprint(cfg, source, make_split(cfg, source)))
  assert prints[0] == prints[1] != prints[2]


def coordinates(*shape):
  """An image whose value names the voxel, so that a view can be traced back; 0 is left for padding."""
  image = 1 + np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
  return image[..., None], image.astype(np.uint16)


def test_weak_view_is_a_mirrored_turn_of_a_crop_and_keeps_image_and_label_together():
  image, label = coordinates(7, 8, 6)
  corners, turns = set(), set()
  for seed in range(300):
    out, mask = weak_view(image, label, (4, 4, 5), np.random.default_rng(seed))
    assert out.flags.c_contiguous and out.dtype == np.float32 and mask.dtype == np.int32
    np.testing.assert_array_equal(out[..., 0], mask)
    corner = np.unravel_index(mask.min() - 1, label.shape)
    crop = label[tuple(slice(low, low + size) for low, size in zip(corner, (4, 4, 5), strict=True))]
    found = [(k, axis) for k, axis in itertools.product(range(4), (0, 1)) if np.array_equal(np.flip(np.rot90(crop, k), axis), mask)]
    assert found
    corners.add(corner)
    turns.add(found[0])
  assert corners == set(np.ndindex(4, 5, 2)) and len(turns) == 4  # eight combinations, which are four mirror images


def test_weak_view_pads_scans_that_are_not_larger_than_the_patch():
  image, label = coordinates(4, 6, 9)
  extents = set()
  for seed in range(200):
    out, _ = weak_view(image, label, (6, 6, 4), np.random.default_rng(seed))
    assert out.shape == (6, 6, 4, 1)
    extents.add(tuple(np.unique(np.argwhere(out[..., 0] > 0)[:, axis]).size for axis in range(3)))
  # x: 4 voxels padded by (6-4)//2+3 = 4 a side, y: 6 by 3; a turn may swap them
  assert {sides[2] for sides in extents} == {4}
  assert {min(sides[:2]) for sides in extents} >= {2, 3, 4} and {max(sides[:2]) for sides in extents} >= {4, 5, 6}


def test_weak_view_of_an_oblong_patch_and_in_2d():
  image, label = coordinates(12, 12, 5)
  for seed in range(20):
    out, _ = weak_view(image, label, (8, 6, 4), np.random.default_rng(seed))
    assert out.shape == (8, 6, 4, 1)
    step = np.abs(np.diff(out[..., 0], axis=0))
    assert (step == 60).all()  # X stays X: only half turns and flips
  flat, flat_label = coordinates(9, 9)
  out, mask = weak_view(flat, flat_label, (4, 4), np.random.default_rng(0))
  assert out.shape == (4, 4, 1) and mask.shape == (4, 4)
  with pytest.raises(ValueError, match="rank"):
    weak_view(flat, flat_label, (4, 4, 4), np.random.default_rng(0))


def test_intensity_jitter_is_one_gain_and_offset_per_crop():
  image, _ = coordinates(8, 8, 8)
  plain, none = weak_view(image, None, (4, 4, 4), np.random.default_rng(3))
  assert none is None
  jittered, _ = weak_view(image, None, (4, 4, 4), np.random.default_rng(3), 0.2)
  gain, offset = np.polyfit(plain.ravel(), jittered.ravel(), 1)
  np.testing.assert_allclose(jittered, gain * plain + offset, rtol=1e-4)
  assert 0.8 <= gain <= 1.2 and abs(offset) <= 0.2 + 1e-3 and gain != 1
