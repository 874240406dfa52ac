"""A run's folder segments new images: the predictor's own values, from that folder alone, by the command line."""

import dataclasses
import json
import shutil

import jax
import nibabel as nib
import numpy as np
import pytest

from ssl_jax.experiment import open_experiment, open_run, record, restore
from ssl_jax.predict import predict
from ssl_jax.types import InputError
from tests.helpers import command, refined, tiny_config, untrained_run

OBLIQUE = np.array([[0.6, -0.1, 0.05, -30], [0.1, 0.62, -0.02, 12.5], [-0.05, 0.03, 1.2, 7], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  cfg = tiny_config("supervised", downsample=2)
  cfg = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, phantom=dataclasses.replace(cfg.data.phantom, shape=(40, 40, 32))))
  return cfg, untrained_run(cfg, tmp_path_factory.mktemp("run"))


def write(path, shape=(41, 36, 33)):
  values = np.random.default_rng(0).normal(scale=100, size=shape).astype(np.int16)
  nib.save(nib.Nifti1Image(values, OBLIQUE), path)
  return values


def test_values_are_the_predictor_s(run, tmp_path):
  cfg, folder = run
  image = write(tmp_path / "a.nii.gz")
  label, prob = map(nib.load, predict(cfg, folder, tmp_path / "a.nii.gz", tmp_path / "out", probabilities=True))
  assert label.shape == image.shape and label.get_data_dtype() == np.uint8
  np.testing.assert_allclose(label.affine, OBLIQUE, atol=1e-6)
  blocks = image[:40, :36, :32].reshape(20, 2, 18, 2, 16, 2).mean((1, 3, 5))[..., None].astype(np.float32)
  expected = refined(open_experiment(cfg).predictors["student"](restore(open_experiment(cfg), folder), blocks), 2, image.shape)
  np.testing.assert_allclose(prob.get_fdata(), expected, atol=1e-5)
  np.testing.assert_array_equal(label.get_fdata(), np.argmax(prob.get_fdata(), -1))
  assert 0 < np.mean(label.get_fdata()) < 1


def test_needs_no_training_data_and_names_what_is_wrong(run, tmp_path):
  cfg, folder = run
  moved = tmp_path / "elsewhere"
  shutil.copytree(folder, moved)
  elsewhere = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, source="msd", root="/nowhere"))
  write(tmp_path / "one.nii.gz")
  assert len(predict(elsewhere, moved, tmp_path / "one.nii.gz", tmp_path / "out")) == 1
  prepared = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, source="pancreas_nifti"))
  with pytest.raises(InputError, match="config.data.source='pancreas_nifti' crops and normalises"):
    predict(prepared, folder, tmp_path / "one.nii.gz", tmp_path / "out2")
  with pytest.raises(InputError, match="no run here"):
    predict(cfg, tmp_path, tmp_path / "one.nii.gz", tmp_path / "out2")
  (moved / "run.json").write_text("{")
  with pytest.raises(InputError, match=r"run\.json: not what a run has written"):
    predict(cfg, moved, tmp_path / "one.nii.gz", tmp_path / "out2")
  assert not (tmp_path / "out2").exists()


def test_a_memory_bank_has_its_size_without_the_data(tmp_path):
  """It is the number of labelled scans, which the run has recorded."""
  experiment = open_experiment(tiny_config("caml"))
  record(experiment, tmp_path)
  shapes = lambda opened: jax.tree.map(lambda leaf: leaf.shape, opened.abstract_state)
  assert shapes(open_run(experiment.cfg, tmp_path)) == shapes(experiment)


def test_command_line_needs_the_run_s_folder_alone(run, tmp_path):
  cfg, folder = run
  (tmp_path / "in").mkdir()
  write(tmp_path / "in" / "good.nii.gz")
  (tmp_path / "in" / "cut.nii.gz").write_bytes((tmp_path / "in" / "good.nii.gz").read_bytes()[:2000])
  arguments = ("--mode=predict", f"--workdir={folder}", f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}")
  done = command(*arguments, "--probabilities", "--config.eval.flips=(0,)")
  assert done.returncode == 2, done.stderr
  errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
  assert len(errors) == 2 and "cut.nii.gz cannot be read" in errors[0] and "1 of 2 images were not segmented" in errors[1]
  assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["good.nii.gz", "good_probabilities.nii.gz"]
  plain = predict(cfg, folder, tmp_path / "in" / "good.nii.gz", tmp_path / "plain", probabilities=True)[1]
  found = nib.load(tmp_path / "out" / plain.name).get_fdata()
  assert np.abs(found - nib.load(plain).get_fdata()).max() > 1e-3  # the overridden key has reached the predictor


def test_command_line_names_a_damaged_configuration(run, tmp_path):
  damaged = tmp_path / "run"
  shutil.copytree(run[1], damaged)
  text = json.loads((damaged / "config.json").read_text())
  (damaged / "config.json").write_text(json.dumps(text)[:-20])
  done = command("--mode=predict", "--workdir", str(damaged), f"--input={tmp_path}", f"--output={tmp_path / 'out'}")
  errors = [line for line in done.stderr.splitlines() if line]
  assert done.returncode == 2 and len(errors) == 1 and "config.json is not valid JSON" in errors[0], done.stderr
