"""NIfTI in, NIfTI out, in the input's geometry."""

import dataclasses
import shutil

import nibabel as nib
import numpy as np
import pytest

from ssl_jax.experiment import open_experiment, restore
from ssl_jax.predict import _to_grid, predict
from ssl_jax.train import train
from ssl_jax.types import InputError
from tests.helpers import tiny_config, with_train

OBLIQUE = np.array([[0.6, -0.1, 0.05, -30], [0.1, 0.62, -0.02, 12.5], [-0.05, 0.03, 1.2, 7], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp("run")
  cfg = with_train(tiny_config("supervised", downsample=2), phases=(("train", 2),))
  cfg = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, phantom=dataclasses.replace(cfg.data.phantom, shape=(40, 40, 32))))
  train(open_experiment(cfg), folder)
  return cfg, folder


def write(path, shape=(41, 36, 33), affine=OBLIQUE, dtype=np.int16):
  values = np.random.default_rng(0).normal(scale=100, size=shape).astype(dtype)
  image = nib.Nifti1Image(values, affine)
  image.header.set_xyzt_units("mm")
  image.set_qform(affine, 0)
  nib.save(image, path)
  return image


def test_geometry_is_kept_and_values_are_the_predictor_s(run, tmp_path):
  cfg, folder = run
  (tmp_path / "in").mkdir()
  image = write(tmp_path / "in" / "a.nii.gz")
  write(tmp_path / "in" / "b_0000.nii", affine=np.diag([-1.0, 2.0, 0.5, 1.0]))
  written = predict(cfg, folder, tmp_path / "in", tmp_path / "out")
  assert [p.name for p in written] == ["a.nii.gz", "b.nii.gz"]
  label = nib.load(written[0])
  assert label.shape == image.shape and label.get_data_dtype() == np.uint8
  np.testing.assert_allclose(label.affine, OBLIQUE, atol=1e-6)
  assert label.header["sform_code"] == image.header["sform_code"] and label.header["qform_code"] == image.header["qform_code"]
  values = image.get_fdata()[:40, :36, :32].reshape(20, 2, 18, 2, 16, 2).mean((1, 3, 5))[..., None].astype(np.float32)
  experiment = open_experiment(cfg)
  prob = experiment.predictors["student"](restore(experiment, folder), values)
  coarse = np.argmax(prob, -1)
  expected = np.pad(coarse.repeat(2, 0).repeat(2, 1).repeat(2, 2), [(0, 1), (0, 0), (0, 1)], mode="edge")
  np.testing.assert_array_equal(np.asarray(label.dataobj), expected)


def test_predict_needs_no_training_data_and_names_what_is_wrong(run, tmp_path):
  cfg, folder = run
  moved = tmp_path / "elsewhere"
  shutil.copytree(folder, moved)
  elsewhere = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, source="msd", root="/nowhere"))
  write(tmp_path / "one.nii.gz")
  assert len(predict(elsewhere, moved, tmp_path / "one.nii.gz", tmp_path / "out")) == 1
  (tmp_path / "cut.nii.gz").write_bytes((tmp_path / "one.nii.gz").read_bytes()[:2000])
  for inputs, message in (
    (tmp_path / "cut.nii.gz", "truncated"),
    (tmp_path / "none.nii.gz", "neither a NIfTI"),
    (tmp_path / "out" / "x.txt", "neither"),
  ):
    with pytest.raises(InputError, match=message):
      predict(cfg, folder, inputs, tmp_path / "out2")
  prepared = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, source="pancreas_nifti"))
  with pytest.raises(InputError, match="config.data.source='pancreas_nifti' crops and normalises"):
    predict(prepared, folder, tmp_path / "one.nii.gz", tmp_path / "out2")
  with pytest.raises(InputError, match="no run here"):
    predict(cfg, tmp_path, tmp_path / "one.nii.gz", tmp_path / "out2")


def test_to_grid_repeats_and_fills_the_rest():
  np.testing.assert_array_equal(_to_grid(np.array([1, 2], np.uint8), 2, (5,)), [1, 1, 2, 2, 2])
