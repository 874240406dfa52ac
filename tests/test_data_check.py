"""`python -m ssl_jax.data check`: what it finds in folders, all that is wrong with them, and the settings it suggests."""

import importlib.util
import json
import re
import shlex

import nibabel as nib
import numpy as np
import pytest

from ssl_jax import config
from ssl_jax.data import __main__ as command_line
from ssl_jax.data.check import examine
from ssl_jax.data.suggest import suggest, write_config
from ssl_jax.types import Config, InputError
from tests.helpers import write_msd


def check(capsys, folder, *arguments):
  status = command_line.main(["check", str(folder), *arguments])
  printed = capsys.readouterr()
  return status, printed.out, printed.err


def scan(folder, name, part="imagesTr"):
  return folder / part / f"{name}.nii.gz"


def rewrite(file, change=lambda voxels: voxels, affine=None):
  image = nib.load(file)
  nib.save(nib.Nifti1Image(change(np.asarray(image.dataobj)), image.affine if affine is None else affine), file)


@pytest.fixture
def folder(tmp_path):
  """Six labelled cases and one without a label, two channels, three classes."""
  write_msd(tmp_path / "own", {name: (40, 36, 33) for name in "abcdefg"}, channels=2, classes=3, spacing=(1.5, 1.5, 2.0))
  scan(tmp_path / "own", "g", "labelsTr").unlink()
  return tmp_path / "own"


def test_a_clean_folder(folder, capsys):
  status, printed, _ = check(capsys, folder)
  assert status == 0 and "0 problem(s)" in printed and "PROBLEM" not in printed
  counts = np.bincount(np.asarray(nib.load(scan(folder, "a", "labelsTr")).dataobj).ravel(), minlength=3).tolist()
  assert f"a: shape (40, 36, 33), spacing (1.5, 1.5, 2.0) mm, RAS, voxels per class {counts}" in printed
  assert "7 training, 0 test; 6 labelled, 1 unlabelled, 0 unreadable" in printed and "g: shape (40, 36, 33)" in printed
  assert "MSD/nnU-Net folder" in printed and "channel 1:" in printed
  image = np.asarray(nib.load(scan(folder, "a")).dataobj)[..., 1]
  found = examine(str(folder)).cases[0]
  expected = [image.min(), *np.percentile(image, (0.5, 50, 99.5)), image.max(), image.mean(), image.std()]
  np.testing.assert_allclose(found.intensity[1], expected, rtol=1e-4)


def test_every_problem_is_listed(folder, capsys):
  file = scan(folder, "a")
  file.write_bytes(file.read_bytes()[:2000])
  rewrite(scan(folder, "b"), lambda voxels: np.where(voxels > 1.5, np.nan, voxels))
  rewrite(scan(folder, "b", "labelsTr"), lambda voxels: np.where(voxels == 2, 7, voxels))
  rewrite(scan(folder, "c", "labelsTr"), lambda voxels: voxels[:-1])
  rewrite(scan(folder, "d", "labelsTr"), affine=np.diag([-1.5, 1.5, 2.0, 1.0]))
  rewrite(scan(folder, "e", "labelsTr"), lambda voxels: voxels * 0)
  scan(folder, "nobody", "labelsTr").write_bytes(scan(folder, "f", "labelsTr").read_bytes())
  scan(folder, "copy").write_bytes(scan(folder, "f").read_bytes())
  nib.save(nib.load(scan(folder, "g")), folder / "imagesTr" / "g.nii")
  scan(folder, "h_0001").write_bytes(scan(folder, "f").read_bytes())
  description = json.loads((folder / "dataset.json").read_text())
  description["training"] = [{"image": "./imagesTr/gone.nii.gz"}, {"image": "./imagesTr/copy.nii.gz", "label": "./labelsTr/copy.nii.gz"}]
  (folder / "dataset.json").write_text(json.dumps(description))
  (folder / "train.list").write_text("a\nb\nzoe\n")
  status, printed, _ = check(capsys, folder)
  problems = [line for line in printed.splitlines() if line.startswith("PROBLEM ")]
  expected = (
    r"a\.nii\.gz cannot be read, it is truncated",
    r"imagesTr.b\.nii\.gz: \d+ of \d+ voxels are NaN",
    r"labelsTr.b\.nii\.gz: label value 7 is unknown, known values: 0, 1, 2",
    r"c\.nii\.gz: label shape \(39, 36, 33\) differs from its image's \(40, 36, 33\)",
    r"d\.nii\.gz: its affine places it up to 117 mm from d\.nii\.gz \(LAS, image RAS\)",
    r"e: the label holds one class only, 'background'",
    r"nobody\.nii\.gz: no image is named like this label",
    r"copy: the same voxels as f|f: the same voxels as copy",
    r"g\.nii\.gz: the same image as g\.nii; remove one",
    r"case 'h' lacks channel file h_0000\.nii\.gz",
    r"'training' names './imagesTr/gone\.nii\.gz', which is not there",
    r"'training' names './labelsTr/copy\.nii\.gz', which is not there",
    r"train\.list: 1 of 3 entries have no data .* first 'zoe'",
  )
  assert status == 1 and f"{len(expected)} problem(s)" in printed
  for pattern in expected:
    assert sum(bool(re.search(pattern, problem)) for problem in problems) == 1, pattern


def test_a_class_without_voxels_and_an_unusable_affine(folder, capsys):
  description = json.loads((folder / "dataset.json").read_text())
  description["labels"]["vessel"] = 3
  (folder / "dataset.json").write_text(json.dumps(description))
  image = nib.load(scan(folder, "a"))
  image.header.set_sform(np.diag([1.5, 0.0, 2.0, 1.0]), 1)
  nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, image.header), scan(folder, "a"))
  status, printed, _ = check(capsys, folder)
  assert status == 1 and "PROBLEM class 'vessel' is in no label" in printed and "the header's affine is unusable" in printed
  assert "2 problem(s)" in printed


def test_unusable_folders(tmp_path, capsys):
  (tmp_path / "empty").mkdir()
  (tmp_path / "bare" / "imagesTr").mkdir(parents=True)
  write_msd(tmp_path / "nothing", {})
  for name, message in (
    ("nowhere", "is no folder"),
    ("empty", "holds no layout that ssl_jax reads; arrange your own NIfTI files as imagesTr"),
    ("bare", r'dataset.json does not exist; write into it, for example: {"channel_names"'),
    ("nothing", "holds no NIfTI file"),
  ):
    status, printed, error = check(capsys, tmp_path / name)
    assert status == 2 and not printed and message in error and error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.parametrize(
  ("sides", "spacing", "choice", "patch", "small"),
  [
    ((192, 142, 88), (0.625, 0.625, 0.625), "crln", (112, 112, 80), (64, 64, 32)),  # as the papers have it on the Left Atrium
    ((40, 36, 33), (1.5, 1.5, 2.0), "crln", (32, 32, 32), (16, 16, 16)),
    ((60, 50, 12), (1.5, 1.5, 10.0), "cml,2d", (64, 48), (64, 48)),
    ((300, 280, 9), (1.0, 1.0, 1.0), "cml,2d", (256, 256), (128, 128)),
    ((48, 64), (1.0, 1.0), "cml,2d", (48, 64), (48, 64)),
  ],
)
def test_suggested_patch(tmp_path, sides, spacing, choice, patch, small):
  findings = examine(str(write_msd(tmp_path, {"a": sides, "b": sides}, spacing=spacing)))
  (_, full, flags), (_, half, small_flags) = suggest(findings)
  assert full == f"configs/own_data.py:{choice}" and half == f"{full},small"
  assert flags["data.patch"] == patch and small_flags["data.patch"] == small and flags["data.normalise"] == "zscore"
  assert flags.get("eval.stride") == (tuple(side // 2 for side in patch) if choice == "crln" else None)
  assert flags.get("data.slices") is (False if len(sides) == 2 else None)


def test_suggested_commands_can_be_pasted_and_the_file_builds(folder, tmp_path, capsys):
  file = tmp_path / "mine.py"
  _, printed, _ = check(capsys, folder, f"--write={file}")
  command = printed.split("# full resolution\n")[1].split("\n\n")[0]
  words = shlex.split(command.replace("\\\n", " "))
  assert words[:4] == ["python", "-m", "ssl_jax.main", "--config=configs/own_data.py:crln"]
  assert f"--config.data.root={folder}" in words and "--config.data.patch=(32, 32, 32)" in words
  spec = importlib.util.spec_from_file_location("mine", file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  for method in ("crln", "caml"):
    cfg = config.check(config.parse(Config, module.get_config(method).to_dict()))
    assert (cfg.method["name"], cfg.data.patch, cfg.data.root) == (method, (32, 32, 32), str(folder))
  written = file.read_text()
  status, _, error = check(capsys, folder, f"--write={file}")
  assert status == 2 and "exists; name another file" in error and file.read_text() == written
  with pytest.raises(InputError, match=r"must be a \.py file in a folder that exists"):
    write_config(examine(str(folder)), tmp_path / "none" / "mine.py")
  assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []
