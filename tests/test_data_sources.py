"""Sources on disk, their errors, preprocessing and splits."""

import dataclasses
import json
import os
import sys
import threading
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest

from ssl_jax.data import Case, make_split, open_source, prepare_la
from ssl_jax.data import __main__ as command_line
from ssl_jax.data.la import crop_box
from ssl_jax.data.preprocess import downsample_case, zscore_case
from ssl_jax.data.sources import CachedSource
from ssl_jax.types import DataConfig, InputError

SHARED = Path(os.environ.get("SSL_JAX_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
NEW_JSON = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "organ": 1}, "numTraining": 4, "file_ending": ".nii.gz"}
AFFINE = np.array([[0.5, 0, 0, 10], [0, 0.75, 0, -20], [0, 0, 2.0, 5], [0, 0, 0, 1]])


def write_nifti(file: Path, array: np.ndarray) -> None:
  file.parent.mkdir(parents=True, exist_ok=True)
  nib.save(nib.Nifti1Image(array, AFFINE), file)


def write_folder(root: Path, names=("a", "b", "c", "d"), unlabelled=(), description=NEW_JSON, suffix="") -> DataConfig:
  rng = np.random.default_rng(0)
  for name in names:
    write_nifti(root / "imagesTr" / f"{name}{suffix}.nii.gz", rng.normal(size=(8, 9, 10)).astype(np.float32))
    if name not in unlabelled:
      write_nifti(root / "labelsTr" / f"{name}.nii.gz", rng.integers(0, 2, (8, 9, 10)).astype(np.uint8))
  (root / "dataset.json").write_text(json.dumps(description))
  return DataConfig(source="msd", root=str(root), num_labelled=1, num_holdout=1, patch=(8, 8, 8))


def write_h5(root: Path, name: str, image: np.ndarray, label: np.ndarray | None) -> Path:
  file = root / name / "mri_norm2.h5"
  file.parent.mkdir(parents=True, exist_ok=True)
  with h5py.File(file, "w") as h5:
    h5["image"] = image
    if label is not None:
      h5["label"] = label
  return file


def write_raw(root: Path, name: str, seed: int, with_label: bool = True) -> tuple[np.ndarray, np.ndarray]:
  nrrd = pytest.importorskip("nrrd")
  rng = np.random.default_rng(seed)
  image = rng.integers(0, 255, (190, 180, 12)).astype(np.uint8)
  label = np.zeros_like(image)
  label[60:130, 70:110, 3:9] = 255
  (root / name).mkdir(parents=True)
  header = {"space": "left-posterior-superior", "space directions": np.eye(3) * 0.625, "space origin": np.zeros(3)}
  nrrd.write(str(root / name / "lgemri.nrrd"), image, header)
  if with_label:
    nrrd.write(str(root / name / "laendo.nrrd"), label, header)
  return image, label


@pytest.mark.parametrize("suffix", ["", "_0000"])
def test_new_form_and_unlabelled_cases(tmp_path, suffix):
  cfg = write_folder(tmp_path, unlabelled=("b",), suffix=suffix)
  source = open_source(cfg)
  assert source.names == ("a", "b", "c", "d")
  assert (source.channels, source.num_classes, source.class_names) == (1, 2, ("background", "organ"))
  case = source.load("a")
  assert case.image.shape == (8, 9, 10, 1) and case.image.dtype == np.float32
  assert case.label.shape == (8, 9, 10) and case.label.dtype == np.uint8
  np.testing.assert_allclose(case.spacing, (0.5, 0.75, 2.0))
  np.testing.assert_allclose(case.affine, AFFINE)
  assert source.load("b").label is None and not source.has_label("b")
  assert not case.image.flags.writeable


def test_old_form_with_training_entries_and_hidden_files(tmp_path):
  names = ("la_003", "la_004")
  description = {
    "modality": {"0": "MRI"},
    "labels": {"0": "background", "1": "left atrium"},
    "training": [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in names],
    "test": ["./imagesTs/la_001.nii.gz"],
  }
  cfg = write_folder(tmp_path, names, description=description)
  (tmp_path / "imagesTr" / "._la_003.nii.gz").write_bytes(b"\x00\x05\x16\x07")  # as in the MSD archives
  source = open_source(cfg)
  assert source.names == names and source.class_names == ("background", "left atrium")
  assert source.load("la_003").label is not None


def test_several_channels_as_files_and_as_last_axis(tmp_path):
  description = {**NEW_JSON, "channel_names": {"0": "T1", "1": "T2"}}
  volumes = np.random.default_rng(0).normal(size=(4, 5, 6, 2)).astype(np.float32)
  for root, name in ((tmp_path / "files", "x"), (tmp_path / "axis", "x")):
    write_nifti(root / "labelsTr" / f"{name}.nii.gz", np.zeros((4, 5, 6), np.uint8))
    (root / "dataset.json").write_text(json.dumps(description))
  for channel in range(2):
    write_nifti(tmp_path / "files" / "imagesTr" / f"x_{channel:04d}.nii.gz", volumes[..., channel])
  write_nifti(tmp_path / "axis" / "imagesTr" / "x.nii.gz", volumes)
  for root in ("files", "axis"):
    case = open_source(DataConfig(root=str(tmp_path / root))).load("x")
    np.testing.assert_array_equal(case.image, volumes)
    assert len(case.spacing) == 3
  (tmp_path / "files" / "imagesTr" / "x_0001.nii.gz").unlink()
  with pytest.raises(InputError, match=r"case 'x' lacks channel file x_0001"):
    open_source(DataConfig(root=str(tmp_path / "files")))
  write_nifti(tmp_path / "axis" / "imagesTr" / "x.nii.gz", volumes[..., 0])
  with pytest.raises(InputError, match=r"does not hold the 2 channel"):
    open_source(DataConfig(root=str(tmp_path / "axis"))).load("x")


def test_four_digits_in_a_case_name_are_no_channel_when_a_label_has_the_same_name(tmp_path):
  source = open_source(write_folder(tmp_path, ("case_0000", "case_0001", "case_2018")))
  assert source.names == ("case_0000", "case_0001", "case_2018")


def test_intensity_scaling_of_the_header_is_applied(tmp_path):
  cfg = write_folder(tmp_path)
  scan = nib.Nifti1Image(np.arange(8 * 9 * 10, dtype=np.uint8).reshape(8, 9, 10), AFFINE)
  scan.header.set_slope_inter(0.5, -3.0)
  nib.save(scan, tmp_path / "imagesTr" / "a.nii.gz")
  expected = nib.load(tmp_path / "imagesTr" / "a.nii.gz").get_fdata()
  assert expected.min() == -3.0
  np.testing.assert_allclose(open_source(cfg).load("a").image[..., 0], expected, rtol=1e-6)


def test_lists_order_the_cases(tmp_path):
  cfg = write_folder(tmp_path)
  (tmp_path / "train.list").write_text("c\na\n\n")
  (tmp_path / "test.list").write_text("d\n")
  source = open_source(cfg)
  assert (source.train_names, source.test_names) == (("c", "a"), ("d",))
  split = make_split(dataclasses.replace(cfg, split="official"), source)
  assert (split.labelled, split.unlabelled, split.evaluation) == (("c",), ("a",), ("d",))


def test_labelled_test_folder_is_the_official_test_set(tmp_path):
  cfg = dataclasses.replace(write_folder(tmp_path), split="official")
  write_nifti(tmp_path / "imagesTs" / "t.nii.gz", np.zeros((8, 9, 10), np.float32))
  write_nifti(tmp_path / "imagesTs" / "bare.nii.gz", np.zeros((8, 9, 10), np.float32))
  write_nifti(tmp_path / "labelsTs" / "t.nii.gz", np.zeros((8, 9, 10), np.uint8))
  source = open_source(cfg)
  assert make_split(cfg, source).evaluation == ("t",)
  assert source.load("t").label is not None


@pytest.mark.parametrize("entry", ["../a", "/etc/passwd", "x/../../a", "..\\a", "C:\\a"])
def test_list_entry_that_escapes_the_root(tmp_path, entry):
  cfg = write_folder(tmp_path)
  (tmp_path / "train.list").write_text(f"a\n{entry}\n")
  with pytest.raises(InputError, match=r"train\.list.*leads out of the data folder"):
    open_source(cfg)


def test_training_entry_that_escapes_the_root(tmp_path):
  cfg = write_folder(tmp_path, description={**NEW_JSON, "training": [{"image": "../../a.nii.gz"}]})
  with pytest.raises(InputError, match=r"dataset\.json.*leads out of the data folder"):
    open_source(cfg)


def test_wrong_lists(tmp_path):
  cfg = write_folder(tmp_path, ("alpha", "beta"))
  train = tmp_path / "train.list"
  train.write_text("alpha\nbeto\n")
  with pytest.raises(InputError, match=r"1 of 2 entries have no data .* first 'beto' \(nearest: 'beta'\)"):
    open_source(cfg)
  train.write_text("alpha\nalpha\n")
  with pytest.raises(InputError, match="'alpha' is listed more than once"):
    open_source(cfg)
  train.write_text("alpha\nbeta\n")
  (tmp_path / "test.list").write_text("beta\n")
  with pytest.raises(InputError, match="'beta' is in both"):
    open_source(cfg)
  with pytest.raises(InputError, match=r"data\.test_list: .*val\.list does not exist"):
    open_source(dataclasses.replace(cfg, test_list="val.list"))


@pytest.mark.parametrize(
  ("source", "words"),
  [("msd", "medicaldecathlon"), ("la_h5", "prepare la"), ("la_nrrd", "atriaseg2018")],
)
def test_missing_root_says_what_it_is_and_where_it_is_had(tmp_path, source, words):
  for root, problem in ((str(tmp_path / "nowhere"), "is no folder"), ("", "is not set")):
    with pytest.raises(InputError, match=problem) as caught:
      open_source(DataConfig(source=source, root=root))
    assert words in str(caught.value) and "--config=configs/quickstart.py" in str(caught.value)


@pytest.mark.parametrize("source", ["msd", "la_h5", "la_nrrd"])
def test_empty_root(tmp_path, source):
  with pytest.raises(InputError, match=r"dataset\.json does not exist|holds no <case>"):
    open_source(DataConfig(source=source, root=str(tmp_path)))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"labels": None}, "'labels' is missing"),
    ({"channel_names": None}, "'channel_names' or 'modality' is missing"),
    ({"labels": {"background": 0, "organ": 2}}, r"values \[0, 2\]; they must run"),
    ({"labels": {"background": 0, "whole": [1, 2]}}, "region-based"),
    ({"labels": {"background": 0, "organ": 1, "ignore": 2}}, "ignore label"),
    ({"file_ending": ".png"}, "'.png' is not read"),
    ({"training": [{"image": "imagesTr/zzz.nii.gz"}]}, "zzz.*is not there"),
    ({"training": [{"image": "imagesTr/b.nii.gz", "label": "labelsTr/b.nii.gz"}]}, "labelsTr/b.*is not there"),
    ({"training": [{"label": "labelsTr/b.nii.gz"}]}, "has no 'image'"),
  ],
)
def test_wrong_dataset_json(tmp_path, change, message):
  description = {key: value for key, value in {**NEW_JSON, **change}.items() if value is not None}
  cfg = write_folder(tmp_path, unlabelled=("b",), description=description)
  with pytest.raises(InputError, match=message):
    open_source(cfg)


def test_dataset_json_that_is_no_json(tmp_path):
  cfg = write_folder(tmp_path)
  (tmp_path / "dataset.json").write_text('{"labels": ')
  with pytest.raises(InputError, match=r"dataset\.json is not valid JSON"):
    open_source(cfg)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_truncated_nifti(tmp_path, ending):
  cfg = write_folder(tmp_path)
  file = tmp_path / "imagesTr" / f"big{ending}"
  write_nifti(file, np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32))
  file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
  with pytest.raises(InputError, match=r"big\.nii.*truncated"):
    open_source(cfg).load("big")
  file.write_bytes(b"hello")
  with pytest.raises(InputError, match=r"big\.nii.*truncated or not NIfTI"):
    open_source(cfg).load("big")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_voxels_that_are_not_finite(tmp_path, value):
  cfg = write_folder(tmp_path)
  image = np.zeros((8, 9, 10), np.float32)
  image[:3, 0, 0] = value
  write_nifti(tmp_path / "imagesTr" / "a.nii.gz", image)
  with pytest.raises(InputError, match=r"a\.nii\.gz: 3 of 720 voxels are NaN or infinite"):
    open_source(cfg).load("a")


def test_label_of_another_shape_or_value(tmp_path):
  cfg = write_folder(tmp_path)
  write_nifti(tmp_path / "labelsTr" / "a.nii.gz", np.zeros((8, 9, 9), np.uint8))
  with pytest.raises(InputError, match=r"a\.nii\.gz: label shape \(8, 9, 9\) differs from its image's \(8, 9, 10\)"):
    open_source(cfg).load("a")
  for value, dtype in ((7, np.uint8), (0.5, np.float32), (-1, np.int16)):
    write_nifti(tmp_path / "labelsTr" / "a.nii.gz", np.full((8, 9, 10), value, dtype))
    with pytest.raises(InputError, match=rf"a\.nii\.gz: label value {value} is unknown, known values: 0, 1"):
      open_source(cfg).load("a")


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"source": "la_nrd"}, r"data\.source='la_nrd' is unknown.*did you mean 'la_nrrd'"),
    ({"normalise": "z-score"}, r"data\.normalise='z-score' is unknown.*did you mean 'zscore'"),
  ],
)
def test_unknown_names(tmp_path, change, message):
  with pytest.raises(InputError, match=message):
    open_source(dataclasses.replace(write_folder(tmp_path), **change))


def test_dev_split_and_its_errors(tmp_path):
  cfg = write_folder(tmp_path, tuple("abcdef"), unlabelled=("a", "f"))
  source = open_source(cfg)
  split = make_split(cfg, source)  # a and f have no label: they can only be unlabelled
  assert (split.labelled, split.unlabelled, split.evaluation, split.name) == (("b",), ("a", "c", "d", "f"), ("e",), "dev")
  everything = make_split(dataclasses.replace(cfg, num_labelled=4, num_holdout=0), source)
  assert (everything.labelled, everything.evaluation) == (("b", "c", "d", "e"), ())
  for change, message in (
    ({"num_labelled": 0}, "num_labelled=0 must be at least 1"),
    ({"num_labelled": 4}, "num_labelled=4 is more than the 3 training cases"),
    ({"num_holdout": 4}, "num_holdout=4 must be at least 0 and below the 4"),
    ({"num_holdout": -2}, "num_holdout=-2"),
    ({"split": "offical"}, r"data\.split='offical' is unknown.*did you mean 'official'"),
    ({"split": "official"}, r"needs test cases: test\.list"),
  ):
    with pytest.raises(InputError, match=message):
      make_split(dataclasses.replace(cfg, **change), source)


def test_all_labels_but_a_fifth_held_out(tmp_path):
  cfg = dataclasses.replace(write_folder(tmp_path, tuple("abcdefghijkl"), unlabelled=("c", "l")), num_labelled=-1, num_holdout=-1)
  split = make_split(cfg, open_source(cfg))
  assert (split.labelled, split.unlabelled, split.evaluation) == (tuple("abdefghi"), ("c", "l"), ("j", "k"))
  for names, unlabelled, message in (("ab", "a", "only 1 training case has a label"), ("a", "a", "no training case has a label")):
    cfg = dataclasses.replace(cfg, root=write_folder(tmp_path / message[:2], tuple(names), tuple(unlabelled)).root)
    with pytest.raises(InputError, match=message):
      make_split(cfg, open_source(cfg))


def test_official_test_case_without_a_label(tmp_path):
  cfg = dataclasses.replace(write_folder(tmp_path, unlabelled=("d",)), split="official")
  (tmp_path / "test.list").write_text("d\n")
  with pytest.raises(InputError, match="test case 'd' has no label file"):
    make_split(cfg, open_source(cfg))


def test_downsample_by_hand():
  image = np.arange(5 * 4 * 4, dtype=np.float32).reshape(5, 4, 4, 1)
  label = np.zeros((5, 4, 4), np.uint8)
  label[0, 0, :2] = label[0, 1, :2] = 1  # half of the first block: a tie, so the lower class
  label[2:4, 2:4, 2:4] = 1
  label[2, 2, 2] = 0
  case = downsample_case(Case("x", image, label, (0.5, 0.75, 2.0), AFFINE), 2)
  assert case.image.shape == (2, 2, 2, 1) and case.spacing == (1.0, 1.5, 4.0)
  assert case.image[0, 0, 0, 0] == image[:2, :2, :2].mean()
  assert case.image[1, 1, 1, 0] == image[2:4, 2:4, 2:4].mean()
  expected = np.zeros((2, 2, 2))
  expected[1, 1, 1] = 1
  np.testing.assert_array_equal(case.label, expected)
  for block in ([0, 0, 0], [1, 1, 0]):  # a block's centre in mm is the mean of its voxels' centres
    corners = [AFFINE @ [*(2 * np.array(block) + offset), 1] for offset in np.ndindex(2, 2, 2)]
    np.testing.assert_allclose(case.affine @ [*block, 1], np.mean(corners, axis=0))


def test_downsample_majority_of_three_classes_and_errors():
  label = np.array([[2, 2], [1, 0]], np.uint8)
  tie = np.array([[2, 2], [1, 1]], np.uint8)
  for given, wanted in ((label, 2), (tie, 1)):
    case = Case("x", np.zeros((2, 2, 1), np.float32), given, (1.0, 1.0), np.eye(4))
    assert downsample_case(case, 2).label.item() == wanted
    assert downsample_case(case, 1) is case
    for factor in (0, 3):
      with pytest.raises(InputError, match=f"downsample={factor}"):
        downsample_case(case, factor)


def test_zscore_per_channel():
  image = np.random.default_rng(0).normal(100, 7, (9, 8, 7, 2)).astype(np.float32)
  image[..., 1] = 5
  out = zscore_case(Case("x", image, None, (1.0,) * 3, np.eye(4))).image
  assert out.dtype == np.float32 and abs(out[..., 0].mean()) < 1e-5 and abs(out[..., 0].std() - 1) < 1e-5
  assert not out[..., 1].any()


def test_cache_decodes_once_and_stays_within_its_bound(tmp_path):
  inner = open_source(write_folder(tmp_path))
  decoded = []

  def prepare(case):
    decoded.append(case.name)
    return dataclasses.replace(case, image=case.image.copy(), label=case.label.copy())

  one_case = 8 * 9 * 10 * 5
  source = CachedSource(inner, prepare, cache_bytes=2 * one_case)
  threads = [threading.Thread(target=source.load, args=("a",)) for _ in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert decoded == ["a"]
  for name in ("b", "a", "c", "a", "b"):  # c pushes out b, which was unused for longest
    source.load(name)
  assert decoded == ["a", "b", "c", "b"]


def test_la_h5(tmp_path):
  rng = np.random.default_rng(0)
  image, label = rng.normal(size=(6, 7, 8)).astype(np.float32), rng.integers(0, 2, (6, 7, 8)).astype(np.uint8)
  for name in ("p", "q"):
    write_h5(tmp_path, name, image, label)
  write_h5(tmp_path, "r", image, None)
  (tmp_path / "train.list").write_text("q\nr\n")
  (tmp_path / "test.list").write_text("p\n")
  cfg = DataConfig(source="la_h5", root=str(tmp_path), split="official", num_labelled=1)
  source = open_source(cfg)
  split = make_split(cfg, source)
  assert (split.labelled, split.unlabelled, split.evaluation) == (("q",), ("r",), ("p",))
  np.testing.assert_array_equal(source.load("q").image[..., 0], image)
  np.testing.assert_array_equal(source.load("q").label, label)
  assert source.load("q").spacing == (0.625,) * 3 and source.load("r").label is None


def test_la_h5_errors(tmp_path):
  image = np.zeros((6, 7, 8), np.float32)
  cfg = DataConfig(source="la_h5", root=str(tmp_path))
  write_h5(tmp_path, "value", image, np.full(image.shape, 255, np.uint8))
  write_h5(tmp_path, "shape", image, np.zeros((6, 7, 7), np.uint8))
  write_h5(tmp_path, "nan", np.full_like(image, np.nan), None)
  broken = write_h5(tmp_path, "broken", np.random.default_rng(0).normal(size=(20, 20, 20)), None)
  broken.write_bytes(broken.read_bytes()[:4000])
  with h5py.File(write_h5(tmp_path, "empty", image, None), "a") as h5:
    del h5["image"]
  for name, message in (
    ("value", "label value 255 is unknown, known values: 0, 1"),
    ("shape", "label shape"),
    ("nan", "336 of 336 voxels are NaN"),
    ("broken", "truncated or not HDF5"),
    ("empty", "dataset 'image' is missing"),
  ):
    with pytest.raises(InputError, match=f"{name}.mri_norm2.h5.*{message}"):
      open_source(cfg).load(name)


def test_raw_la_preprocessing_and_import(tmp_path):
  raw, out = tmp_path / "raw", tmp_path / "out"
  image, label = write_raw(raw, "one", 1)
  write_raw(raw, "two", 2)
  write_raw(raw, "bare", 3, with_label=False)
  (raw / "train.list").write_text("two\none\nbare\n")
  source = open_source(DataConfig(source="la_nrrd", root=str(raw)))
  case = source.load("one")
  normal = (image.astype(np.float64) - image.mean()) / image.std()
  corner = np.round(np.linalg.inv(np.diag([-0.625, -0.625, 0.625, 1])) @ case.affine[:, 3]).astype(int)[:3]
  box = tuple(slice(low, low + side) for low, side in zip(corner, case.label.shape, strict=True))
  np.testing.assert_allclose(case.image[..., 0], normal[box], atol=1e-5)
  np.testing.assert_array_equal(case.label, label[box] // 255)
  assert case.label.sum() == (label > 0).sum() and case.label.shape[2] == 12
  assert all(112 + 18 <= side <= 112 + 40 for side in case.label.shape[:2])
  assert source.load("bare").label is None and source.load("bare").image.shape == (190, 180, 12, 1)

  assert prepare_la(raw, out) == ("bare", "one", "two")
  imported = open_source(DataConfig(source="la_h5", root=str(out)))
  assert imported.train_names == ("two", "one", "bare")
  for name in imported.names:
    ours, theirs = imported.load(name), source.load(name)
    np.testing.assert_array_equal(ours.image, theirs.image)
    np.testing.assert_allclose(ours.affine, theirs.affine)
    assert (ours.label is None) == (theirs.label is None)
  prepare_la(raw, tmp_path / "again", seed=5)
  other = open_source(DataConfig(source="la_h5", root=str(tmp_path / "again"))).load("one")
  assert other.image.shape != case.image.shape or not np.array_equal(other.image, case.image)


def test_crop_box_grows_and_stays_inside():
  label = np.zeros((200, 120, 10), np.uint8)
  label[10:190, 55:60, 4] = 1
  box = crop_box(label, np.random.default_rng(0))
  assert box[0].start == 0 and box[0].stop == 200  # margins are cut at the edge
  assert box[1] == slice(0, 120) and box[2] == slice(0, 10)
  assert crop_box(label * 0, np.random.default_rng(0)) == (slice(0, 200), slice(0, 120), slice(0, 10))


def test_raw_la_errors(tmp_path, monkeypatch):
  nrrd = pytest.importorskip("nrrd")
  write_raw(tmp_path, "one", 1)
  source = open_source(DataConfig(source="la_nrrd", root=str(tmp_path)))
  label_file = tmp_path / "one" / "laendo.nrrd"
  nrrd.write(str(label_file), np.full((190, 180, 12), 3, np.uint8))
  with pytest.raises(InputError, match=r"laendo\.nrrd: label value 3 is unknown, known values: 0, 255"):
    source.load("one")
  label_file.write_bytes(label_file.read_bytes()[:200])
  with pytest.raises(InputError, match=r"laendo\.nrrd.*truncated or not NRRD"):
    source.load("one")
  monkeypatch.setitem(sys.modules, "nrrd", None)
  with pytest.raises(InputError, match="pip install pynrrd"):
    source.load("one")


def test_command_line(tmp_path, capsys):
  write_folder(tmp_path / "msd", unlabelled=("b",))
  assert command_line.main(["check", str(tmp_path / "msd")]) == 0
  printed = capsys.readouterr().out
  assert "4 training, 0 test; 3 labelled, 1 unlabelled, 0 unreadable" in printed and "(8, 9, 10)" in printed
  write_nifti(tmp_path / "msd" / "labelsTr" / "a.nii.gz", np.full((8, 9, 10), 9, np.uint8))
  assert command_line.main(["check", str(tmp_path / "msd")]) == 1
  assert "PROBLEM " in capsys.readouterr().out
  assert command_line.main(["check", str(tmp_path / "none")]) == 2
  assert "quickstart" in capsys.readouterr().err
  write_raw(tmp_path / "raw", "one", 1)
  assert command_line.main(["prepare", "la", str(tmp_path / "raw"), str(tmp_path / "h5"), "--seed=3"]) == 0
  assert command_line.main(["check", str(tmp_path / "h5")]) == 0
  assert "data.source=la_h5" in capsys.readouterr().out


@pytest.mark.skipif(not (SHARED / "la").is_dir(), reason="the Left Atrium benchmark is not here")
def test_real_left_atrium():
  cfg = DataConfig(source="msd", root=str(SHARED / "la"), num_labelled=8)
  source = open_source(cfg)
  split = make_split(cfg, source)
  assert (len(split.labelled), len(split.unlabelled), len(split.evaluation)) == (8, 56, 16)
  assert split.labelled + split.unlabelled + split.evaluation == source.train_names
  for name in (split.labelled[0], split.evaluation[-1]):
    case = source.load(name)
    assert all(low <= side <= high for side, low, high in zip(case.label.shape, (140, 130, 88), (250, 165, 88), strict=True))
    np.testing.assert_allclose(case.spacing, (0.625,) * 3)
    reference = nib.load(SHARED / "la" / "imagesTr" / f"{name}.nii.gz").get_fdata()
    np.testing.assert_allclose(case.image[..., 0], reference, atol=1e-5)
    assert 0 < case.image.mean() < 2 and 0.02 < case.label.mean() < 0.2
  half = open_source(dataclasses.replace(cfg, downsample=2)).load(split.labelled[0])
  whole = source.load(split.labelled[0])
  shape = [side // 2 for side in whole.label.shape]
  blocks = whole.label[: 2 * shape[0], : 2 * shape[1], : 2 * shape[2]].reshape(shape[0], 2, shape[1], 2, shape[2], 2)
  np.testing.assert_array_equal(half.label, blocks.mean(axis=(1, 3, 5)) > 0.5)


@pytest.mark.skipif(not (SHARED / "acdc").is_dir(), reason="the ACDC benchmark is not here")
def test_real_acdc():
  cfg = DataConfig(source="msd", root=str(SHARED / "acdc"), split="official", test_list="val.list", num_labelled=6)
  source = open_source(cfg)
  split = make_split(cfg, source)
  assert (len(split.labelled), len(split.unlabelled), len(split.evaluation)) == (6, 134, 20)
  assert source.class_names == ("background", "RV", "MYO", "LV")
  assert set(np.unique(source.load(split.evaluation[0]).label)) <= {0, 1, 2, 3}
