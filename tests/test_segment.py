"""Images in, label maps out on the same grid; what cannot be read is named, and nothing is half written."""

import itertools
import os

import nibabel as nib
import numpy as np
import pytest

from ssl_jax import data
from ssl_jax.segment import segment_files
from ssl_jax.types import DataConfig, InputError

OBLIQUE = np.array([[0.6, -0.1, 0.05, -30], [0.1, 0.62, -0.02, 12.5], [-0.05, 0.03, 1.2, 7], [0, 0, 0, 1]])
AFFINES = {
  "RAS": np.array([[0.7, 0, 0, -20], [0, 0.7, 0, 11], [0, 0, 0.7, 3.0], [0, 0, 0, 1]]),
  "LPS": np.array([[-0.7, 0, 0, 20], [0, -0.7, 0, 11], [0, 0, 0.7, 3.0], [0, 0, 0, 1]]),
  "PIR": np.array([[0, 0, 0.9, -4], [-0.7, 0, 0, 11], [0, -0.8, 0, 3.0], [0, 0, 0, 1]]),
  "anisotropic": np.diag([0.5, 0.625, 3.0, 1.0]),
  "oblique": OBLIQUE,
  "oblique LSP": OBLIQUE @ np.array([[-1, 0, 0, 13], [0, 0, -1.0, 9], [0, 1, 0, 0], [0, 0, 0, 1]]),
}
STORED = {"int16": (np.int16, 0.5, -3.0), "float32": (np.float32, None, None), "uint8": (np.uint8, 2.0, -100.0)}
SHAPE = (14, 11, 10)


def bright(shape=SHAPE):
  """Two blocks of 100 among values from -10 to 9, without symmetry."""
  values = np.random.default_rng(0).integers(-10, 10, shape).astype(np.float32)
  values[2:7, 1:4, 3:9] = values[9:12, 6:8, 1:3] = 100
  return values


def write(path, values, affine=OBLIQUE, stored="float32"):
  dtype, slope, intercept = STORED[stored]
  raw = values if slope is None else np.rint((values - intercept) / slope)
  image = nib.Nifti1Image(raw.astype(dtype), affine)
  image.header.set_slope_inter(slope, intercept)
  image.header.set_xyzt_units("mm")
  nib.save(image, path)
  return path


def above_50(image):
  """A predictor that each voxel's value decides."""
  p = np.where(image[..., 0] > 50, 0.9, 0.2)
  return np.stack([1 - p, p], -1).astype(np.float32)


def run(inputs, output, cfg=None, segment=above_50, channels=1, **options):
  return segment_files(segment, inputs, output, cfg or DataConfig(), channels=channels, class_names=("background", "bright"), **options)


@pytest.mark.parametrize("canonical", [False, True])
@pytest.mark.parametrize("orientation", AFFINES)
def test_round_trip(tmp_path, orientation, canonical):
  """Every way to store a scan gives a label on its voxels, and the network sees it in the order that the configuration says."""
  affine, seen = AFFINES[orientation], []
  (tmp_path / "in").mkdir()
  ways = list(itertools.product(STORED, (".nii", ".nii.gz"), (SHAPE, (*SHAPE, 1))))
  for i, (stored, suffix, shape) in enumerate(ways):
    write(tmp_path / "in" / f"case{i:02d}{suffix}", bright().reshape(shape), affine, stored)

  def segment(image):
    seen.append(image[..., 0])
    return above_50(image)

  written = run(tmp_path / "in", tmp_path / "out", DataConfig(canonical=canonical), segment, probabilities=True)
  assert len(written) == 2 * len(ways)
  upright = nib.as_closest_canonical(nib.Nifti1Image(bright(), affine)).get_fdata() if canonical else bright()
  for i, (stored, _, shape) in enumerate(ways):
    image = nib.load(next((tmp_path / "in").glob(f"case{i:02d}.*")))
    label, prob = (nib.load(tmp_path / "out" / f"case{i:02d}{end}.nii.gz") for end in ("", "_probabilities"))
    assert label.shape == image.shape == shape and label.get_data_dtype() == np.uint8
    assert label.header.get_zooms() == image.header.get_zooms()
    for found in (label, prob):
      np.testing.assert_allclose(found.affine, image.affine, atol=1e-6)
      assert [found.header[f"{form}_code"] for form in ("sform", "qform")] == [image.header[f"{form}_code"] for form in ("sform", "qform")]
    np.testing.assert_array_equal(label.get_fdata(), bright().reshape(shape) > 50)
    assert prob.shape == (*SHAPE, 2) and prob.get_data_dtype() == np.float32
    np.testing.assert_array_equal(np.asarray(prob.dataobj), above_50(bright()[..., None]))
    np.testing.assert_allclose(seen[i], upright, atol={"int16": 0.5, "float32": 1e-5, "uint8": 1.01}[stored])


@pytest.mark.parametrize(("sform", "qform"), [(0, 0), (1, 0), (0, 1), (2, 1), (4, 3)])
def test_both_transforms_and_their_codes_are_kept(tmp_path, sform, qform):
  image = nib.Nifti1Image(bright(), None)
  image.header.set_zooms((0.5, 0.75, 2.0))
  image.set_sform(OBLIQUE if sform else None, sform)
  image.set_qform(AFFINES["LPS"] if qform else None, qform)
  nib.save(image, tmp_path / "a.nii")
  image = nib.load(tmp_path / "a.nii")
  label = nib.load(run(tmp_path / "a.nii", tmp_path / "out")[0])
  for form in ("sform", "qform"):
    expected, code = getattr(image.header, f"get_{form}")(coded=True)
    found, found_code = getattr(label.header, f"get_{form}")(coded=True)
    assert found_code == code and (expected is None) == (found is None)
    if expected is not None:
      np.testing.assert_allclose(found, expected, atol=1e-6)
  np.testing.assert_allclose(label.affine, image.affine, atol=1e-6)
  np.testing.assert_allclose(label.header.get_zooms(), image.header.get_zooms(), rtol=1e-6)


@pytest.mark.parametrize("orientation", AFFINES)
def test_resampled_to_the_training_spacing_and_back(tmp_path, orientation):
  """A ramp along a fixed direction of the patient survives linear interpolation there and back, away from the edges."""
  affine, shapes = AFFINES[orientation], []
  points = np.stack([*np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), np.ones(SHAPE)], -1) @ affine.T
  ramp = points[..., :3] @ [0.01, 0.02, -0.015]
  ramp = (0.2 + 0.6 * (ramp - ramp.min()) / np.ptp(ramp)).astype(np.float32)
  write(tmp_path / "a.nii.gz", ramp, affine)

  def segment(image):
    shapes.append(image.shape[:-1])
    return np.concatenate([1 - image, image], -1)

  cfg = DataConfig(canonical=True, spacing=(0.8, 0.6, 1.0))
  label, prob = map(nib.load, run(tmp_path / "a.nii.gz", tmp_path / "out", cfg, segment, probabilities=True))
  upright = nib.as_closest_canonical(nib.load(tmp_path / "a.nii.gz"))
  sides = [round(side * old / new) for side, old, new in zip(upright.shape, upright.header.get_zooms(), cfg.spacing, strict=True)]
  assert shapes == [tuple(sides)]
  inner = (slice(2, -2),) * 3
  np.testing.assert_allclose(prob.get_fdata()[inner][..., 1], ramp[inner], atol=1e-4)
  np.testing.assert_allclose(label.affine, affine, atol=1e-6)
  assert label.shape == SHAPE and np.mean(label.get_fdata() == (ramp > 0.5)) > 0.95


def test_preparation_is_the_same_for_label_and_image_and_nothing_where_nothing_is_to_do():
  case = data.Case("a", bright()[..., None], (bright() > 50).astype(np.uint8), (0.7, 0.8, 0.9), AFFINES["PIR"])
  assert data.prepare_case(case, DataConfig(spacing=(0.7, 0.80001, 0.9))) is case
  turned = data.prepare_case(case, DataConfig(canonical=True))
  assert turned.spacing == (0.9, 0.7, 0.8) and nib.aff2axcodes(turned.affine) == tuple("RAS")
  np.testing.assert_array_equal(turned.label, turned.image[..., 0] > 50)
  twice = data.prepare_case(case, DataConfig(spacing=(0.35, 0.4, 0.45)))
  assert twice.label.shape == twice.image.shape[:-1] == (28, 22, 20)
  np.testing.assert_array_equal(twice.label[::2, ::2, ::2], case.label)
  np.testing.assert_array_equal(twice.image[::2, ::2, ::2], case.image)
  np.testing.assert_allclose(np.linalg.norm(twice.affine[:3, :3], axis=0), twice.spacing)
  in_plane = data.prepare_case(case, DataConfig(spacing=(1.4, 1.6), patch=(16, 16)))
  assert in_plane.image.shape == (7, 6, 10, 1) and in_plane.spacing == (1.4, 1.6, 0.9)


def test_what_is_done_is_skipped_unless_asked(tmp_path, capsys):
  (tmp_path / "in").mkdir()
  for name in "ab":
    write(tmp_path / "in" / f"{name}.nii.gz", bright())
  first = run(tmp_path / "in" / "a.nii.gz", tmp_path / "out")
  assert [path.name for path in run(tmp_path / "in", tmp_path / "out")] == ["b.nii.gz"]
  assert "1 of 2 images are segmented" in capsys.readouterr().out
  first[0].write_bytes(b"old")
  assert run(tmp_path / "in", tmp_path / "out") == [] and first[0].read_bytes() == b"old"
  assert len(run(tmp_path / "in", tmp_path / "out", overwrite=True)) == 2 and len(first[0].read_bytes()) > 3
  assert len(run(tmp_path / "in", tmp_path / "out", probabilities=True)) == 4  # the probabilities were not there


def bad_files(folder):
  """File name -> what its error says."""
  nan = bright()
  nan[3, 3, 3] = np.nan
  write(folder / "nan.nii.gz", nan)
  write(folder / "five.nii.gz", bright()[..., None, None] * np.ones(3))
  write(folder / "times.nii.gz", bright()[..., None] * np.ones(4))
  write(folder / "flat.nii.gz", bright()[..., 0])
  nib.save(nib.Nifti1Image(bright().astype(np.complex64), OBLIQUE), folder / "complex.nii.gz")
  whole = write(folder / "whole.nii", bright()).read_bytes()
  (folder / "whole.nii").unlink()
  (folder / "cut.nii").write_bytes(whole[: len(whole) // 2])
  (folder / "zip.nii.gz").write_bytes(whole)
  (folder / "empty.nii.gz").write_bytes(b"")
  (folder / "text.nii").write_text("hello " * 200)
  (folder / "type.nii").write_bytes(whole[:70] + (9999).to_bytes(2, "little") + whole[72:])
  return {
    "nan.nii.gz": "1 of 1540 voxels are NaN or infinite",
    "five.nii.gz": "does not hold the 1 channel",
    "times.nii.gz": "does not hold the 1 channel",
    "flat.nii.gz": "does not fit a 3D network",
    "complex.nii.gz": "is not a scan; save real numbers",
    "cut.nii": "it is truncated",
    "zip.nii.gz": "truncated or not NIfTI",
    "empty.nii.gz": "truncated or not NIfTI",
    "text.nii": "truncated or not NIfTI",
    "type.nii": "truncated or not NIfTI",
  }


def test_bad_files_are_named_in_one_line_each_and_the_others_done(tmp_path, capsys):
  folder = tmp_path / "in"
  folder.mkdir()
  messages = bad_files(folder)
  write(folder / "good.nii.gz", bright())
  write(folder / "twice.nii", bright())
  write(folder / "twice.nii.gz", bright())
  (folder / "notes.txt").write_text("no image")
  with pytest.raises(InputError, match=rf"{len(messages) + 1} of {len(messages) + 2} images were not segmented"):
    run(folder, tmp_path / "out")
  lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
  assert len(lines) == len(messages) + 1 and "the same image as" in " ".join(lines)
  for name, message in messages.items():
    assert any(str(folder / name) in line and message in line for line in lines), name
    with pytest.raises(InputError, match=message) as alone:
      run(folder / name, tmp_path / "alone")
    assert str(folder / name) in str(alone.value) and "\n" not in str(alone.value)
  assert os.listdir(tmp_path / "out") == ["good.nii.gz"] and os.listdir(tmp_path / "alone") == []


def test_wrong_folders_are_refused_and_nothing_is_half_written(tmp_path, monkeypatch):
  image = write(tmp_path / "a.nii.gz", bright())
  (tmp_path / "file").write_text("")
  (tmp_path / "none").mkdir()
  for inputs, output, message in (
    (image, tmp_path, "is where the images are"),
    (tmp_path, tmp_path, "is where the images are"),
    (image, tmp_path / "file", "cannot be made a folder"),
    (tmp_path / "none", tmp_path / "out", "neither a NIfTI file"),
    (tmp_path / "b.nii.gz", tmp_path / "out", "neither a NIfTI file"),
    (tmp_path / "file", tmp_path / "out", "neither a NIfTI file"),
  ):
    with pytest.raises(InputError, match=message):
      run(inputs, output)
  with pytest.raises(InputError, match="lacks channel file|does not hold the 2"):
    run(image, tmp_path / "out", channels=2)

  def full(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "replace", full)
  with pytest.raises(InputError, match=r"a\.nii\.gz cannot be written: .*No space left"):
    run(image, tmp_path / "out")
  assert os.listdir(tmp_path / "out") == []
