"""Slices of volumes: the source, the split by patient, weak views, the stream of synthetic images, slice-wise prediction."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from configs import common
from ssl_jax import config
from ssl_jax.data import batches, make_split, open_source
from ssl_jax.data.slices import SliceSource
from ssl_jax.data.transforms import draw_view, resize_nearest, turn_and_flip
from ssl_jax.experiment import open_experiment
from ssl_jax.inference import SliceWise
from ssl_jax.types import Config, DataConfig, InputError, PhantomConfig
from tests.helpers import tiny_config, with_train, write_msd

CASES = {f"patient{p}_frame{f}": (17 + p, 21 - p, 2 + f) for p in (1, 2, 3, 4) for f in (1, 2)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  return write_msd(tmp_path_factory.mktemp("acdc"), CASES, channels=2, classes=4)


@pytest.fixture
def cfg(root):
  return DataConfig(root=str(root), slices=True, patch=(16, 12), view="resize", num_labelled=5, num_holdout=2)


def written(folder, cfg, *lines, name="slices.list"):
  (folder / name).write_text("\n".join(lines))
  return dataclasses.replace(cfg, slice_list=name)


def test_slices_are_the_volumes_planes_in_order(cfg):
  source = open_source(cfg)
  assert isinstance(source, SliceSource)
  assert source.train_names == tuple(f"{name}_slice_{k}" for name, sides in CASES.items() for k in range(1, sides[2] + 1))
  assert source.test_names == () and source.names == source.train_names + tuple(CASES)
  volume = source.load("patient2_frame2")
  assert volume.image.shape == (19, 19, 4, 2)
  case = source.load("patient2_frame2_slice_3")
  np.testing.assert_array_equal(case.image, volume.image[:, :, 2])
  np.testing.assert_array_equal(case.label, volume.label[:, :, 2])
  assert case.image.flags.c_contiguous and case.label.flags.c_contiguous and case.label.dtype == np.uint8
  assert case.spacing == (1.5, 1.5)
  np.testing.assert_allclose(case.affine @ [4, 5, 0, 1], volume.affine @ [4, 5, 2, 1])
  assert source.has_label("patient2_frame2_slice_3") and source.files("patient2_frame2_slice_3") == source.files("patient2_frame2")


def test_downsampling_keeps_slices_apart_and_normalisation_is_the_volume_s(cfg):
  source = open_source(dataclasses.replace(cfg, downsample=2, normalise="zscore"))
  volume = source.load("patient1_frame2")
  assert volume.image.shape == (9, 10, 4, 2) and volume.spacing == (3.0, 3.0, 8.0)
  np.testing.assert_allclose(volume.image.mean((0, 1, 2)), 0, atol=1e-5)
  raw = open_source(cfg).load("patient1_frame2").image[:18, :20].reshape(9, 2, 10, 2, 4, 2).mean((1, 3))
  np.testing.assert_allclose(volume.image, (raw - raw.mean((0, 1, 2))) / raw.std((0, 1, 2)), atol=1e-4)
  np.testing.assert_array_equal(source.load("patient1_frame2_slice_4").image, volume.image[:, :, 3])


def test_a_list_gives_the_order_and_a_volume_without_a_label_is_unlabelled(root, tmp_path, cfg):
  folder = write_msd(tmp_path, {name: CASES[name] for name in list(CASES)[:3]}, channels=2, classes=4)
  (folder / "labelsTr" / "patient1_frame1.nii.gz").unlink()
  listed = ("patient1_frame2_slice_2", "patient1_frame1_slice_1", "patient1_frame2_slice_1")
  cfg = dataclasses.replace(written(folder, cfg, *listed), root=str(folder), num_labelled=2, num_holdout=0)
  source = open_source(cfg)
  assert source.train_names == listed and not source.has_label(listed[1]) and source.load(listed[1]).label is None
  split = make_split(cfg, source)
  assert split.labelled == (listed[0], listed[2]) and split.unlabelled == (listed[1],)


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("patient9_frame1_slice_1", r"slices\.list: .*'patient9_frame1' is no training volume; did you mean 'patient"),
    ("patient4_frame2_slice_1", r"slices\.list: .*'patient4_frame2' is a test volume"),
    ("patient1_frame1", "is no slice; write <case>_slice_<k>"),
    ("patient1_frame1_slice_0", "counted from 1"),
  ],
)
def test_a_list_with_a_wrong_line(tmp_path, cfg, line, message):
  folder = write_msd(tmp_path, CASES, channels=2, classes=4)
  (folder / "test.list").write_text("patient4_frame2")
  with pytest.raises(InputError, match=message):
    open_source(dataclasses.replace(written(folder, cfg, line), root=str(folder)))


def test_a_slice_beyond_the_volume_and_a_list_that_is_not_there(root, cfg):
  cfg = written(root, cfg, "patient1_frame1_slice_4", name="beyond.list")
  with pytest.raises(InputError, match="'patient1_frame1_slice_4' is not there, 'patient1_frame1' has 3 slices"):
    open_source(cfg).load("patient1_frame1_slice_4")
  with pytest.raises(InputError, match=r"data\.slice_list: .*none\.list does not exist"):
    open_source(dataclasses.replace(cfg, slice_list="none.list"))


def test_split_counts_slices_as_labelled_and_volumes_as_held_out(cfg):
  source = open_source(cfg)
  split = make_split(cfg, source)
  assert split.labelled == source.train_names[:5]  # all of frame 1, two of frame 2: the rest of the frame is unlabelled, as published
  assert split.evaluation == ("patient4_frame1", "patient4_frame2")
  assert split.unlabelled == source.train_names[5:21] and not any("patient4" in name for name in split.unlabelled)
  one = make_split(dataclasses.replace(cfg, num_holdout=1), source)
  assert one.evaluation == ("patient4_frame2",) and one.unlabelled == split.unlabelled  # frame 1 is of the same patient
  with pytest.raises(InputError, match="num_labelled=22 is more than the 21"):
    make_split(dataclasses.replace(cfg, num_labelled=22), source)
  with pytest.raises(InputError, match="num_holdout=8 must be .* below the 8"):
    make_split(dataclasses.replace(cfg, num_holdout=8), source)


def test_split_of_volumes_keeps_patients_apart_too(cfg):
  cfg = dataclasses.replace(cfg, slices=False, num_labelled=2, num_holdout=3)
  split = make_split(cfg, open_source(cfg))
  assert split.evaluation == ("patient3_frame2", "patient4_frame1", "patient4_frame2")
  assert split.labelled + split.unlabelled == tuple(list(CASES)[:4])


def test_official_split_evaluates_the_test_volumes(tmp_path, cfg):
  folder = write_msd(tmp_path, CASES, channels=2, classes=4)
  (folder / "val.list").write_text("patient3_frame1\npatient3_frame2")
  cfg = dataclasses.replace(cfg, root=str(folder), split="official", test_list="val.list")
  source = open_source(cfg)
  split = make_split(cfg, source)
  assert split.evaluation == ("patient3_frame1", "patient3_frame2")
  assert not any("patient3" in name for name in split.labelled + split.unlabelled) and len(split.unlabelled) == 3 * 7 - 5


def test_resize_is_scipy_s_nearest_zoom():
  rng = np.random.default_rng(1)
  for shape, target in itertools.product([(45, 37), (7, 50), (1, 9), (64, 64)], [(32, 32), (50, 41), (1, 64), (45, 37), (200, 3)]):
    array = rng.integers(0, 255, shape).astype(np.uint8)
    expected = ndimage.zoom(array, np.array(target) / shape, order=0, mode="nearest")
    np.testing.assert_array_equal(resize_nearest(array, target), expected)
    assert resize_nearest(array, target).dtype == np.uint8
    both = resize_nearest(np.stack([array, 255 - array], -1), target)  # trailing axes stay
    np.testing.assert_array_equal(both[..., 1], 255 - expected)
  assert resize_nearest(array, array.shape) is array


def test_view_none_only_resizes():
  image = np.random.default_rng(0).normal(size=(11, 14, 2)).astype(np.float32)
  label = (image[..., 0] > 0).astype(np.uint8)
  out, mask = draw_view("none", image, label, (8, 16), np.random.default_rng(0))
  np.testing.assert_array_equal(out, resize_nearest(image, (8, 16)))
  np.testing.assert_array_equal(mask, resize_nearest(label, (8, 16)))
  assert mask.dtype == np.int32 and out.flags.c_contiguous
  assert draw_view("none", image, None, (8, 16), np.random.default_rng(0))[1] is None


def test_view_resize_turns_image_and_label_together_at_the_published_rates():
  label = np.arange(1, 1 + 12 * 15, dtype=np.uint8).reshape(12, 15)
  image = label[..., None].astype(np.float32)
  mirrored = [np.flip(np.rot90(label, k), axis) for k, axis in itertools.product(range(4), (0, 1))]
  counts = {"mirrored": 0, "turned": 0, "kept": 0}
  for seed in range(400):
    out, mask = draw_view("resize", image, label, (10, 10), np.random.default_rng(seed))
    np.testing.assert_array_equal(out[..., 0], mask)
    np.testing.assert_array_equal(mask, draw_view("resize", image, label, (10, 10), np.random.default_rng(seed))[1])
    turned = turn_and_flip([image, label], np.random.default_rng(seed))
    np.testing.assert_array_equal(mask, resize_nearest(turned[1], (10, 10)))
    kind = "mirrored" if any(np.array_equal(turned[1], m) for m in mirrored) else "kept" if np.array_equal(turned[1], label) else "turned"
    counts[kind] += 1
    if kind == "turned":
      assert turned[1].shape == label.shape and turned[1][6, 7] in label[5:8, 6:9]  # about the centre
  # ½, ¼, ¼; a few of the smallest angles move no pixel and count as kept. Four standard deviations.
  assert abs(counts["mirrored"] - 200) < 40 and abs(counts["turned"] - 90) < 40 and abs(counts["kept"] - 110) < 40


def test_angles_stay_within_20_degrees():
  line = np.zeros((101, 101), np.uint8)
  line[:, 50] = 1
  angles = []
  for seed in range(200):
    points = np.argwhere(turn_and_flip([line], np.random.default_rng(seed))[0])
    upright = np.ptp(points[:, 0]) > 60  # else a quarter turn has laid the line down
    angles.append(np.degrees(np.arctan(np.polyfit(points[:, 0], points[:, 1], 1)[0])) if upright else 0.0)
  assert 15 < np.max(np.abs(angles)) < 20.5 and np.min(angles) < -10 and np.max(angles) > 10


class Numbers:
  """Synthetic images whose voxels name them."""

  def __len__(self):
    return 7

  def __getitem__(self, i):
    return np.full((16, 12, 2), i, np.float32), np.full((16, 12), i % 4, np.uint8)


def draw(cfg, source, **options):
  defaults = {"seed": 3, "batch_labelled": 4, "batch_unlabelled": 2, "start_step": 0, "num_steps": 7}
  return list(batches(cfg, source, make_split(cfg, source), **{**defaults, **options}))


def test_batches_of_slices(cfg):
  source = open_source(cfg)
  for view in ("resize", "none"):
    batch = draw(dataclasses.replace(cfg, view=view), source)[0]
    assert batch.keys() == {"labelled", "unlabelled"} and batch["labelled"]["image"].shape == (4, 16, 12, 2)
    assert batch["labelled"]["label"].shape == (4, 16, 12) and batch["labelled"]["label"].max() <= 3
    assert batch["unlabelled"]["image"].shape == (2, 16, 12, 2) and "label" not in batch["unlabelled"]
  index, name = batch["labelled"]["index"][0], source.train_names[batch["labelled"]["index"][0]]
  np.testing.assert_array_equal(batch["labelled"]["image"][0], resize_nearest(source.load(name).image, (16, 12)))
  assert index < 5


def test_synthetic_stream_resumes_divides_and_leaves_the_others_alone(cfg):
  source, extra = open_source(cfg), {"synthetic": Numbers(), "batch_synthetic": 4}
  plain, whole = draw(cfg, source), draw(cfg, source, **extra)
  index = np.concatenate([batch["synthetic"]["index"] for batch in whole])
  assert (np.sort(index.reshape(4, 7), axis=1) == np.arange(7)).all()  # every pass visits each once
  for batch, without in zip(whole, plain, strict=True):
    part = batch["synthetic"]
    assert part["image"].shape == (4, 16, 12, 2) and part["label"].dtype == np.int32 and part["index"].dtype == np.int32
    assert (part["image"][:, 0, 0, 0] == part["index"]).all() and (part["label"][:, 0, 0] == part["index"] % 4).all()
    for stream in without:
      for key in without[stream]:
        np.testing.assert_array_equal(batch[stream][key], without[stream][key])
  resumed = draw(cfg, source, start_step=3, num_steps=4, num_threads=0, **extra)
  np.testing.assert_array_equal(np.concatenate([batch["synthetic"]["index"] for batch in resumed]), index[12:])
  shares = [draw(cfg, source, process_index=p, process_count=2, **extra) for p in (0, 1)]
  joined = [np.concatenate([part["synthetic"]["index"] for part in parts]) for parts in zip(*shares, strict=True)]
  np.testing.assert_array_equal(np.concatenate(joined), index)
  other = np.concatenate([batch["synthetic"]["index"] for batch in draw(cfg, source, seed=4, **extra)])
  assert not np.array_equal(other, index)
  with pytest.raises(InputError, match="batch_synthetic=4, but this method makes no synthetic images"):
    draw(cfg, source, batch_synthetic=4)
  with pytest.raises(InputError, match=r"batch_synthetic=3 .* multiple of the 2"):
    draw(cfg, source, synthetic=Numbers(), batch_synthetic=3, process_count=2)


def test_batch_spec_has_the_synthetic_half_when_it_is_asked_for():
  cfg = tiny_config("supervised", source="phantom", slices=True, patch=(16, 16), view="resize")
  assert open_experiment(cfg).batch_spec.keys() == {"labelled", "unlabelled"}
  spec = open_experiment(with_train(tiny_config("cmems"), batch_synthetic=6)).batch_spec
  assert {key: array.shape for key, array in spec["synthetic"].items()} == {"image": (6, 16, 16, 1), "index": (6,), "label": (6, 16, 16)}


def test_slice_wise_prediction_is_a_loop_over_slices():
  image = np.random.default_rng(2).normal(size=(19, 14, 5, 2)).astype(np.float32)
  weights = np.array([[0.5, -1.0, 2.0], [1.0, 0.25, -0.5]], np.float32)
  traced = []

  def network(state, x):
    traced.append(x.shape)
    blurred = (x + jnp.roll(x, 1, axis=1) + jnp.roll(x, 1, axis=2)) / 3  # depends on the neighbours, so resizing matters
    return (blurred @ state).astype(jnp.bfloat16)

  expected = np.zeros((19, 14, 5, 3), np.float32)
  for z in range(5):
    x = ndimage.zoom(image[:, :, z], (8 / 19, 16 / 14, 1), order=0, mode="nearest")
    y = (x + np.roll(x, 1, 0) + np.roll(x, 1, 1)) / 3 @ weights
    expected[:, :, z] = ndimage.zoom(y, (19 / 8, 14 / 16, 1), order=0, mode="nearest")
  predict = SliceWise(network, patch=(8, 16), window_batch=3)
  predict.reserve([(19, 14, 5)])
  found = predict(weights, image)
  assert found.dtype == np.float32 and found.shape == expected.shape
  np.testing.assert_allclose(found, expected, rtol=0.02, atol=0.02)
  np.testing.assert_array_equal(predict(weights, image[:, :, 4]), found[:, :, 4])
  np.testing.assert_array_equal(predict(weights, image[:, :, 3:]), found[:, :, 3:])
  assert traced == [(3, 8, 16, 2)]  # one compilation for volumes and images of any size
  with pytest.raises(InputError, match="shape"):
    predict(weights, image[0, 0])
  for wrong in ({"patch": (8, 8, 8)}, {"patch": (8, 8), "window_batch": 0}):
    with pytest.raises(InputError):
      SliceWise(network, **wrong)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"slices": True}, r"config\.data\.slices: slices need a patch of two sides"),
    ({"patch": (16, 16), "slices": True}, r"config\.data\.view: .*'resize' or 'none'"),
    ({"view": "resize"}, r"config\.data\.view"),
  ],
)
def test_configurations_that_make_no_sense(changes, message):
  with pytest.raises(InputError, match=message):
    tiny_config("supervised", **changes)


def test_a_2d_patch_needs_slices_and_slices_need_volumes():
  with pytest.raises(InputError, match=r"rank 3, .*; set config\.data\.slices=True"):
    open_experiment(tiny_config("supervised", patch=(16, 16), view="resize"))
  flat = DataConfig(source="phantom", slices=True, patch=(16, 16), phantom=PhantomConfig(shape=(24, 24), num_train=2))
  with pytest.raises(InputError, match=r"config\.data\.slices=True needs volumes"):
    open_source(flat)


def test_stride_means_nothing_in_2d():
  raw = common.base("supervised")
  raw.data.update(patch=(16, 16), view="resize", slices=True)
  for stride in ((), (18, 18, 4)):
    raw.eval.stride = stride
    assert config.check(config.parse(Config, raw.to_dict())).eval.stride == stride
