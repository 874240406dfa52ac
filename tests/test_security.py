"""What a file from elsewhere cannot do: run code, or lead out of the data folder."""

import ast
import dataclasses
import json
import pickle
import tempfile
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from ssl_jax import config, recorded
from ssl_jax.data import open_source
from ssl_jax.experiment import open_experiment
from ssl_jax.interop.torch_weights import load_weights, read_state_dict
from ssl_jax.types import Config, DataConfig, InputError
from tests import fuzzing
from tests.helpers import ROOT, tiny_config
from tests.test_layers import FILES, imported_modules, name_of

RUNS_CODE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "code", "runpy"}
UNPACKS = {"extractall", "extract", "unpack_archive"}
TRACE = Path(tempfile.gettempdir()) / "ssl_jax_was_unpickled"  # what `fuzzing.Hostile` leaves


def dangerous(tree: ast.AST, path: Path) -> list[str]:
  """Imports and calls that could turn data into code or write files where an archive says."""
  found = [module for module in imported_modules(tree, path) if module.split(".")[0] in RUNS_CODE]
  for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
    words = {keyword.arg: getattr(keyword.value, "value", "unknown") for keyword in call.keywords}
    name = call.func.id if isinstance(call.func, ast.Name) else call.func.attr if isinstance(call.func, ast.Attribute) else ""
    owner = call.func.value.id if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name) else ""
    if isinstance(call.func, ast.Name) and name in ("eval", "exec", "compile", "__import__"):
      found.append(name)
    if name == "deserialize_and_load" and name_of(path) != "compiler.py":  # of programs that this user alone can have kept
      found.append(name)
    if name in UNPACKS or (owner, name) == ("os", "system") or words.get("shell"):
      found.append(name)
    if words.get("allow_pickle") or (owner, name) == ("torch", "load") and words.get("weights_only") is not True:
      found.append(f"{owner}.{name}")
  return found


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_turns_data_into_code(path):
  assert dangerous(ast.parse(path.read_text()), path) == []


@pytest.mark.parametrize(
  ("source", "caught"),
  [
    ("import pickle", True),
    ("def f():\n  from yaml import load", True),
    ("np.load(f, allow_pickle=True)", True),
    ("np.load(f, allow_pickle=flag)", True),
    ("np.load(f, allow_pickle=False)", False),
    ("torch.load(f)", True),
    ("torch.load(f, weights_only=True)", False),
    ("archive.extractall(folder)", True),
    ("subprocess.run(text, shell=True)", True),
    ("eval(text)", True),
    ("serialize_executable.deserialize_and_load(f, a, b)", True),
    ("jax.eval_shape(f)\nre.compile(text)", False),
  ],
)
def test_the_check_itself_catches(source, caught):
  assert bool(dangerous(ast.parse(source), ROOT / "ssl_jax/data/new.py")) == caught


@pytest.fixture
def folder(tmp_path):
  with fuzzing.written(fuzzing.msd_files()) as root:
    yield root


@pytest.mark.parametrize("entry", ["../secret", "/etc/passwd", "x/../../a", "..\\a", "C:\\a", ".", "//host/a", "a/.."])
def test_an_entry_that_leaves_the_root(folder, entry):
  (folder / "train.list").write_text(f"a\n{entry}\n")
  with pytest.raises(InputError, match=r"train\.list.*leads out of the data folder"):
    open_source(fuzzing.msd_config(folder))
  (folder / "train.list").unlink()
  for pair in ({"image": entry}, {"image": "imagesTr/a.nii.gz", "label": entry}, entry):
    (folder / "dataset.json").write_text(json.dumps({**fuzzing.description(), "training": [pair]}))
    with pytest.raises(InputError, match=r"dataset\.json.*leads out of the data folder"):
      open_source(fuzzing.msd_config(folder))


def test_a_link_that_the_user_has_put_into_the_folder(folder, tmp_path):
  """Scans may be kept elsewhere and linked; only what a file says must stay inside."""
  file = folder / "imagesTr" / "a.nii.gz"
  file.rename(tmp_path / "elsewhere.nii.gz")
  file.symlink_to(tmp_path / "elsewhere.nii.gz")
  (folder / "train.list").write_text("a\nb\n")
  assert open_source(fuzzing.msd_config(folder)).load("a").image.shape == (*fuzzing.SHAPE, 1)


@pytest.mark.parametrize(
  "write", [fuzzing._h5_link, fuzzing._h5_raw, fuzzing._h5_virtual, fuzzing._h5_soft], ids=lambda write: write.__name__
)
def test_an_h5_file_that_points_to_another(write):
  with fuzzing.written({**fuzzing.h5_files(), "a/mri_norm2.h5": write}) as root:
    source = open_source(fuzzing.msd_config(root, source="la_h5"))
    with pytest.raises(InputError, match=r"a/mri_norm2\.h5.*'image' is (no array in this file|missing)"):
      source.load("a")


def test_an_h5_file_that_points_out_of_itself_twice():
  """A soft link to an external one."""

  def write(path):
    fuzzing._h5_link(path)
    with h5py.File(path, "a") as file:
      file.move("image", "other")
      file["image"] = h5py.SoftLink("/other")

  with fuzzing.written({**fuzzing.h5_files(), "a/mri_norm2.h5": write}) as root, pytest.raises(InputError, match="no array in this file"):
    open_source(fuzzing.msd_config(root, source="la_h5")).load("a")


@pytest.mark.parametrize("field", ["data file: /etc/passwd", "datafile: ../b/lgemri.nrrd", "data file: LIST\n/etc/passwd"])
def test_an_nrrd_file_that_points_to_another(field):
  pytest.importorskip("nrrd")
  files = fuzzing.nrrd_files()
  head, _ = files["a/lgemri.nrrd"].split(b"\n\n", 1)
  with fuzzing.written({**files, "a/lgemri.nrrd": head + f"\n{field}\n\n".encode()}) as root:
    source = open_source(fuzzing.msd_config(root, source="la_nrrd"))
    with pytest.raises(InputError, match=r"a/lgemri\.nrrd"):
      source.load("a")


def test_arrays_that_would_run_code(tmp_path):
  for suffix in (".pth", ".pt", ".npz"):
    (tmp_path / f"weights{suffix}").write_bytes(pickle.dumps({"state_dict": fuzzing.Hostile()}))
  np.savez(tmp_path / "object.npz", image=np.array([fuzzing.Hostile()]))
  with zipfile.ZipFile(tmp_path / "zipped.pth", "w") as archive:  # as PyTorch writes them now
    archive.writestr("archive/data.pkl", pickle.dumps(fuzzing.Hostile()))
    archive.writestr("archive/version", "3\n")
  for file in tmp_path.iterdir():
    with pytest.raises(InputError, match=file.name):
      read_state_dict(file)
  with pytest.raises(InputError, match="object.npz"):
    load_weights(tmp_path / "object.npz")
  name = "train_npz/case0001_slice000.npz"
  with fuzzing.written({**fuzzing.npz_files(), name: (tmp_path / "object.npz").read_bytes()}) as root:
    source = open_source(DataConfig(source="synapse_npz", root=str(root), slices=True, patch=(8, 8)))
    with pytest.raises(InputError, match="case0001_slice000.npz"):
      source.load("case0001_slice000")
  assert not TRACE.exists()


def test_a_recorded_configuration_is_data(tmp_path):
  """It names a method among those there are, and folders of `compare` inside the run's."""
  values = dataclasses.asdict(tiny_config("supervised"))
  for name in ("os", "..config", "supervised.x", "__init__", ["supervised"]):
    with pytest.raises(InputError, match=r"config\.method\.name"):
      open_experiment(config.parse(Config, {**values, "method": {"name": name}}))
  for name in ("../a", "/a", "..", "", "a/b", "a\0"):
    with pytest.raises(InputError, match=r"config\.compare"):
      config.check(config.parse(Config, {**values, "compare": {name: {"name": "supervised"}}}))
  (tmp_path / "config.json").write_text("__import__('os').mkdir('x')")
  with pytest.raises(InputError, match=r"config\.json is not valid JSON"):
    recorded.get_config(str(tmp_path / "config.json"))
