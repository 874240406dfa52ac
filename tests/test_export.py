"""A model that has left its run computes what the run does."""

import dataclasses
import json
import shutil
import subprocess
import sys

import jax
import jax.export
import nibabel as nib
import numpy as np
import pytest

from ssl_jax import export
from ssl_jax.experiment import open_run, restore
from ssl_jax.export.write import PLATFORMS, write_model
from ssl_jax.ops.conv import conv3
from ssl_jax.predict import predict
from ssl_jax.types import InputError
from tests.helpers import ROOT, command, tiny_config, untrained_run

AFFINE = np.array([[-0.6, 0.1, 0, 30], [0.1, 0.62, 0, 12.5], [0, 0, 1.2, 7], [0, 0, 0, 1]])
THREE_LINES = """
from ssl_jax import export
model = export.load(FOLDER)
model.segment_files(SCAN, OUTPUT, probabilities=True)
import sys
print([name for name in sys.modules if name.startswith(("ssl_jax.methods", "ssl_jax.networks", "ssl_jax.experiment"))])
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  folder = tmp_path_factory.mktemp("export")
  cfg = tiny_config("supervised", canonical=True, spacing=(0.7, 0.7, 1.0), normalise="zscore")
  cfg = dataclasses.replace(cfg, eval=dataclasses.replace(cfg.eval, window_weights="gaussian", flips=(1,)))
  untrained_run(cfg, folder / "run")
  nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(size=(21, 30, 19)).astype(np.float32), AFFINE), folder / "a.nii.gz")
  write_model(cfg, folder / "run", folder / "model")
  return cfg, folder


def test_a_patch_batch_of_any_size(made):
  cfg, folder = made
  model, run = export.load(folder / "model"), open_run(cfg, folder / "run")
  state = restore(run, folder / "run")
  for batch in (1, 3):
    image = np.random.default_rng(batch).normal(size=(batch, 16, 16, 16, 1)).astype(np.float32)
    found = model(image)
    assert found.shape == (batch, 16, 16, 16, 2)
    np.testing.assert_allclose(found, jax.jit(run.method.predict)(state, image), atol=1e-6)
  with pytest.raises(InputError, match="do not fit the model"):
    model(np.zeros((1, 16, 16, 8, 1), np.float32))
  used = sum(leaf.size for leaf in jax.tree.leaves((state.students, state.stats)))
  assert sum(value.size for value in model.weights.values()) == used  # no optimizer, no teacher


def test_a_whole_scan_in_three_lines_without_the_code_that_trained(made, tmp_path):
  cfg, folder = made
  expected = predict(cfg, folder / "run", folder / "a.nii.gz", tmp_path / "run", probabilities=True)
  shutil.move(folder / "model", tmp_path / "model")
  lines = THREE_LINES.replace("FOLDER", repr(str(tmp_path / "model"))).replace("SCAN", repr(str(folder / "a.nii.gz")))
  lines = lines.replace("OUTPUT", repr(str(tmp_path / "alone")))
  done = subprocess.run([sys.executable, "-c", lines], cwd=ROOT, capture_output=True, text=True, check=True)
  assert done.stdout.splitlines()[-1] == "[]"
  shutil.move(tmp_path / "model", folder / "model")
  for path, tolerance in zip(expected, (0, 1e-5), strict=True):
    ours, alone = nib.load(path), nib.load(tmp_path / "alone" / path.name)
    np.testing.assert_allclose(alone.get_fdata(), ours.get_fdata(), atol=tolerance)
    np.testing.assert_allclose(alone.affine, AFFINE, atol=1e-6)
  found = export.load(folder / "model").segment(folder / "a.nii.gz")
  np.testing.assert_array_equal(found.label, nib.load(expected[0]).get_fdata())
  np.testing.assert_allclose(found.probabilities, nib.load(expected[1]).get_fdata(), atol=1e-5)


def test_the_description_names_what_a_user_asks_for(made):
  facts = json.loads((made[1] / "model" / "model.json").read_text())
  assert facts["class_names"] == ["background", "atrium"] and facts["channels"] == 1
  assert facts["method"]["name"] == "supervised" and facts["network"]["name"] == "vnet" and facts["step"] == 0
  assert facts["data"] == {"patch": [16, 16, 16], "canonical": True, "spacing": [0.7, 0.7, 1.0], "downsample": 1, "normalise": "zscore"}


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("model.json", None, "is no exported model"),
    ("model.json", b"{", "damaged"),
    ("model.json", b'{"format": 1}', "format 1 is not read"),
    ("model.json", b'{"format": 2}', "damaged"),
    ("weights.safetensors", b"\xff" * 16, "its checksum differs"),
    ("predict.stablehlo", b"\xff" * 64, "its checksum differs"),
  ],
)
def test_damaged_folders_are_named(made, tmp_path, name, content, message):
  shutil.copytree(made[1] / "model", tmp_path / "model")
  (tmp_path / "model" / name).unlink()
  if content is not None:
    (tmp_path / "model" / name).write_bytes(content)
  with pytest.raises(InputError, match=message) as error:
    export.load(tmp_path / "model")
  assert name in str(error.value) and "\n" not in str(error.value)


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(made, tmp_path):
  cfg, folder = made
  (tmp_path / "file").write_text("")
  whole = dataclasses.replace(cfg, eval=dataclasses.replace(cfg.eval, whole_volume=True))
  for config, run, output, message in (
    (whole, folder / "run", tmp_path / "model", "eval.whole_volume"),
    (cfg, folder, tmp_path / "model", "no run here"),
    (cfg, folder / "run", folder, "is there already"),
    (cfg, folder / "run", tmp_path / "file" / "model", "cannot be written"),
  ):
    with pytest.raises(InputError, match=message):
      write_model(config, run, output)
  assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_slices(tmp_path):
  cfg = tiny_config("supervised", slices=True, view="resize", patch=(16, 16))
  cfg = dataclasses.replace(
    cfg, network=dataclasses.replace(cfg.network, name="unet2d"), eval=dataclasses.replace(cfg.eval, window_batch=4)
  )
  untrained_run(cfg, tmp_path / "run")
  nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(size=(21, 30, 6)).astype(np.float32), AFFINE), tmp_path / "a.nii.gz")
  expected = nib.load(predict(cfg, tmp_path / "run", tmp_path / "a.nii.gz", tmp_path / "out")[0])
  arguments = ("--mode=export", f"--workdir={tmp_path / 'run'}")
  done = command(*arguments, f"--output={tmp_path / 'model'}")
  assert done.returncode == 0 and str(tmp_path / "model") in done.stdout, done.stderr
  np.testing.assert_array_equal(export.load(tmp_path / "model").segment(tmp_path / "a.nii.gz").label, expected.get_fdata())


@pytest.mark.parametrize(("spatial", "channels"), [((16, 16, 16), 16), ((32, 32, 32), 1), ((128, 128, 2), 2)])
def test_fast_convolutions_keep_an_open_batch(spatial, channels):
  """Large enough for what the CPU has instead of XLA's convolution: Winograd, the first layer, few columns."""
  (batch,) = jax.export.symbolic_shape("batch")
  kernel = np.random.default_rng(0).normal(size=(3, 3, 3, channels, 8)).astype(np.float32)
  convolve = jax.jit(lambda x: conv3(x, kernel))
  exported = jax.export.export(convolve, platforms=PLATFORMS)(jax.ShapeDtypeStruct((batch, *spatial, channels), np.float32))
  for size in (1, 2):
    x = np.random.default_rng(size).normal(size=(size, *spatial, channels)).astype(np.float32)
    np.testing.assert_allclose(exported.call(x), convolve(x), atol=1e-4)
