"""Pancreas-CT: the prepared h5 files, NIfTI files with the published preprocessing, and the importer between them."""

import dataclasses
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from ssl_jax.data import __main__ as command_line
from ssl_jax.data import make_split, open_source, prepare_pancreas
from ssl_jax.data.pancreas import DUPLICATES, PUBLISHED_TEST, PUBLISHED_TRAIN, crop_box, published_split
from ssl_jax.data.preprocess import resample
from ssl_jax.types import DataConfig, InputError

AFFINE = np.array([[0.5, 0, 0, -40], [0, 0.5, 0, 12], [0, 0, 2.0, -300], [0, 0, 0, 1]])  # RAS
SHAPE = (300, 240, 60)  # 150 x 120 x 120 mm
MARKER = (150, 50, 35)  # a voxel of the pancreas


def write_nifti(file: Path, array: np.ndarray, affine: np.ndarray = AFFINE, axes: str = "RAS") -> None:
  """Writes an array given in RAS with its voxels in the order `axes`; every voxel keeps its place in mm."""
  turn = ornt_transform(io_orientation(affine), axcodes2ornt(axes))
  file.parent.mkdir(parents=True, exist_ok=True)
  nib.save(nib.Nifti1Image(apply_orientation(array, turn), affine @ inv_ornt_aff(turn, array.shape)), file)


def write_h5(file: Path, image: np.ndarray, label: np.ndarray | None) -> None:
  file.parent.mkdir(parents=True, exist_ok=True)
  with h5py.File(file, "w") as h5:
    h5["image"] = image
    if label is not None:
      h5["label"] = label


def truncate(file: Path) -> None:
  file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def scan() -> tuple[np.ndarray, np.ndarray]:
  rng = np.random.default_rng(0)
  image = np.repeat(rng.integers(-1000, 1000, (SHAPE[0], 1, SHAPE[2])), SHAPE[1], axis=1).astype(np.int16)
  image += np.arange(SHAPE[1], dtype=np.int16)[None, :, None]
  image[MARKER] = 75  # the middle of the window
  label = np.zeros(SHAPE, np.uint8)
  label[100:200, 40:60, 30:40] = 1
  return image, label


def small(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
  rng = np.random.default_rng(seed)
  label = np.zeros((8, 9, 10), np.uint8)
  label[2:5, 3:6, 4:7] = 1
  return rng.integers(-1000, 1000, (8, 9, 10)).astype(np.int16), label


def write_cases(root: Path, numbers, unlabelled=()) -> DataConfig:
  for number in numbers:
    image, label = small(number)
    write_nifti(root / f"image{number:04d}.nii", image)
    if number not in unlabelled:
      write_nifti(root / f"label{number:04d}.nii", label)
  return DataConfig(source="pancreas_nifti", root=str(root), num_labelled=1, num_holdout=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
  """One scan in several voxel orders, with its label in yet another one; 0009 has no label."""
  root = tmp_path_factory.mktemp("nifti")
  image, label = scan()
  for number, image_axes, label_axes in ((1, "RAS", "RAS"), (2, "LPS", "RAS"), (3, "RAS", "LAI"), (4, "SPL", "PIR")):
    write_nifti(root / "images" / f"image{number:04d}.nii", image, axes=image_axes)
    write_nifti(root / "TCIA_pancreas_labels" / f"label{number:04d}.nii.gz", label, axes=label_axes)
  write_nifti(root / "PANCREAS_0009.nii.gz", image)
  return root


def expected(part: tuple[slice, ...]) -> np.ndarray:
  """The scan on a 1 mm grid by hand: every second voxel in-plane, and along Z slices and the means of neighbours in turn."""
  image = scan()[0][::2, ::2].astype(np.float64)
  grid = np.repeat(image, 2, axis=2)
  grid[..., 1:-1:2] = (image[..., :-1] + image[..., 1:]) / 2
  return (np.clip(grid, -125, 275) + 125)[part] / 400


def test_preprocessing_by_hand(folder):
  source = open_source(DataConfig(source="pancreas_nifti", root=str(folder)))
  assert source.names == ("image0001", "image0002", "image0003", "image0004", "image0009")
  assert source.class_names == ("background", "pancreas") and source.channels == 1
  case = source.load("image0001")
  # In mm: X 50..99 -> 25..124. Y 20..29 -> 0..54, too short and at the edge -> 0..95. Z 59..78 -> 34..103, too short -> 21..116.
  box = (slice(25, 125), slice(0, 96), slice(21, 117))
  assert case.image.shape == (100, 96, 96, 1) and case.image.dtype == np.float32
  np.testing.assert_allclose(case.image[..., 0], expected(box), atol=1e-6)
  assert case.image.min() == 0 and case.image.max() == 1
  label = np.zeros((150, 120, 120), np.uint8)
  label[50:100, 20:30, 59:79] = 1  # index i takes slice floor(i / 2 + 1/2)
  np.testing.assert_array_equal(case.label, label[box])
  assert case.label.dtype == np.uint8 and case.spacing == pytest.approx((1, 1, 1))


@pytest.mark.parametrize("name", ["image0002", "image0003", "image0004"])
def test_image_and_label_in_different_voxel_orders(folder, name):
  source = open_source(DataConfig(source="pancreas_nifti", root=str(folder)))
  ours, ras = source.load(name), source.load("image0001")
  np.testing.assert_allclose(ours.affine, ras.affine, atol=1e-4)
  np.testing.assert_allclose(ours.image, ras.image, atol=1e-6)
  np.testing.assert_array_equal(ours.label, ras.label)


def test_affine_leads_back_to_the_same_point(folder):
  source = open_source(DataConfig(source="pancreas_nifti", root=str(folder)))
  point = AFFINE @ [*MARKER, 1]
  for name in ("image0001", "image0002", "image0004", "image0009"):
    case = source.load(name)
    voxel = tuple(np.round(np.linalg.solve(case.affine, point)[:3]).astype(int))
    np.testing.assert_allclose(case.affine @ [*voxel, 1], point, atol=1e-4)
    assert case.image[(*voxel, 0)] == pytest.approx(0.5, abs=1e-6)
    assert case.label is None or case.label[voxel] == 1


def test_a_scan_without_label_is_kept_whole(folder):
  source = open_source(DataConfig(source="pancreas_nifti", root=str(folder)))
  case = source.load("image0009")
  assert case.label is None and not source.has_label("image0009") and source.has_label("image0001")
  assert case.image.shape == (150, 120, 120, 1)
  np.testing.assert_allclose(case.image[..., :119, 0], expected((slice(None), slice(None), slice(0, 119))), atol=1e-6)
  np.testing.assert_allclose(case.affine[:, 3], AFFINE[:, 3])


def test_intensity_scaling_of_the_header_is_applied(tmp_path):
  cfg = write_cases(tmp_path, [1])
  image = nib.Nifti1Image(np.full((8, 9, 10), 1099, np.uint16), AFFINE)
  image.header.set_slope_inter(1.0, -1024.0)
  nib.save(image, tmp_path / "image0001.nii")
  np.testing.assert_allclose(open_source(cfg).load("image0001").image, 0.5)  # 75 HU


def test_resample_starts_at_the_first_voxel_and_repeats_the_last():
  volume = np.arange(5, dtype=np.float32).reshape(5, 1, 1) * 10
  out = resample(volume, (1.5, 1.0, 1.0), 1.0, order=1)
  np.testing.assert_allclose(out.ravel(), np.array([0, 2 / 3, 4 / 3, 2, 8 / 3, 10 / 3, 4, 4]) * 10, rtol=1e-6)
  np.testing.assert_array_equal(resample(volume, (1.5, 1.0, 1.0), 1.0, order=0).ravel(), np.array([0, 1, 1, 2, 3, 3, 4, 4]) * 10)
  np.testing.assert_array_equal(resample(volume, (1.5, 1.0, 1.0), 1.0, 1, (slice(2, 5), slice(0, 1), slice(0, 1))), out[2:5])
  assert resample(volume, (0.1, 1.0, 1.0), 1.0, order=1).shape == (1, 1, 1)


@pytest.mark.parametrize(
  ("first", "last", "side", "wanted"),
  [
    (60, 120, 300, (35, 146)),  # a margin of 25 on both sides
    (10, 120, 300, (0, 146)),  # as far as the scan reaches
    (100, 119, 300, (62, 158)),  # 70 voxels -> 96, 13 more on both sides
    (100, 120, 300, (63, 159)),  # 71 voxels -> 96, 12 before and 13 behind
    (5, 20, 300, (0, 96)),  # at the edge it grows inwards
    (280, 290, 300, (204, 300)),
    (30, 40, 80, (0, 80)),  # a scan that is smaller than the patch
  ],
)
def test_crop_box(first, last, side, wanted):
  label = np.zeros((side, 400, 3), np.uint8)
  label[first, 200, 1] = label[last, 300, 1] = 1
  assert crop_box(label) == (slice(*wanted), slice(175, 326), slice(0, 3))


def test_published_lists():
  assert (len(PUBLISHED_TRAIN), len(PUBLISHED_TEST)) == (62, 20)
  everything = tuple(f"image{number:04d}" for number in range(1, 83))
  assert tuple(sorted(PUBLISHED_TRAIN + PUBLISHED_TEST)) == everything
  assert PUBLISHED_TRAIN[:3] == ("image0057", "image0018", "image0062") and PUBLISHED_TEST[-2:] == ("image0021", "image0009")
  assert published_split(everything) == (PUBLISHED_TRAIN, PUBLISHED_TEST)
  unique = tuple(name for name in everything if name not in DUPLICATES)
  train, test = published_split(unique)
  assert train == unique[:62] and train[-1] == "image0063" and test == unique[62:] and len(test) == 18
  assert published_split(everything[:-1]) == (everything[:-1], ())


def test_h5_layout(tmp_path):
  rng = np.random.default_rng(0)
  image, label = rng.random((6, 7, 8)).astype(np.float32), rng.integers(0, 2, (6, 7, 8)).astype(np.float32)  # MC-Net writes f32 labels
  for name in ("image0003", "image0001"):
    write_h5(tmp_path / "Pancreas_h5" / f"{name}_norm.h5", image, label)
  write_h5(tmp_path / "Pancreas_h5" / "image0002_norm.h5", image, None)
  (tmp_path / "Pancreas_h5" / "._image0001_norm.h5").write_bytes(b"\x00\x05")
  cfg = DataConfig(source="pancreas_h5", root=str(tmp_path), num_labelled=1)
  assert open_source(cfg).names == ("image0001", "image0002", "image0003")
  (tmp_path / "train.list").write_text("image0003\nimage0002\n")
  (tmp_path / "test.list").write_text("image0001\n")
  source = open_source(cfg)
  split = make_split(dataclasses.replace(cfg, split="official"), source)
  assert (split.labelled, split.unlabelled, split.evaluation) == (("image0003",), ("image0002",), ("image0001",))
  case = source.load("image0003")
  np.testing.assert_array_equal(case.image[..., 0], image)
  np.testing.assert_array_equal(case.label, label)
  assert case.label.dtype == np.uint8 and case.spacing == (1.0, 1.0, 1.0)
  assert source.load("image0002").label is None
  assert source.class_names == ("background", "pancreas")


def test_import_writes_what_the_nifti_source_reads(tmp_path):
  cfg = write_cases(tmp_path / "nifti", (2, 1, 25, 70), unlabelled=(2,))
  (tmp_path / "nifti" / "train.list").write_text("image0002\nimage0070\nimage0001\n")
  (tmp_path / "nifti" / "test.list").write_text("image0025\n")
  nifti = open_source(cfg)
  assert prepare_pancreas(tmp_path / "nifti", tmp_path / "all") == ("image0001", "image0002", "image0025", "image0070")
  h5 = open_source(DataConfig(source="pancreas_h5", root=str(tmp_path / "all")))
  assert (
    (h5.train_names, h5.test_names) == (nifti.train_names, nifti.test_names) == (("image0002", "image0070", "image0001"), ("image0025",))
  )
  for name in h5.names:
    ours, theirs = h5.load(name), nifti.load(name)
    np.testing.assert_array_equal(ours.image, theirs.image)
    np.testing.assert_allclose(ours.affine, theirs.affine)
    np.testing.assert_array_equal(ours.label, theirs.label)
  assert prepare_pancreas(tmp_path / "nifti", tmp_path / "unique", exclude_duplicates=True) == ("image0001", "image0002")
  unique = open_source(DataConfig(source="pancreas_h5", root=str(tmp_path / "unique")))
  assert (unique.train_names, unique.test_names) == (("image0002", "image0001"), ())


def test_import_of_the_whole_set_writes_the_published_lists(tmp_path):
  write_cases(tmp_path / "nifti", range(1, 83))
  assert command_line.main(["prepare", "pancreas", str(tmp_path / "nifti"), str(tmp_path / "h5")]) == 0
  assert (tmp_path / "h5" / "train.list").read_text().split() == list(PUBLISHED_TRAIN)
  assert (tmp_path / "h5" / "test.list").read_text().split() == list(PUBLISHED_TEST)
  nifti = open_source(DataConfig(source="pancreas_nifti", root=str(tmp_path / "nifti")))
  assert (nifti.train_names, nifti.test_names) == (PUBLISHED_TRAIN, PUBLISHED_TEST)  # without any list file
  for number in (25, 70):
    (tmp_path / "nifti" / f"image{number:04d}.nii").unlink()  # as the archive has it now: 80 images, 82 labels
  nifti = open_source(DataConfig(source="pancreas_nifti", root=str(tmp_path / "nifti")))
  assert (len(nifti.train_names), len(nifti.test_names)) == (62, 18)


def test_check_finds_the_layouts(tmp_path, capsys):
  write_cases(tmp_path / "nifti", (1, 2), unlabelled=(2,))
  assert command_line.main(["prepare", "pancreas", str(tmp_path / "nifti"), str(tmp_path / "h5"), "--exclude-duplicates"]) == 0
  assert not list((tmp_path / "h5").glob("*.list"))  # no published split fits
  capsys.readouterr()
  for kind in ("nifti", "h5"):
    assert command_line.main(["check", str(tmp_path / kind)]) == 0
    printed = capsys.readouterr().out
    assert f"data.source=pancreas_{kind})" in printed and "1 labelled, 1 unlabelled, 0 unreadable" in printed


@pytest.mark.parametrize("kind", ["h5", "nifti"])
def test_lists_that_do_not_fit(tmp_path, kind):
  cfg = write_cases(tmp_path, (1, 2), unlabelled=(2,))
  prepare_pancreas(tmp_path, tmp_path)
  cfg = dataclasses.replace(cfg, source=f"pancreas_{kind}", split="official")
  (tmp_path / "train.list").write_text("image0001\nimage0083\n")
  with pytest.raises(InputError, match=r"train\.list: 1 of 2 entries have no data .* first 'image0083'"):
    open_source(cfg)
  (tmp_path / "train.list").write_text("image0001\n")
  (tmp_path / "test.list").write_text("image0002\n")
  with pytest.raises(InputError, match="test case 'image0002' has no label file"):
    make_split(cfg, open_source(cfg))


def volume(array: np.ndarray, affine: np.ndarray | None = AFFINE) -> nib.Nifti1Image:
  """A volume as it is; without an affine, its header gives X no length."""
  out = nib.Nifti1Image(array, affine)
  if affine is None:
    out.header.set_sform(np.diag([0.0, 1, 1, 1]), code=1)
  return out


@pytest.mark.parametrize(
  ("kind", "damage", "message"),
  [
    ("image", truncate, "cannot be read, it is truncated.*fetch it again"),
    ("label", truncate, "cannot be read, it is truncated.*fetch it again"),
    ("image", lambda file: file.write_bytes(b"hello"), "cannot be read.*not NIfTI"),
    ("image", lambda file: nib.save(volume(np.full((8, 9, 10), np.nan)), file), ": 720 of 720 voxels are NaN or infinite; repair"),
    ("image", lambda file: nib.save(volume(np.zeros((8, 9, 10, 2))), file), r": shape \(8, 9, 10, 2\).*save one volume a file"),
    ("image", lambda file: nib.save(volume(small()[0], None), file), ": the header's affine is unusable.*convert the scan again"),
    ("label", lambda file: nib.save(volume(small()[1][1:]), file), r": label shape \(7, 9, 10\) differs from its image's \(8, 9, 10\)"),
    ("label", lambda file: nib.save(volume(small()[1] * 3), file), ": label value 3 is unknown, known values: 0, 1"),
    ("label", lambda file: nib.save(volume(small()[1] * 0), file), ": the label marks no voxel; repair it, or remove"),
    # The voxels are those of the image, but the header says that X runs the other way.
    ("label", lambda file: nib.save(volume(small()[1], AFFINE @ np.diag([-1, 1, 1, 1])), file), "its header places it up to .* mm from"),
  ],
)
def test_damaged_nifti(tmp_path, kind, damage, message):
  cfg = write_cases(tmp_path, [1])
  assert open_source(cfg).load("image0001").label.any()
  damage(tmp_path / f"{kind}0001.nii")
  with pytest.raises(InputError, match=rf"(?s){kind}0001\.nii.*{message}"):
    open_source(cfg).load("image0001")


def test_a_pancreas_too_thin_for_the_grid(tmp_path):
  affine = np.diag([0.25, 1, 1, 1])
  label = np.zeros((40, 8, 8), np.uint8)
  label[1] = 1  # 1 mm voxels take indices 0, 4, 8, ...
  write_nifti(tmp_path / "image0001.nii", np.zeros(label.shape, np.int16), affine)
  write_nifti(tmp_path / "label0001.nii", label, affine)
  with pytest.raises(InputError, match=r"label0001\.nii: no pancreas is left at 1 mm"):
    open_source(DataConfig(source="pancreas_nifti", root=str(tmp_path))).load("image0001")
