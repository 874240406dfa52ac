"""ACDC: the prepared volumes and slices, the challenge files, and the importer between them."""

import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ssl_jax.data import __main__ as command_line
from ssl_jax.data import check_predictable, make_split, open_source, prepare_acdc
from ssl_jax.data.slices import SliceSource
from ssl_jax.types import DataConfig, InputError
from tests.test_data_pancreas import truncate, write_h5, write_nifti

SIDES = (7, 6, 4)  # X, Y, slices
OBLIQUE = np.array([[0.2, 0.1, 9.5, 5], [1.4, 0.2, -2, 6], [0.1, -1.5, 1, 7], [0, 0, 0, 1]])  # slices run mostly from left to right


def stack(seed: int) -> tuple[np.ndarray, np.ndarray]:
  rng = np.random.default_rng(seed)
  image = rng.integers(10, 900, SIDES).astype(np.int16)
  image[0, 0, 0], image[-1, -1, -1] = 10, 1010
  label = np.zeros(SIDES, np.uint8)
  label[2:5, 2:4, 1:3] = rng.integers(1, 4, (3, 2, 2))
  label[2, 2, 1:3] = 3
  return image, label


def write_patient(root: Path, number: int, frames=(1, 12), info: str | None = None, ending: str = ".nii.gz", labels: bool = True) -> Path:
  folder = root / f"patient{number:03d}"
  for frame in frames:
    image, label = stack(100 * number + frame)
    write_nifti(folder / f"{folder.name}_frame{frame:02d}{ending}", image, OBLIQUE, _axes())
    if labels:
      write_nifti(folder / f"{folder.name}_frame{frame:02d}_gt{ending}", label, OBLIQUE, _axes())
  write_nifti(folder / f"{folder.name}_4d.nii.gz", np.zeros((*SIDES, 3), np.int16)[..., 0], OBLIQUE, _axes())
  (folder / "Info.cfg").write_text(info or f"ED: {frames[0]}\nES: {frames[1]}\nGroup: DCM\nHeight: 184.0\nNbFrame: 30\n")
  return folder


def _axes() -> str:
  return "".join(nib.aff2axcodes(OBLIQUE))  # as they are: the array is written unturned


def config(root: Path, kind: str = "nifti", **changes) -> DataConfig:
  return DataConfig(**{"source": f"acdc_{kind}", "root": str(root), "num_labelled": 1, "num_holdout": 1, "patch": (8, 8), **changes})


def write_lists(root: Path, **lists: str) -> None:
  for name, entries in lists.items():
    (root / f"{name}.list").write_text("\n".join(entries.split()))


@pytest.fixture
def raw(tmp_path):
  """Patients 1 and 90 are for training, 101 for the test; patient 90's ES comes before its ED."""
  root = tmp_path / "raw"
  write_patient(root / "training", 1)
  write_patient(root / "training", 90, (11, 4))
  write_patient(root / "testing", 101, (1, 9), ending=".nii")
  return root


PUBLISHED = {
  "train": "patient090_frame01 patient090_frame02",
  "val": "patient101_frame01 patient101_frame02",
  "test": "patient001_frame02 patient001_frame01",
}


def test_values_and_voxel_order(raw):
  source = open_source(config(raw))
  assert source.train_names == ("patient001_frame01", "patient001_frame12", "patient090_frame04", "patient090_frame11")
  assert source.test_names == ("patient101_frame01", "patient101_frame09")
  assert source.class_names == ("background", "RV", "MYO", "LV") and source.channels == 1
  for name, seed in (("patient001_frame12", 112), ("patient101_frame09", 10109)):
    image, label = stack(seed)
    case = source.load(name)
    assert case.image.shape == (*SIDES, 1) and case.image.dtype == np.float32
    np.testing.assert_allclose(case.image[..., 0], (image - 10.0) / 1000, atol=1e-6)  # the slices stay last, whatever the header says
    np.testing.assert_array_equal(case.label, label)
    assert case.label.dtype == np.uint8 and case.image.min() == 0 and case.image.max() == 1
    np.testing.assert_allclose(case.affine, OBLIQUE, atol=1e-6)
    np.testing.assert_allclose(case.spacing, np.linalg.norm(OBLIQUE[:3, :3], axis=0), rtol=1e-5)


def test_frames_without_a_label_and_patients_beside_the_lists(tmp_path):
  write_patient(tmp_path, 2)
  write_patient(tmp_path, 1, labels=False)
  source = open_source(config(tmp_path))
  assert source.names == tuple(f"patient{p}_frame{f}" for p in ("001", "002") for f in ("01", "12"))
  assert [source.has_label(name) for name in source.names] == [False, False, True, True]
  assert source.load("patient001_frame01").label is None
  split = make_split(config(tmp_path, num_holdout=0), source)
  assert split.labelled == ("patient002_frame01",)


def test_published_lists_number_ed_and_es(raw):
  write_lists(raw, **PUBLISHED, train_slices="patient090_frame02_slice_3 patient090_frame01_slice_1")
  source = open_source(config(raw))
  assert (source.train_names, source.test_names) == (tuple(PUBLISHED["train"].split()), tuple(PUBLISHED["test"].split()))
  np.testing.assert_array_equal(source.load("patient090_frame01").label, stack(9011)[1])  # ED, the later frame
  np.testing.assert_array_equal(source.load("patient090_frame02").label, stack(9004)[1])
  assert open_source(config(raw, test_list="val.list")).test_names == tuple(PUBLISHED["val"].split())
  slices = open_source(config(raw, slices=True))
  assert isinstance(slices, SliceSource) and slices.train_names == ("patient090_frame02_slice_3", "patient090_frame01_slice_1")
  np.testing.assert_array_equal(slices.load("patient090_frame02_slice_3").label, stack(9004)[1][..., 2])
  write_lists(raw, train="patient090_frame11", test="patient001_frame12", val="", train_slices="")
  source = open_source(config(raw))  # lists may as well name the files
  assert source.names == ("patient090_frame11", "patient001_frame12")


def test_patients_are_split_whole(raw):
  split = make_split(config(raw, slices=True), open_source(config(raw, slices=True)))
  assert split.evaluation == ("patient090_frame11",)
  assert {name.split("_")[0] for name in split.labelled + split.unlabelled} == {"patient001"}


@pytest.mark.parametrize(
  ("info", "message"),
  [
    ("ED: 1\nGroup: NOR\n", r"patient003/Info\.cfg: no line 'ES: <frame>'; fetch"),
    ("ED: one\nES: 12\n", "no line 'ED: <frame>'"),
    ("ED: 1\nES: 13\n", r"Info\.cfg: ES is frame 13, but .*patient003_frame13\.nii\.gz does not exist; fetch the patient again"),
    (None, r"patient003/Info\.cfg does not exist; it names the ED and ES frames"),
  ],
)
def test_wrong_info(tmp_path, info, message):
  folder = write_patient(tmp_path, 3, info=info)
  if info is None:
    (folder / "Info.cfg").unlink()
  with pytest.raises(InputError, match=message):
    open_source(config(tmp_path))


def test_a_patient_in_both_folders(raw):
  shutil.copytree(raw / "training" / "patient001", raw / "testing" / "patient001")
  with pytest.raises(InputError, match=r"testing/patient001 and .*training/patient001 are of the same patient; remove one"):
    open_source(config(raw))


@pytest.mark.parametrize(
  ("kind", "change", "message"),
  [
    ("_gt", lambda label: label + 1, r"frame12_gt\.nii\.gz: label value 4 is unknown, known values: 0, 1, 2, 3"),
    ("_gt", lambda label: label * 0, "the label marks no voxel"),
    ("_gt", lambda label: label[1:], r"label shape \(6, 6, 4\) differs"),
    ("", lambda image: image * 0 + 5, r"frame12\.nii\.gz: all voxels are 5; fetch it again"),
    ("", lambda image: np.stack([image, image], -1), r"is not that of one 3D volume"),
  ],
)
def test_wrong_content(tmp_path, kind, change, message):
  folder = write_patient(tmp_path, 3)
  array = change(stack(312)[kind == "_gt"])
  nib.save(nib.Nifti1Image(array, OBLIQUE), folder / f"patient003_frame12{kind}.nii.gz")
  with pytest.raises(InputError, match=message):
    open_source(config(tmp_path)).load("patient003_frame12")


def test_a_label_that_lies_elsewhere(tmp_path):
  folder = write_patient(tmp_path, 3)
  write_nifti(folder / "patient003_frame12_gt.nii.gz", stack(312)[1], OBLIQUE + 40 * np.eye(4, k=3), _axes())
  with pytest.raises(InputError, match=r"its header places it up to 40\.0 mm from patient003_frame12"):
    open_source(config(tmp_path)).load("patient003_frame12")


def test_import_round_trip(raw, tmp_path, capsys):
  out = tmp_path / "out"
  write_lists(raw, **PUBLISHED)
  assert command_line.main(["prepare", "acdc", str(raw), str(out)]) == 0
  assert "6 cases written" in capsys.readouterr().out
  assert sorted(file.name for file in out.iterdir()) == ["data", "test.list", "train.list", "train_slices.list", "val.list"]
  slice_names = tuple(f"patient090_frame0{f}_slice_{k}" for f in (1, 2) for k in range(1, 5))
  assert tuple((out / "train_slices.list").read_text().split()) == slice_names
  assert len(list((out / "data" / "slices").iterdir())) == 8 and len(list((out / "data").glob("*.h5"))) == 6
  nifti, h5 = open_source(config(raw)), open_source(config(out, "h5"))
  assert (h5.train_names, h5.test_names, h5.class_names) == (nifti.train_names, nifti.test_names, nifti.class_names)
  for name in (*h5.names, *PUBLISHED["val"].split()):
    ours, theirs = h5.load(name), nifti.load(name)
    np.testing.assert_array_equal(ours.image, theirs.image)
    np.testing.assert_array_equal(ours.label, theirs.label)
    np.testing.assert_allclose(ours.affine, theirs.affine)
    assert ours.image.flags.c_contiguous and ours.label.flags.c_contiguous and ours.spacing == theirs.spacing
  cut, written = open_source(config(raw, slices=True)), open_source(config(out, "h5", slices=True))
  assert isinstance(cut, SliceSource) and not isinstance(written, SliceSource)
  assert written.train_names == cut.train_names == slice_names and written.test_names == cut.test_names
  for name in slice_names:
    ours, theirs = written.load(name), cut.load(name)
    np.testing.assert_array_equal(ours.image, theirs.image)
    np.testing.assert_array_equal(ours.label, theirs.label)
    np.testing.assert_allclose(ours.affine, theirs.affine)
    assert ours.image.shape == (*SIDES[:2], 1) and ours.label.shape == SIDES[:2] and ours.spacing == theirs.spacing
    assert written.files(name) == (out / "data" / "slices" / f"{name}.h5",)
  assert not written.load(slice_names[0]).label.any()  # a slice beside the heart is no error
  assert make_split(config(out, "h5", slices=True, num_labelled=3, split="official"), written) == make_split(
    config(raw, slices=True, num_labelled=3, split="official"), cut
  )


def test_import_without_lists_keeps_the_challenge_s_test_patients(raw, tmp_path):
  names = prepare_acdc(raw, tmp_path / "out")
  source = open_source(config(tmp_path / "out", "h5"))
  assert source.names == names and source.test_names == ("patient101_frame01", "patient101_frame09")
  write_lists(raw, val="patient009_frame01")
  with pytest.raises(InputError, match=r"val\.list: 'patient009_frame01' has no data"):
    prepare_acdc(raw, tmp_path / "out")


@pytest.fixture
def prepared(tmp_path):
  """Files as published: no affine, int labels; patient 2's slices lie there without its volume."""
  for seed, name in enumerate(("patient001_frame01", "patient002_frame01", "patient003_frame01")):
    image, label = (np.moveaxis(array, -1, 0) for array in stack(seed))
    if seed != 1:
      write_h5(tmp_path / "data" / f"{name}.h5", image.astype(np.float64), label.astype(np.int64))
    if seed != 2:
      for k in range(SIDES[2]):
        write_h5(tmp_path / "data" / "slices" / f"{name}_slice_{k + 1}.h5", image[k].astype(np.float32), label[k])
  write_lists(tmp_path, test="patient003_frame01")
  return tmp_path


def test_published_files(prepared):
  lines = "patient002_frame01_slice_3 patient001_frame01_slice_2 patient002_frame01_slice_1"
  write_lists(prepared, train_slices=lines)
  source = open_source(config(prepared, "h5", slices=True))
  assert source.train_names == tuple(lines.split()) and source.test_names == ("patient003_frame01",)
  case = source.load("patient002_frame01_slice_3")
  np.testing.assert_array_equal(case.image[..., 0], stack(1)[0][..., 2])
  np.testing.assert_array_equal(case.label, stack(1)[1][..., 2])
  assert case.spacing == (1.0, 1.0) and case.label.dtype == np.uint8 and case.image.dtype == np.float32 and case.affine.shape == (4, 4)
  volume = source.load("patient003_frame01")
  np.testing.assert_array_equal(volume.image[..., 0], stack(2)[0])
  np.testing.assert_array_equal(volume.label, stack(2)[1])
  assert volume.spacing == (1.0, 1.0, 1.0)
  held_out = make_split(config(prepared, "h5", slices=True), source).evaluation
  assert held_out == ("patient001_frame01",)
  np.testing.assert_array_equal(source.load("patient002_frame01").image[..., 0], stack(1)[0])  # put together from all its slices
  (prepared / "train_slices.list").unlink()
  everything = open_source(config(prepared, "h5", slices=True)).train_names
  assert everything == tuple(f"patient00{p}_frame01_slice_{k}" for p in (1, 2) for k in range(1, 5))
  assert open_source(config(prepared, "h5")).train_names == ("patient001_frame01",)


def test_without_slice_files_the_volumes_are_cut(prepared):
  shutil.rmtree(prepared / "data" / "slices")
  source = open_source(config(prepared, "h5", slices=True))
  assert isinstance(source, SliceSource) and source.train_names == tuple(f"patient001_frame01_slice_{k}" for k in range(1, 5))


def test_wrong_slice_lists(prepared):
  write_h5(prepared / "data" / "slices" / "patient003_frame01_slice_1.h5", np.zeros((7, 6)), np.zeros((7, 6)))
  cfg = config(prepared, "h5", slices=True)
  for line, message in (
    ("patient001_frame01_slice_9", r"train_slices\.list: slice 'patient001_frame01_slice_9' has no file; did you mean 'patient001"),
    ("patient003_frame01_slice_1", "is of 'patient003_frame01', a test volume, whose slices may not train"),
    ("patient002_frame01_slice_1", "is of 'patient002_frame01', no training volume"),
  ):
    write_lists(prepared, train_slices=line, train="patient001_frame01")
    with pytest.raises(InputError, match=message):
      open_source(cfg)
  with pytest.raises(InputError, match=r"data\.slice_list: .*mine\.list does not exist"):
    open_source(config(prepared, "h5", slices=True, slice_list="mine.list"))
  with pytest.raises(InputError, match=r"config\.data\.normalise='zscore' is over whole scans.*set it to 'none'"):
    open_source(config(prepared, "h5", slices=True, normalise="zscore"))


def test_wrong_slice_files(prepared):
  file, name = prepared / "data" / "slices" / "patient001_frame01_slice_2.h5", "patient001_frame01_slice_2"
  source = config(prepared, "h5", slices=True)
  image, label = stack(0)[0][..., 1], stack(0)[1][..., 1]
  for given, message in (
    ((image[None], label[None]), r"image shape \(1, 7, 6\) is not 2D; save one slice"),
    ((image, label[1:]), r"label shape \(6, 6\) differs"),
    ((image, label + 3), "label values? [456, ]+ (is|are) unknown, known values: 0, 1, 2, 3"),
    ((image * np.nan, label), "42 of 42 voxels are NaN"),
  ):
    write_h5(file, *given)
    with pytest.raises(InputError, match=rf"{name}\.h5: {message}"):
      open_source(source).load(name)
  (prepared / "data" / "patient001_frame01.h5").unlink()
  write_h5(file, image[1:], label[1:])
  with pytest.raises(InputError, match=rf"{name}\.h5: shape \(6, 6\) differs from patient001_frame01_slice_1\.h5's \(7, 6\)"):
    open_source(source).load("patient001_frame01")
  write_h5(file, image, None)
  assert open_source(source).load("patient001_frame01").label is None and not open_source(source).has_label(name)
  truncate(file)
  with pytest.raises(InputError, match=rf"{name}\.h5 cannot be read, it is truncated or not HDF5"):
    open_source(source).load(name)
  write_h5(prepared / "data" / "patient003_frame01.h5", image, label)
  with pytest.raises(InputError, match=r"patient003_frame01\.h5: image shape \(7, 6\) is not 3D"):
    open_source(source).load("patient003_frame01")
  write_h5(prepared / "data" / "patient003_frame01.h5", np.ones((4, 7, 6)), np.zeros((4, 7, 6)))
  with pytest.raises(InputError, match=r"patient003_frame01\.h5: the label marks no voxel"):
    open_source(source).load("patient003_frame01")


def test_check_and_missing_folders(raw, tmp_path, capsys):
  prepare_acdc(raw, tmp_path / "out")
  for kind, root in (("nifti", raw), ("h5", tmp_path / "out")):
    assert command_line.main(["check", str(root)]) == 0
    printed = capsys.readouterr().out
    assert f"data.source=acdc_{kind})" in printed and "6 labelled, 0 unlabelled, 0 unreadable" in printed
  for kind, holds in (("nifti", "patientXXX/patientXXX_frameYY.nii.gz"), ("h5", "data/<case>.h5")):
    (tmp_path / "empty").mkdir(exist_ok=True)
    for root, problem in ((tmp_path / "nowhere", "is no folder: "), (tmp_path / "empty", f"holds no {holds}: ")):
      with pytest.raises(InputError, match=re.escape(problem) + r".*SSL4MIS.*--config\.data\.root=FOLDER"):
        open_source(config(root, kind))


def test_prediction_is_refused_where_reading_scales(tmp_path):
  for source in ("acdc_nifti", "synapse_nifti"):
    with pytest.raises(InputError, match=source):
      check_predictable(DataConfig(source=source))
  for source in ("acdc_h5", "synapse_npz"):
    check_predictable(DataConfig(source=source))
