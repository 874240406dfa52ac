"""A user's own folder, four classes, two channels, odd sizes: a 2D network trains on its slices, is scored on its volumes, and predicts."""

import csv
import dataclasses
import json

import nibabel as nib
import numpy as np
import pytest

from configs import common
from ssl_jax import config, main
from ssl_jax.data import Case
from ssl_jax.evaluate import pseudo_label_quality, score
from ssl_jax.experiment import open_experiment, restore
from ssl_jax.inference import SliceWise
from ssl_jax.predict import predict
from ssl_jax.report.results import load_results
from ssl_jax.report.tables import markdown_table
from ssl_jax.train import train
from ssl_jax.types import Config
from tests.helpers import refined, write_msd

SIDES = {"ann": (45, 37, 7), "bob": (50, 41, 6), "cat": (39, 52, 5), "dan": (33, 33, 4)}
CLASSES = ("RV", "MYO", "LV")


def own_config(root):
  raw = common.base("supervised")
  raw.data.update(source="msd", root=str(root), slices=True, patch=(32, 32), view="resize", num_labelled=9, num_holdout=2)
  raw.network.update(name="unet2d", width=2)
  raw.train.update(phases=(("train", 3),), batch_labelled=4, batch_unlabelled=4, checkpoint_every_steps=3)
  raw.eval.update(stride=(), window_batch=4)
  return config.check(config.parse(Config, raw.to_dict()))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """Trained and evaluated through the command line's function."""
  folder = tmp_path_factory.mktemp("own")
  cfg = own_config(write_msd(folder / "data", SIDES, channels=2, classes=4))
  main.run(cfg, folder / "run")
  return cfg, folder


def test_results_have_every_class_and_their_mean(run):
  _, folder = run
  result = json.loads((folder / "run" / "results_student.json").read_text())
  assert result["step"] == 3 and [case["case"] for case in result["cases"]] == ["cat", "dan"]
  assert list(result["classes"]) == list(CLASSES)
  for metric in ("dice", "jaccard", "hd95", "asd", "hd95_mm"):
    for case in result["cases"]:
      assert case[metric] == pytest.approx(np.mean([case[f"{name}/{metric}"] for name in CLASSES]))
    for name in CLASSES:
      mean = np.mean([case[f"{name}/{metric}"] for case in result["cases"]])
      assert result["classes"][name][metric]["mean"] == pytest.approx(mean)
    assert result["summary"][metric]["mean"] == pytest.approx(np.mean([result["classes"][name][metric]["mean"] for name in CLASSES]))
  with (folder / "run" / "results_student.csv").open() as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == 2 and float(rows[0]["LV/dice"]) == result["cases"][0]["LV/dice"]


def test_the_table_shows_the_mean_and_below_it_every_class(run):
  _, folder = run
  table = (folder / "run" / "results.md").read_text()
  assert table == markdown_table([{**r, "name": r["method"]} for r in load_results([folder / "run"])]) + "\n"
  rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")]
  assert [row[0] for row in rows] == [
    *("Method (predictor)", "---", "supervised (student)"),
    *("Method (predictor)", "---", *["supervised (student)"] * 3),
  ]
  assert [row[1] for row in rows[5:]] == list(CLASSES)
  number = lambda cell: float(cell.split(" ")[0])
  assert number(rows[2][1]) == pytest.approx(np.mean([number(row[2]) for row in rows[5:]]), abs=0.02)


def test_scores_are_those_of_the_restacked_volume(run):
  cfg, folder = run
  experiment = open_experiment(cfg)
  state = restore(experiment, folder / "run")
  segment = experiment.predictors["student"]
  assert isinstance(segment, SliceWise) and list(experiment.predictors) == ["student"]
  case = experiment.source.load("cat")
  label = np.argmax(segment(state, case.image), -1)
  assert label.shape == SIDES["cat"]
  found = json.loads((folder / "run" / "results_student.json").read_text())["cases"][0]
  expected = [2 * np.sum((label == c) & (case.label == c)) / (np.sum(label == c) + np.sum(case.label == c)) for c in (1, 2, 3)]
  np.testing.assert_allclose([found[f"{name}/dice"] for name in CLASSES], expected, atol=1e-6)


@pytest.mark.parametrize("downsample", [1, 2])
def test_prediction_lies_on_the_input_s_grid(run, tmp_path, downsample):
  cfg, folder = run
  cfg = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, downsample=downsample))
  affine = np.array([[0.6, -0.1, 0.05, -30], [0.1, 0.62, -0.02, 12.5], [-0.05, 0.03, 1.2, 7], [0, 0, 0, 1]])
  image = np.random.default_rng(0).normal(1, 1, (45, 38, 7, 2)).astype(np.float32)
  (tmp_path / "in").mkdir()
  nib.save(nib.Nifti1Image(image, affine), tmp_path / "in" / "both.nii.gz")
  for channel in (0, 1):
    nib.save(nib.Nifti1Image(image[..., channel], affine), tmp_path / "in" / f"apart_{channel:04d}.nii.gz")
    nib.save(nib.Nifti1Image(image[:, :, 3, channel], affine), tmp_path / "in" / f"flat_{channel:04d}.nii.gz")
  predict(cfg, folder / "run", tmp_path / "in", tmp_path / "out")
  apart, both, flat = (nib.load(tmp_path / "out" / f"{name}.nii.gz") for name in ("apart", "both", "flat"))
  label = np.asarray(both.dataobj)
  assert label.shape == (45, 38, 7) and label.dtype == np.uint8 and label.max() <= 3
  np.testing.assert_allclose(both.affine, affine, atol=1e-6)
  np.testing.assert_array_equal(apart.dataobj, label)
  np.testing.assert_array_equal(flat.dataobj, label[:, :, 3])
  experiment = open_experiment(cfg)
  small = image[:44].reshape(22, 2, 19, 2, 7, 2).mean((1, 3)) if downsample == 2 else image
  coarse = experiment.predictors["student"](restore(experiment, folder / "run"), small)
  np.testing.assert_array_equal(label, np.argmax(refined(coarse, downsample, label.shape[:2]), -1))


def test_training_again_resumes_and_a_run_of_an_earlier_version_can_be_resumed(run):
  cfg, folder = run
  file = folder / "run" / "config.json"
  kept = json.loads(file.read_text())
  del kept["train"]["batch_synthetic"], kept["data"]["slice_list"]  # keys that were not there then have their defaults
  file.write_text(json.dumps(kept))
  assert int(train(open_experiment(cfg), folder / "run").step) == 3


def test_pseudo_labels_are_measured_on_whole_slices(run):
  cfg, folder = run
  experiment = open_experiment(cfg)
  seen = []

  def pseudo_labels(state, image):
    seen.append(image.shape)
    prob = experiment.method.predict(state, image)
    return {"all": (prob, prob[..., 0] >= 0)}

  experiment = dataclasses.replace(experiment, method=dataclasses.replace(experiment.method, pseudo_labels=pseudo_labels))
  quality = pseudo_label_quality(experiment, restore(experiment, folder / "run"))
  assert seen == [(1, 32, 32, 2)] and quality["pseudo_all/share_reliable"] == 1.0 and 0 <= quality["pseudo_all/dice_all"] <= 1


def test_an_empty_class_has_the_policy_s_value_for_itself_alone():
  label = np.zeros((4, 4, 3), np.uint8)
  label[1:3, 1:3] = 1
  label[3, 3] = 2
  pred = np.where(label == 1, 1, 0)
  case = Case("x", np.zeros((4, 4, 3, 1), np.float32), label, (1.0, 1.0, 2.0), np.eye(4))
  row = score(pred, case, ("background", "one", "two"), "worst")
  assert row["one/dice"] == 1 and row["one/hd95"] == 0 and not row["one/empty"]
  assert row["two/dice"] == 0 and row["two/hd95"] == pytest.approx(np.sqrt(41)) and row["two/empty"]
  assert row["dice"] == 0.5 and row["hd95"] == pytest.approx(np.sqrt(41) / 2) and row["empty"]
  assert score(pred, case, ("background", "one", "two"), "published")["two/hd95"] == 0


def test_two_classes_have_no_columns_per_class():
  label = np.ones((4, 4, 3), np.uint8)
  case = Case("x", np.zeros((4, 4, 3, 1), np.float32), label, (1.0, 1.0, 2.0), np.eye(4))
  assert not any("/" in key for key in score(label, case, ("background", "one"), "published"))
