"""BraTS 2019: the prepared h5 files, the challenge files with the published preprocessing, and the importer between them."""

import dataclasses
import gzip
import re
from pathlib import Path

import h5py
import numpy as np
import pytest

from ssl_jax.data import __main__ as command_line
from ssl_jax.data import make_split, open_source, prepare_brats, prepare_pancreas
from ssl_jax.data.brats import normalise_brain
from ssl_jax.evaluate import evaluate
from ssl_jax.experiment import open_experiment
from ssl_jax.train import train
from ssl_jax.types import DataConfig, InputError, NetworkConfig
from tests.helpers import tiny_config, with_train
from tests.test_data_pancreas import truncate, write_h5, write_nifti

AFFINE = np.array([[1.0, 0, 0, -90], [0, 1.0, 0, -120], [0, 0, 1.0, -60], [0, 0, 0, 1]])
BRAIN = (slice(2, 10), slice(3, 12), slice(1, 8))


def scan(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """FLAIR that is 0 outside a box, and a tumour of three parts, in RAS."""
  image = np.zeros((14, 15, 9), np.int16)
  image[BRAIN] = np.random.default_rng(seed).integers(1, 1000, (8, 9, 7))
  label = np.zeros(image.shape, np.uint8)
  label[4, 5:8, 3], label[5, 5:8, 3], label[6, 5:8, 3:5] = 1, 2, 4
  return image, label


def write_case(root: Path, name: str, seed: int = 0, grade: str = "HGG", ending: str = ".nii.gz", with_label: bool = True) -> Path:
  image, label = scan(seed)
  folder = root / grade / name
  write_nifti(folder / f"{name}_flair{ending}", image, AFFINE, "LPS")
  write_nifti(folder / f"{name}_t1{ending}", image * 2, AFFINE, "LPS")
  if with_label:
    write_nifti(folder / f"{name}_seg{ending}", label, AFFINE, "LPS")
  return folder


def config(root: Path, kind: str = "nifti", **changes) -> DataConfig:
  return DataConfig(source=f"brats_{kind}", root=str(root), num_labelled=1, num_holdout=1, **changes)


def test_preprocessing_by_hand(tmp_path):
  write_case(tmp_path, "BraTS19_A_1")
  image, label = scan()
  source = open_source(config(tmp_path))
  assert source.names == ("BraTS19_A_1",) and source.class_names == ("background", "whole_tumour") and source.channels == 1
  case = source.load("BraTS19_A_1")
  crop = image[BRAIN].astype(np.float64)
  values = np.sort(crop.ravel())  # 504 voxels: the quantile lies at 0.999 * 503 = 502.497
  crop = np.minimum(crop, values[502] + 0.497 * (values[503] - values[502]))
  assert case.image.shape == (8, 9, 7, 1) and case.image.dtype == np.float32
  np.testing.assert_allclose(case.image[..., 0], (crop - crop.mean()) / crop.std(), atol=1e-5)
  assert abs(case.image.mean()) < 1e-5 and abs(case.image.std() - 1) < 1e-5
  np.testing.assert_array_equal(case.label, (label > 0)[BRAIN])
  assert case.label.sum() == 12 and case.label.dtype == np.uint8  # 3 + 3 + 6 voxels of the labels 1, 2 and 4
  assert case.spacing == (1.0, 1.0, 1.0)
  np.testing.assert_allclose(case.affine @ [0, 0, 0, 1], AFFINE @ [2, 3, 1, 1])  # the crop's first voxel is where it was in the scan
  np.testing.assert_allclose(case.affine @ [7, 8, 6, 1], AFFINE @ [9, 11, 7, 1])


def test_normalisation_by_hand():
  image = np.zeros((10, 10, 20), np.float32)
  image[:, :, 10:] = np.arange(1, 1001).reshape(10, 10, 10)
  # 2,000 voxels, half of them 0: the quantile lies at 0.999 * 1999 = 1997.001 of the sorted ones, between 998 and 999.
  clipped = np.minimum(np.arange(1, 1001), 998.001)
  out = normalise_brain(image)
  np.testing.assert_allclose(out[:, :, 10:].ravel(), (clipped - clipped.mean()) / clipped.std(), atol=1e-5)
  np.testing.assert_allclose(out[:, :, :10], -clipped.mean() / clipped.std(), rtol=1e-5)  # what was 0 moves with the rest
  assert out.dtype == np.float32
  np.testing.assert_array_equal(normalise_brain(np.full((2, 2, 2), 7, np.float32)), np.zeros((2, 2, 2)))


def test_folders_of_both_grades_and_endings(tmp_path):
  write_case(tmp_path, "BraTS19_B_1", grade="HGG")
  write_case(tmp_path, "BraTS19_A_1", grade="LGG", ending=".nii")
  write_case(tmp_path, "BraTS19_C_1", grade=".", with_label=False)
  source = open_source(config(tmp_path))
  assert source.names == ("BraTS19_A_1", "BraTS19_B_1", "BraTS19_C_1")
  assert [source.has_label(name) for name in source.names] == [True, True, False]
  assert source.load("BraTS19_C_1").label is None
  np.testing.assert_array_equal(source.load("BraTS19_A_1").image, source.load("BraTS19_B_1").image)
  write_case(tmp_path, "BraTS19_B_1", grade="LGG")
  with pytest.raises(InputError, match=r"LGG.*BraTS19_B_1_flair\.nii\.gz and .*HGG.* are of the same case 'BraTS19_B_1'; remove one"):
    open_source(config(tmp_path))


@pytest.mark.parametrize("kind", ["h5", "nifti"])
def test_lists(tmp_path, kind):
  for name in "edcba":
    write_case(tmp_path, name)
  prepare_brats(tmp_path, tmp_path)
  assert open_source(config(tmp_path, kind)).train_names == tuple("abcde")
  (tmp_path / "test.list").write_text("c\n")  # the other sources' spelling, where the benchmark's own is missing
  assert open_source(config(tmp_path, kind)).test_names == ("c",)
  for file, names in (("train.txt", "db"), ("val.txt", "a"), ("test.txt", "e"), ("other.txt", "ac")):
    (tmp_path / file).write_text("\n".join(names) + "\n")
  source = open_source(config(tmp_path, kind, split="official"))
  split = make_split(config(tmp_path, kind, split="official"), source)
  assert (split.labelled, split.unlabelled, split.evaluation) == (("d",), ("b",), ("e",))
  assert source.names == ("d", "b", "e")  # validation cases neither train nor test
  assert make_split(config(tmp_path, kind), source).evaluation == ("b",)  # dev: the last of the training list
  assert open_source(config(tmp_path, kind, test_list="val.txt")).test_names == ("a",)
  assert open_source(config(tmp_path, kind, train_list="other.txt")).train_names == ("a", "c")
  with pytest.raises(InputError, match=r"data\.test_list: .*validation\.txt does not exist; write one case name a line"):
    open_source(config(tmp_path, kind, test_list="validation.txt"))
  (tmp_path / "train.txt").write_text("d\ne\n")
  with pytest.raises(InputError, match=r"'e' is in both train\.txt and test\.txt"):
    open_source(config(tmp_path, kind))
  (tmp_path / "train.txt").write_text("d\nx\n")
  with pytest.raises(InputError, match=r"train\.txt: 1 of 2 entries have no data .* first 'x'"):
    open_source(config(tmp_path, kind))


def test_lists_of_other_sources_keep_their_ending(tmp_path):
  for name in ("a", "b"):
    write_h5(tmp_path / name / "mri_norm2.h5", np.zeros((2, 2, 2)), np.ones((2, 2, 2)))
  (tmp_path / "test.txt").write_text("notes about the test\n")
  assert open_source(DataConfig(source="la_h5", root=str(tmp_path))).names == ("a", "b")


def test_h5_layout(tmp_path):
  rng = np.random.default_rng(0)
  image, label = rng.normal(size=(6, 7, 8)), rng.integers(0, 2, (6, 7, 8)).astype(np.int64)
  for name in ("BraTS19_2013_0_1", "BraTS19_CBICA_AAB_1"):
    write_h5(tmp_path / "data" / f"{name}.h5", image, label)
  (tmp_path / "train.txt").write_text("BraTS19_CBICA_AAB_1\n")
  (tmp_path / "test.txt").write_text("BraTS19_2013_0_1\n")
  source = open_source(config(tmp_path, "h5"))
  assert (source.train_names, source.test_names) == (("BraTS19_CBICA_AAB_1",), ("BraTS19_2013_0_1",))
  case = source.load("BraTS19_2013_0_1")
  np.testing.assert_allclose(case.image[..., 0], image, rtol=1e-6)
  np.testing.assert_array_equal(case.label, label)
  assert case.image.dtype == np.float32 and case.label.dtype == np.uint8 and case.spacing == (1.0, 1.0, 1.0)


def test_import_writes_what_the_nifti_source_reads(tmp_path):
  raw, out = tmp_path / "raw", tmp_path / "out"
  for seed, name in enumerate("cab"):
    write_case(raw, name, seed, with_label=name != "b")
  for file, names in (("train.txt", "cb"), ("val.txt", "a"), ("test.txt", "a")):
    (raw / file).write_text("\n".join(names))
  assert command_line.main(["prepare", "brats", str(raw), str(out)]) == 0
  assert sorted(path.name for path in out.iterdir()) == ["data", "test.txt", "train.txt", "val.txt"]
  assert sorted(path.name for path in (out / "data").iterdir()) == ["a.h5", "b.h5", "c.h5"]
  h5, nifti = open_source(config(out, "h5")), open_source(config(raw))
  assert (h5.train_names, h5.test_names) == (nifti.train_names, nifti.test_names) == (("c", "b"), ("a",))
  for name in h5.names:
    ours, theirs = h5.load(name), nifti.load(name)
    np.testing.assert_array_equal(ours.image, theirs.image)
    np.testing.assert_array_equal(ours.label, theirs.label)
    np.testing.assert_allclose(ours.affine, theirs.affine)
  assert not np.array_equal(h5.load("a").image, h5.load("c").image) and h5.load("b").label is None


def test_check_finds_the_layouts(tmp_path, capsys):
  write_case(tmp_path / "nifti", "a")
  write_case(tmp_path / "nifti", "b", with_label=False)
  prepare_brats(tmp_path / "nifti", tmp_path / "h5")
  for kind in ("nifti", "h5"):
    assert command_line.main(["check", str(tmp_path / kind)]) == 1  # both cases are the same scan
    printed = capsys.readouterr().out
    assert f"data.source=brats_{kind})" in printed and "1 labelled, 1 unlabelled, 0 unreadable" in printed
    assert "shape (8, 9, 7), spacing (1.0, 1.0, 1.0) mm, RAS, voxels per class [492, 12]" in printed
    assert "PROBLEM b: the same voxels as a" in printed and "1 problem(s)" in printed
  write_nifti(tmp_path / "nifti" / "HGG" / "a" / "a_seg.nii.gz", scan()[1] * 0, AFFINE)
  assert command_line.main(["check", str(tmp_path / "nifti")]) == 1
  assert "a_seg.nii.gz: the label marks no voxel" in capsys.readouterr().out
  (tmp_path / "nifti" / "dataset.json").write_text("{}")  # says itself what it is
  assert command_line.main(["check", str(tmp_path / "nifti")]) == 2
  assert "dataset.json" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("kind", "holds", "where"),
  [
    ("brats_h5", "data/<case>.h5", "SSL4MIS"),
    ("brats_nifti", "<HGG|LGG>/<case>/<case>_flair.nii.gz", "SSL4MIS"),
    ("pancreas_h5", "Pancreas_h5/<case>_norm.h5", "prepare pancreas"),
    ("pancreas_nifti", "imageXXXX.nii.gz", "cancerimagingarchive"),
  ],
)
def test_missing_and_empty_folder(tmp_path, kind, holds, where):
  empty = f"{tmp_path} holds no {holds}: "
  for root, problem in ((str(tmp_path / "nowhere"), "is no folder: "), ("", "is not set: "), (str(tmp_path), empty)):
    with pytest.raises(InputError, match=re.escape(problem)) as caught:
      open_source(DataConfig(source=kind, root=root))
    assert where in str(caught.value) and "--config.data.root=FOLDER" in str(caught.value)


@pytest.mark.parametrize("run", [prepare_brats, prepare_pancreas])
def test_import_of_an_empty_folder(tmp_path, run):
  with pytest.raises(InputError, match="holds no"):
    run(tmp_path, tmp_path / "out")


def test_official_test_case_without_a_label(tmp_path):
  write_case(tmp_path, "a")
  write_case(tmp_path, "b", with_label=False)
  (tmp_path / "test.txt").write_text("b\n")
  cfg = config(tmp_path, split="official")
  with pytest.raises(InputError, match="test case 'b' has no label file"):
    make_split(cfg, open_source(cfg))


@pytest.mark.parametrize(
  ("kind", "change", "message"),
  [
    ("seg", lambda label: np.where(label == 4, 3, label), r"a_seg\.nii\.gz: label value 3 is unknown, known values: 0, 1, 2, 4"),
    ("seg", lambda label: label * 0, r"a_seg\.nii\.gz: the label marks no voxel; repair it, or remove"),
    ("seg", lambda label: label[:, :-1], r"a_seg\.nii\.gz: label shape \(14, 14, 9\) differs from its image's \(14, 15, 9\)"),
    ("flair", lambda image: np.where(image > 500, np.nan, image), r"a_flair\.nii\.gz: \d+ of 1890 voxels are NaN or infinite; repair"),
    ("flair", lambda image: image * 0, r"a_flair\.nii\.gz: no voxel is above 0, so there is no brain; fetch it again"),
    ("flair", lambda image: -image, r"a_flair\.nii\.gz: no voxel is above 0"),
  ],
)
def test_wrong_content(tmp_path, kind, change, message):
  folder = write_case(tmp_path, "a")
  assert open_source(config(tmp_path)).load("a").label.any()
  file = folder / f"a_{kind}.nii.gz"
  changed = change(scan()[kind == "seg"])
  write_nifti(file, changed.astype(np.float32 if changed.dtype.kind == "f" else np.int16), AFFINE, "LPS")
  with pytest.raises(InputError, match=message):
    open_source(config(tmp_path)).load("a")


@pytest.mark.parametrize("kind", ["flair", "seg"])
def test_damaged_nifti(tmp_path, kind):
  folder = write_case(tmp_path, "a")
  file = folder / f"a_{kind}.nii.gz"
  whole = file.read_bytes()
  for broken in (whole[: len(whole) // 2], gzip.compress(gzip.decompress(whole)[:400]), b"hello"):
    file.write_bytes(broken)
    with pytest.raises(InputError, match=rf"(?s)a_{kind}\.nii\.gz cannot be read, it is truncated or not NIfTI.*fetch it again"):
      open_source(config(tmp_path)).load("a")


@pytest.mark.parametrize(("kind", "path"), [("brats_h5", "data/image0001.h5"), ("pancreas_h5", "Pancreas_h5/image0001_norm.h5")])
def test_damaged_h5(tmp_path, kind, path):
  image, label = np.random.default_rng(0).normal(size=(20, 20, 20)), np.ones((20, 20, 20), np.uint8)
  cfg = DataConfig(source=kind, root=str(tmp_path), num_labelled=1, num_holdout=0)
  file = tmp_path / path
  for given, message in (
    ((image, label * 4), "label value 4 is unknown, known values: 0, 1"),
    ((image, label[1:]), r"label shape \(19, 20, 20\) differs"),
    ((image, label * 0), "the label marks no voxel; repair it"),
    ((image * np.inf, label), "8000 of 8000 voxels are NaN or infinite"),
    ((image[..., None], None), r"image shape \(20, 20, 20, 1\) is not 3D; save one volume"),
  ):
    write_h5(file, *given)
    with pytest.raises(InputError, match=rf"image0001\w*\.h5: {message}"):
      open_source(cfg).load("image0001")
  write_h5(file, image, label)
  assert open_source(cfg).load("image0001").label.all()
  truncate(file)
  for read in (lambda source: source.load("image0001"), lambda source: make_split(cfg, source)):
    with pytest.raises(InputError, match=r"image0001\w*\.h5 cannot be read, it is truncated or not HDF5.*fetch it again"):
      read(open_source(cfg))
  for change, message in (
    (lambda h5: h5.create_group("image"), " cannot be read"),
    (lambda h5: None, ": dataset 'image' is missing; fetch"),
  ):
    with h5py.File(file, "w") as h5:
      change(h5)
    with pytest.raises(InputError, match=rf"image0001\w*\.h5{message}"):
      open_source(cfg).load("image0001")


def test_a_u_net_trains_and_is_evaluated_on_the_prepared_layout(tmp_path):
  for i in range(4):
    image, label = np.random.default_rng(i).normal(size=(20, 18, 17)).astype(np.float32), np.zeros((20, 18, 17), np.uint8)
    label[5:12, 4:10, 6:11] = 1
    write_h5(tmp_path / "data" / f"case{i}.h5", image, label)
  (tmp_path / "train.txt").write_text("case0\ncase1\ncase2\n")
  (tmp_path / "test.txt").write_text("case3\n")
  cfg = with_train(tiny_config("supervised", source="brats_h5", root=str(tmp_path)), phases=(("train", 2),))
  cfg = dataclasses.replace(cfg, network=NetworkConfig(name="unet3d", width=2, dropout=0.3))
  experiment = open_experiment(cfg)
  result = evaluate(experiment, train(experiment, tmp_path / "run"))["student"]
  assert result["step"] == 2 and result["cases"][0]["case"] == "case3" and 0 <= result["summary"]["dice"]["mean"] <= 1
