"""Synapse: TransUNet's slices and volumes, the challenge files with the published preprocessing, and the importer between them."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from ssl_jax.data import __main__ as command_line
from ssl_jax.data import make_split, open_source, prepare_synapse
from ssl_jax.data.slices import SliceSource
from ssl_jax.data.synapse import PUBLISHED_TEST
from ssl_jax.types import DataConfig, InputError
from tests.test_data_pancreas import truncate, write_h5, write_nifti

AFFINE = np.diag([0.8, 0.8, 3.0, 1.0])
SIDES = (16, 6, 3)
ORGANS = {8: 1, 4: 2, 3: 3, 2: 4, 6: 5, 11: 6, 1: 7, 7: 8, 5: 0, 9: 0, 10: 0, 12: 0, 13: 0}  # challenge -> TransUNet


def scan(seed: int) -> tuple[np.ndarray, np.ndarray]:
  image = np.random.default_rng(seed).integers(-1000, 1000, SIDES).astype(np.int16)
  image[0, 0, 0], image[1, 0, 0], image[2, 0, 0] = -125, 275, 75
  label = np.zeros(SIDES, np.uint8)
  label[:14, 1:3, 1] = np.arange(14)[:, None]
  label[seed % 14, 4, 2] = 6
  return image, label


def write_cases(root: Path, numbers, axes: str = "LPS", unlabelled=()) -> None:
  for number in numbers:
    image, label = scan(number)
    write_nifti(root / "img" / f"img{number:04d}.nii.gz", image, AFFINE, axes)
    if number not in unlabelled:
      write_nifti(root / "label" / f"label{number:04d}.nii.gz", label, AFFINE, "PIR")


def config(root: Path, kind: str = "nifti", **changes) -> DataConfig:
  slices = {"slices": kind == "npz", "patch": (8, 8)}
  return DataConfig(**{"source": f"synapse_{kind}", "root": str(root), "num_labelled": 1, "num_holdout": 1, **slices, **changes})


@pytest.fixture
def raw(tmp_path):
  root = tmp_path / "raw"
  write_cases(root / "RawData" / "Training", (1, 5, 6, 8))
  write_cases(root / "RawData" / "Testing", (61,), unlabelled=(61,))
  return root


def test_window_organs_and_orientation(raw):
  source = open_source(config(raw))
  assert source.train_names == ("case0005", "case0006") and source.test_names == ("case0008", "case0001")
  names = ("background", "aorta", "gallbladder", "left_kidney", "right_kidney", "liver", "pancreas", "spleen", "stomach")
  assert source.class_names == names and source.num_classes == 9
  image, label = scan(5)
  case = source.load("case0005")
  assert case.image.shape == (*SIDES, 1) and case.image.dtype == np.float32 and case.label.dtype == np.uint8
  np.testing.assert_allclose(case.image[..., 0], (np.clip(image.astype(float), -125, 275) + 125) / 400, atol=1e-6)
  np.testing.assert_allclose(case.image[:3, 0, 0, 0], [0, 1, 0.5], atol=1e-6)
  expected = np.zeros_like(label)
  for value, organ in ORGANS.items():
    expected[label == value] = organ
  np.testing.assert_array_equal(case.label, expected)
  np.testing.assert_allclose(case.affine, AFFINE, atol=1e-5)
  np.testing.assert_allclose(case.spacing, (0.8, 0.8, 3.0), rtol=1e-5)


def test_the_published_split_and_lists(tmp_path):
  assert sorted(PUBLISHED_TEST) == [f"case{number:04d}" for number in (1, 2, 3, 4, 8, 22, 25, 29, 32, 35, 36, 38)]
  write_cases(tmp_path, (*range(1, 11), *range(21, 41)), unlabelled=(3, 7))
  source = open_source(config(tmp_path))
  assert source.test_names == tuple(name for name in PUBLISHED_TEST if name != "case0003")  # nothing to compare with
  assert "case0003" in source.train_names and len(source.train_names) == 19 and not source.has_label("case0007")
  assert source.load("case0007").label is None
  (tmp_path / "test.list").write_text("case0010\ncase0040\n")
  source = open_source(config(tmp_path))
  assert source.test_names == ("case0010", "case0040") and len(source.train_names) == 28
  (tmp_path / "train.list").write_text("case0001\ncase0010\n")
  with pytest.raises(InputError, match=r"'case0010' is in both train\.list and test\.list"):
    open_source(config(tmp_path))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda label: label + 1, r"label0005\.nii\.gz: label value 14 is unknown, known values: 0, 1, 2"),
    (lambda label: np.where(label == 5, 5, 0).astype(np.uint8), "none of aorta, gallbladder, .* is marked; remove the label"),
    (lambda label: label * 0, "the label marks no voxel"),
    (lambda label: label[1:], r"label shape \(15, 6, 3\) differs"),
  ],
)
def test_wrong_labels(tmp_path, change, message):
  write_cases(tmp_path, (5,))
  write_nifti(tmp_path / "label" / "label0005.nii.gz", change(scan(5)[1]), AFFINE)
  with pytest.raises(InputError, match=message):
    open_source(config(tmp_path)).load("case0005")


def test_import_round_trip(raw, tmp_path, capsys):
  out = tmp_path / "out"
  assert command_line.main(["prepare", "synapse", str(raw), str(out)]) == 0
  assert "4 cases written" in capsys.readouterr().out
  slice_names = tuple(f"case000{c}_slice00{k}" for c in (5, 6) for k in range(3))
  assert sorted(file.stem for file in (out / "train_npz").iterdir()) == list(slice_names)
  assert sorted(file.name for file in (out / "test_vol_h5").iterdir()) == ["case0001.npy.h5", "case0008.npy.h5"]
  assert tuple((out / "lists/lists_Synapse/train.txt").read_text().split()) == slice_names
  assert (out / "lists/lists_Synapse/test_vol.txt").read_text() == "case0008\ncase0001\n"
  npz, nifti = open_source(config(out, "npz")), open_source(config(raw))
  assert npz.train_names == slice_names and npz.test_names == nifti.test_names and npz.class_names == nifti.class_names
  for name in nifti.names:  # training volumes are put together from their slices
    ours, theirs = npz.load(name), nifti.load(name)
    np.testing.assert_array_equal(ours.image, theirs.image)
    np.testing.assert_array_equal(ours.label, theirs.label)
    np.testing.assert_allclose(ours.affine, theirs.affine)
    assert ours.spacing == theirs.spacing
  cut = open_source(config(raw, slices=True))
  assert isinstance(cut, SliceSource) and len(cut.train_names) == len(slice_names)
  for name, other in zip(slice_names, cut.train_names, strict=True):
    ours, theirs = npz.load(name), cut.load(other)
    np.testing.assert_array_equal(ours.image, theirs.image)
    np.testing.assert_array_equal(ours.label, theirs.label)
    np.testing.assert_allclose(ours.affine, theirs.affine)
    assert ours.image.shape == (*SIDES[:2], 1) and ours.spacing == theirs.spacing
  assert make_split(config(out, "npz"), npz).evaluation == ("case0006",)
  assert make_split(config(out, "npz", split="official"), npz).evaluation == ("case0008", "case0001")
  for kind, root, count in (("nifti", raw, 4), ("npz", out, 8)):
    assert command_line.main(["check", str(root)]) == 0
    printed = capsys.readouterr().out
    assert f"data.source=synapse_{kind})" in printed and f"{count} labelled, 0 unlabelled, 0 unreadable" in printed


def test_import_keeps_cases_without_a_label(tmp_path):
  write_cases(tmp_path / "raw", (5, 6), unlabelled=(6,))
  prepare_synapse(tmp_path / "raw", tmp_path / "out")
  source = open_source(config(tmp_path / "out", "npz", num_holdout=0))
  assert source.test_names == () and [source.has_label(name) for name in source.train_names] == [True] * 3 + [False] * 3
  assert source.load("case0006_slice001").label is None and source.load("case0006").label is None


@pytest.fixture
def published(tmp_path):
  """As TransUNet shares it: no affine, labels as f32, no lists in the folder; case 9 as both."""
  (tmp_path / "train_npz").mkdir()
  for number in (5, 9):
    image, label = scan(number)
    for k in range(SIDES[2]):
      np.savez(
        tmp_path / f"train_npz/case{number:04d}_slice{k:03d}.npz", image=image[..., k] / 1000, label=(label[..., k] % 9).astype("f4")
      )
  for number in (1, 8, 9):
    image, label = (np.moveaxis(array, -1, 0) for array in scan(number))
    write_h5(tmp_path / f"test_vol_h5/case{number:04d}.npy.h5", image, label % 9)
  return tmp_path


def test_published_files(published):
  source = open_source(config(published, "npz"))
  assert source.train_names == tuple(f"case000{c}_slice00{k}" for c in (5, 9) for k in range(3))
  assert source.test_names == ("case0008", "case0001")
  case = source.load("case0005_slice001")
  np.testing.assert_allclose(case.image[..., 0], scan(5)[0][..., 1] / 1000, rtol=1e-6)
  np.testing.assert_array_equal(case.label, scan(5)[1][..., 1] % 9)
  assert case.label.dtype == np.uint8 and case.spacing == (1.0, 1.0) and not source.load("case0005_slice000").label.any()
  np.testing.assert_array_equal(source.load("case0008").image[..., 0], scan(8)[0])
  lists = published / "lists" / "lists_Synapse"
  lists.mkdir(parents=True)
  (lists / "train.txt").write_text("case0009_slice002\ncase0005_slice001\n")
  (lists / "test_vol.txt").write_text("case0001\n")
  source = open_source(config(published, "npz"))
  assert source.train_names == ("case0009_slice002", "case0005_slice001") and source.test_names == ("case0001",)
  (published / "mine.list").write_text("case0005_slice002\n")
  assert open_source(config(published, "npz", slice_list="mine.list")).train_names == ("case0005_slice002",)
  for line, message in (
    ("case0005_slice007", r"train\.txt: slice 'case0005_slice007' has no file; did you mean 'case0005_slice00"),
    ("case0009_slice001", "is of 'case0009', a test volume, whose slices may not train"),
  ):
    (lists / "train.txt").write_text(line)
    (lists / "test_vol.txt").write_text("case0009\n")
    with pytest.raises(InputError, match=message):
      open_source(config(published, "npz"))


def test_wrong_npz(published):
  with pytest.raises(InputError, match=r"'synapse_npz' holds slices to train on: set config\.data\.slices=True"):
    open_source(config(published, "npz", slices=False))
  with pytest.raises(InputError, match=r"config\.data\.normalise='zscore' is over whole scans"):
    open_source(config(published, "npz", normalise="zscore"))
  source, name = open_source(config(published, "npz")), "case0005_slice001"
  file, plane = published / "train_npz" / f"{name}.npz", np.ones((4, 5))
  for arrays, message in (
    ({"image": plane, "label": plane * 9}, "label value 9 is unknown, known values: 0, 1, 2, 3, 4, 5, 6, 7, 8"),
    ({"image": plane[None], "label": plane[None]}, r"image shape \(1, 4, 5\) is not 2D; save one slice"),
    ({"image": plane, "label": plane[1:]}, r"label shape \(3, 5\) differs"),
    ({"label": plane}, "dataset 'image' is missing"),
  ):
    np.savez(file, **arrays)
    with pytest.raises(InputError, match=rf"{name}\.npz: {message}"):
      source.load(name)
  np.savez(file, image=plane, label=plane)
  truncate(file)
  for read in (source.load, source.has_label):
    with pytest.raises(InputError, match=rf"{name}\.npz cannot be read, it is truncated or not NumPy's npz.*fetch it again"):
      read(name)
  file.write_bytes(b"hello")
  with pytest.raises(InputError, match="cannot be read"):
    source.load(name)


def test_missing_folders(published):
  empty = published / "empty"
  empty.mkdir()
  for kind, holds, where in (("npz", "train_npz/caseXXXX_sliceYYY.npz", "TransUNet"), ("nifti", "img/imgXXXX.nii.gz", "syn3193805")):
    for root, problem in ((published / "nowhere", "is no folder: "), (empty, f"{holds}: ")):
      with pytest.raises(InputError, match=re.escape(problem) + rf".*{where}.*--config\.data\.root=FOLDER"):
        open_source(config(root, kind))
  shutil.rmtree(published / "test_vol_h5")
  assert open_source(config(published, "npz")).test_names == ()
