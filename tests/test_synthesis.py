"""Synthetic images: pure in (seed, position), labels where something was pasted and nowhere else, the file they are kept in."""

import concurrent.futures
import dataclasses

import numpy as np
import pytest
from matplotlib import image as png

from ssl_jax.data import synthesis
from ssl_jax.data.case import Case
from ssl_jax.data.split import Split
from ssl_jax.data.synthesis import build_synthetic, choose_exemplar, exemplar_split, open_synthetic, with_exemplar
from ssl_jax.data.transforms import resize_nearest
from ssl_jax.report.figures import contact_sheet
from ssl_jax.types import DataConfig, InputError, SynthesisConfig
from tests.helpers import HANG_S

SIDES = (48, 40)
STILL = SynthesisConfig(per_background=3, scale=(1.0, 1.0), rotation_deg=0.0, shift=0.0, gain=(1.0, 1.0), offset=0.0, noise=0.0)


class Slices:
  """Slices in memory; foreground pixels are 10 + class in the first channel, everything else lies in [0, 1)."""

  class_names = ("background", "ring", "core")
  num_classes, channels, test_names = 3, 2, ()

  def __init__(self, sizes, shape=(60, 40)):
    self.cases = {}
    for number, (ring, core) in enumerate(sizes):
      image = np.random.default_rng(number).random((*shape, 2)).astype(np.float32)
      label = np.zeros(shape, np.uint8)
      label[20 : 20 + ring, 10:22] = 1
      label[20 : 20 + core, 14:18] = 2
      image[..., 0] = np.where(label > 0, 10.0 + label, image[..., 0])
      name = f"s{number}"
      self.cases[name] = Case(name, image, label, (1.0, 1.0), np.eye(4))
    self.train_names = self.names = tuple(self.cases)

  def has_label(self, name):
    return self.cases[name].label is not None

  def files(self, name):
    return ()

  def load(self, name):
    return self.cases[name]


def setup(ranges=None, sizes=((16, 10), (12, 8), (0, 0), (9, 6)), **changes):
  source = Slices(sizes)
  cfg = DataConfig(patch=SIDES, synthesis=ranges or SynthesisConfig(per_background=3), **changes)
  return cfg, source, exemplar_split(Split(("s0",), source.names[1:], ("v0",), "dev"), "s0")


def assert_same(ours, expected):
  for one, other in zip(ours, expected, strict=True):
    np.testing.assert_array_equal(one, other)


def test_items_depend_on_seed_and_position_alone():
  made = open_synthetic(*setup(), seed=5)
  assert len(made) == 3 * 3
  image, label = made[4]
  assert image.shape == (*SIDES, 2) and image.dtype == np.float32 and label.shape == SIDES and label.dtype == np.uint8
  alone = [made[i] for i in range(len(made))]
  again = open_synthetic(*setup(), seed=5)
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    backwards = list(pool.map(again.__getitem__, reversed(range(9))))[::-1]
  for one, other in zip(alone, backwards, strict=True):
    assert_same(one, other)
  assert all(not np.array_equal(alone[i][0], alone[j][0]) for i in range(9) for j in range(i))
  assert not np.array_equal(open_synthetic(*setup(), seed=6)[4][0], image)
  with pytest.raises(IndexError):
    made[9]


def test_label_only_where_pasted_and_background_elsewhere():
  """With every range closed but the flips, an image is a flipped background with the flipped exemplar's classes in it."""
  cfg, source, split = setup(STILL)
  made = open_synthetic(cfg, source, split, seed=1)
  exemplar = resize_nearest(source.cases["s0"].image, SIDES), resize_nearest(source.cases["s0"].label, SIDES)
  kinds = set()
  for i in range(len(made)):
    image, label = made[i]
    flips = [(slice(None, None, x), slice(None, None, y)) for x in (1, -1) for y in (1, -1)]
    (pasted,) = [k for k, flip in enumerate(flips) if np.array_equal(exemplar[1][flip], label)]
    background = resize_nearest(source.cases[split.unlabelled[i // 3]].image, SIDES)
    (behind,) = [k for k, flip in enumerate(flips) if np.allclose(background[flip][label == 0], image[label == 0], atol=1e-5)]
    np.testing.assert_allclose(image[label > 0], exemplar[0][flips[pasted]][label > 0], atol=1e-5)
    kinds.add((pasted, behind))
  assert len(kinds) > 3 and any(a != b for a, b in kinds), "flips of exemplar and background are drawn apart"


def test_image_and_label_move_together_and_every_class_stays():
  ranges = dataclasses.replace(STILL, per_background=40, scale=(0.7, 1.3), rotation_deg=30.0, shift=0.5)
  cfg, source, split = setup(ranges, sizes=((16, 10), (0, 0)))
  made, true = open_synthetic(cfg, source, split, seed=2), resize_nearest(source.cases["s0"].label, SIDES)
  areas, centres = [], []
  for i in range(len(made)):
    image, label = made[i]
    assert set(np.unique(label)) == {0, 1, 2}
    inside = (label == 2) & (np.abs(image[..., 0] - 12.0) < 0.01)
    assert inside.sum() > 0.3 * (label == 2).sum() and image[label == 0][:, 0].max() < 1.01, "values of a class only under its label"
    areas.append((label > 0).sum() / (true > 0).sum())
    centres.append(np.argwhere(label > 0).mean(axis=0))
  assert 0.42 < min(areas) < 0.65 and 1.4 < max(areas) < 1.8  # 0.7² and 1.3²: no class is cut by the edge, far as it may shift
  assert np.std(centres, axis=0).min() > 4


def test_intensity_is_drawn_apart_for_exemplar_and_background():
  ranges = dataclasses.replace(STILL, per_background=30, gain=(0.8, 1.2), offset=0.1)
  cfg, source, split = setup(ranges, sizes=((16, 10), (0, 0)))
  made = open_synthetic(cfg, source, split, seed=3)
  source.cases["s1"].image[...] = 0.5
  source.cases["s1"].image[0, 0] = 1.5  # gives the gain away
  gains, own = [], []
  for i in range(len(made)):
    image, label = made[i]
    ring, core = (image[label == k][:, 0].mean() for k in (1, 2))
    own.append((core - ring, ring - 11 * (core - ring)))
    gains.append((image[..., 1][label == 0].max() - np.median(image[..., 1][label == 0]), np.median(image[..., 1][label == 0])))
  gain, offset = np.transpose(own)
  assert 0.8 <= gain.min() < 0.87 and 1.13 < gain.max() <= 1.2 and np.abs(offset).max() < 0.1001
  assert abs(np.corrcoef(gain, [g for g, _ in gains])[0, 1]) < 0.5
  noisy = open_synthetic(*setup(dataclasses.replace(STILL, noise=0.3))[:3], seed=1)[0]
  calm = open_synthetic(*setup(STILL)[:3], seed=1)[0]
  assert np.std(noisy[0] - calm[0]) == pytest.approx(0.3, rel=0.05)


def test_labels_of_backgrounds_are_not_read():
  cfg, source, split = setup()
  expected = open_synthetic(cfg, source, split, seed=1)[0]
  source.cases["s1"] = dataclasses.replace(source.cases["s1"], label=None)
  assert_same(open_synthetic(cfg, source, split, seed=1)[0], expected)


def test_choice_of_the_exemplar():
  # Smallest classes: core of 5 rows, none, core of 9, ring of 2 (12 rows minus core), core of 9 again.
  source = Slices([(12, 5), (14, 0), (14, 9), (3, 1), (16, 9)])
  assert [choose_exemplar(source, source.names, 3, rank) for rank in range(4)] == ["s2", "s4", "s0", "s3"]
  assert choose_exemplar(source, ("s3", "s0"), 3) == "s0"
  source.cases["s2"] = dataclasses.replace(source.cases["s2"], label=None)
  assert choose_exemplar(source, source.names, 3) == "s4"
  with pytest.raises(InputError, match=r"exemplar_rank=3 .* 3"):
    choose_exemplar(source, source.names, 3, 3)
  with pytest.raises(InputError, match="none has core"):
    choose_exemplar(source, ("s1",), 3)
  source.cases["s0"].label[source.cases["s0"].label == 1] = 0
  with pytest.raises(InputError, match="each lacks some class"):
    choose_exemplar(source, ("s0", "s1"), 3)


def test_size_counts_relative_to_the_slice():
  source = Slices([(12, 5)])
  source.cases["wide"] = dataclasses.replace(Slices([(14, 6)], shape=(60, 80)).cases["s0"], name="wide")
  assert choose_exemplar(source, ("wide", "s0"), 3) == "s0"


def test_split_of_the_exemplar():
  split = Split(("a", "b"), ("c", "d"), ("v",), "official")
  assert exemplar_split(split, "c") == Split(("c",), ("a", "b", "d"), ("v",), "official")
  with pytest.raises(InputError, match="'v'"):
    exemplar_split(split, "v")
  cfg, source, _ = setup(SynthesisConfig(exemplar_rank=1))
  everything = Split(("s2",), ("s0", "s1", "s3"), (), "dev")
  assert with_exemplar(cfg, source, everything).labelled == ("s1",)
  named = dataclasses.replace(cfg, synthesis=SynthesisConfig(exemplar="s3"))
  assert with_exemplar(named, source, everything) == Split(("s3",), ("s2", "s0", "s1"), (), "dev")


@pytest.mark.parametrize(
  ("ranges", "message"),
  [
    ({"per_background": 0}, r"data\.synthesis\.per_background=0"),
    ({"scale": (0.0, 1.0)}, r"data\.synthesis\.scale"),
    ({"gain": (1.2, 0.8)}, r"data\.synthesis\.gain"),
    ({"noise": -1.0}, r"data\.synthesis\.noise"),
  ],
)
def test_ranges_are_checked(ranges, message):
  with pytest.raises(InputError, match=message):
    open_synthetic(*setup(dataclasses.replace(STILL, **ranges)), seed=0)


def test_what_it_cannot_work_with():
  cfg, source, split = setup()
  for labelled, unlabelled in ((("s0", "s1"), ("s2",)), (("s0",), ())):
    with pytest.raises(InputError, match="one labelled slice"):
      open_synthetic(cfg, source, dataclasses.replace(split, labelled=labelled, unlabelled=unlabelled), seed=0)
  with pytest.raises(InputError, match="'s2' has no ring"):
    open_synthetic(cfg, source, exemplar_split(split, "s2"), seed=0)
  source.cases["s0"] = dataclasses.replace(source.cases["s0"], image=np.zeros((4, 4, 4, 1), np.float32))
  with pytest.raises(InputError, match=r"data\.slices"):
    open_synthetic(cfg, source, split, seed=0)


def test_file_holds_the_images_and_is_made_once(tmp_path, monkeypatch):
  arguments = setup()
  made = open_synthetic(*arguments, seed=5)
  first = build_synthetic(*arguments, 5, tmp_path, draw=contact_sheet)
  assert len(first) == len(made) and png.imread(tmp_path / "synthetic.png").ndim == 3
  for i in range(len(made)):
    (image, label), (true_image, true_label) = first[i], made[i]
    assert image.dtype == np.float32 and np.abs(image - true_image).max() <= np.ptp(true_image) / 509
    np.testing.assert_array_equal(label, true_label)
  with pytest.raises(IndexError):
    first[len(made)]
  assert sorted(path.suffix for path in tmp_path.iterdir()) == [".npy", ".png"], "nothing unfinished is left"

  monkeypatch.setattr(synthesis.Synthetic, "__getitem__", lambda self, index: pytest.fail("made again"))
  again = build_synthetic(*arguments, 5, tmp_path)
  assert_same(again[7], first[7])
  assert_same(build_synthetic(*arguments, 5, tmp_path, process_index=1)[7], first[7])


def test_other_settings_and_data_are_another_file(tmp_path):
  cfg, source, split = setup()
  for seed, options in ((5, {}), (6, {}), (5, {"noise": 0.1})):
    build_synthetic(dataclasses.replace(cfg, synthesis=dataclasses.replace(cfg.synthesis, **options)), source, split, seed, tmp_path)
  build_synthetic(cfg, source, exemplar_split(split, "s1"), 5, tmp_path)
  source.cases["s3"].image[0, 0] += 1
  build_synthetic(cfg, source, split, 5, tmp_path)
  assert len(list(tmp_path.iterdir())) == 5
  build_synthetic(dataclasses.replace(cfg, root="elsewhere"), source, split, 5, tmp_path)
  assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize("damage", [lambda data: data[:-100], lambda data: data[:10], lambda data: b""])
def test_damaged_file_is_made_again(tmp_path, damage):
  arguments = setup()
  expected = [np.copy(array) for array in build_synthetic(*arguments, 5, tmp_path)[8]]
  (file,) = tmp_path.iterdir()
  file.write_bytes(damage(file.read_bytes()))
  assert_same(build_synthetic(*arguments, 5, tmp_path)[8], expected)


def test_other_processes_wait(tmp_path):
  arguments = setup()
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    waiting = pool.submit(build_synthetic, *arguments, 5, tmp_path, process_index=1)
    first = build_synthetic(*arguments, 5, tmp_path)
    assert_same(waiting.result(timeout=HANG_S)[3], first[3])
  with pytest.raises(InputError, match="process 0"):
    build_synthetic(*arguments, 6, tmp_path, process_index=1, wait_s=0.0)


def test_failure_leaves_nothing_behind(tmp_path, monkeypatch):
  def fail(self, index):
    raise InputError("damaged slice")

  monkeypatch.setattr(synthesis.Synthetic, "__getitem__", fail)
  with pytest.raises(InputError, match="damaged slice"):
    build_synthetic(*setup(), 5, tmp_path)
  assert not list(tmp_path.iterdir())
