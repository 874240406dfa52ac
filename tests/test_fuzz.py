"""Mutated files and configurations: each works as an independent reader says, or is refused with an `InputError` that names it.

`SSL_JAX_FUZZ=2000 pytest -s tests/test_fuzz.py` runs 2,000 files and 500 configurations; without it the same few are run every time.
"""

import contextlib
import copy
import dataclasses
import functools
import gzip
import importlib
import io
import json
import math
from pathlib import Path

import h5py
import jax
import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssl_jax import config, export, recorded
from ssl_jax.experiment import Experiment, open_experiment, open_run
from ssl_jax.report.curves import read_history
from ssl_jax.report.render import render
from ssl_jax.report.results import load_results
from ssl_jax.report.tables import SPREADS, UNITS, result_tables
from ssl_jax.segment import segment_files
from ssl_jax.types import Config, DataConfig
from tests import fuzzing
from tests.fuzzing import CLASSES, FOLDER, fuzz, msd_config, read_everything, written
from tests.helpers import tiny_config
from tests.test_report import DATA, result

MSD, OLD, H5 = fuzzing.msd_files(), fuzzing.msd_files("old"), fuzzing.h5_files()
NIFTI = sorted(name for name in MSD if ".nii" in name)
TALLY = fuzzing.Tally()
NAMES = ("ssl_jax_fuzz_", "data.", "config.")


def independent_nifti(file: Path) -> tuple[np.ndarray, nib.Nifti1Image]:
  """As nibabel reads it, after gzip has found the whole stream intact."""
  if file.suffix == ".gz":
    gzip.decompress(file.read_bytes())
  image = nib.load(file)
  return image.get_fdata(), image


def single(volume: np.ndarray) -> np.ndarray:
  return volume[..., 0] if volume.ndim == 4 and volume.shape[-1] == 1 else volume


def check_msd(root: Path, cases: dict, channels: int = 1) -> None:
  for name, case in cases.items():
    (file,) = (path for path in (root / "imagesTr").iterdir() if path.name.split(".")[0] == name)
    values, header = independent_nifti(file)
    values = single(values)[..., None] if channels == 1 else values
    assert case.image.shape == values.shape
    np.testing.assert_allclose(case.image, values, rtol=1e-5, atol=1e-6 * max(np.abs(values).max(), abs(float(header.dataobj.inter))))
    np.testing.assert_allclose(case.affine, header.affine, rtol=1e-6)
    np.testing.assert_allclose(case.spacing, header.header.get_zooms()[: len(case.spacing)], rtol=1e-6)
    labels = [path for path in (root / "labelsTr").iterdir() if path.name.split(".")[0] == name]
    assert (case.label is None) == (not labels)
    if labels:
      np.testing.assert_array_equal(case.label, single(independent_nifti(labels[0])[0]))


@st.composite
def nifti_examples(draw):
  name = draw(st.sampled_from(NIFTI))
  return {**MSD, name: draw(fuzzing.changed_nifti(MSD[name], name.endswith(".gz")))}


@fuzz(0.5, 100)
@given(nifti_examples())
def run_nifti(files):
  with written(files) as root:
    found = TALLY.outcome("NIfTI", lambda: read_everything(msd_config(root)), NAMES)
    if found:
      check_msd(root, found["cases"])


def test_nifti():
  run_nifti()
  TALLY.check("NIfTI")


@st.composite
def h5_examples(draw):
  name = f"{draw(st.sampled_from('abcd'))}/mri_norm2.h5"
  return {**H5, name: draw(fuzzing.changed_h5(H5[name]))}


@fuzz(0.2, 40)
@given(h5_examples())
def run_h5(files):
  with written(files) as root:
    found = TALLY.outcome("h5", lambda: read_everything(msd_config(root, source="la_h5")), NAMES)
    for name, case in (found["cases"] if found else {}).items():
      with h5py.File(root / name / "mri_norm2.h5") as arrays:
        assert arrays["image"].dtype.kind in "biuf" and not arrays["image"].is_virtual and not arrays["image"].external
        np.testing.assert_array_equal(case.image[..., 0], arrays["image"][()].astype(np.float32))
        assert (case.label is None) == ("label" not in arrays)
        if case.label is not None:
          np.testing.assert_array_equal(case.label, arrays["label"][()])
        np.testing.assert_array_equal(case.affine, arrays.attrs.get("affine", np.diag([0.625] * 3 + [1.0])))


def test_h5():
  run_h5()
  TALLY.check("h5")


@st.composite
def json_examples(draw):
  form = draw(st.sampled_from(["new", "old"]))
  return {**(MSD if form == "new" else OLD), "dataset.json": draw(fuzzing.changed_json(fuzzing.description(form)))}


@fuzz(0.1, 60)
@given(json_examples())
def run_json(files):
  with written(files) as root:
    found = TALLY.outcome("dataset.json", lambda: read_everything(msd_config(root)), NAMES)
    if found:
      values = json.loads(files["dataset.json"].decode("utf-8-sig"))
      channels = values.get("channel_names") or values["modality"]
      assert sorted(map(int, channels)) == list(range(len(channels))) and len(channels) == found["source"].channels
      labels = values["labels"].items()
      old = all(key.isdigit() for key in values["labels"])
      names = {int(key): name for key, name in labels} if old else {value: key for key, value in labels}
      assert all(type(value) is int for value in names)
      assert [names[value] for value in range(len(labels))] == list(found["source"].class_names)
      assert len(set(found["source"].class_names)) == len(labels)
      check_msd(root, found["cases"])


def test_dataset_json():
  run_json()
  TALLY.check("dataset.json")


@st.composite
def list_examples(draw):
  files = {**MSD, "train.list": draw(fuzzing.changed_list())}
  return {**files, "test.list": draw(fuzzing.changed_list())} if draw(st.booleans()) else files


@fuzz(0.2, 60)
@given(list_examples())
def run_lists(files):
  with written(files) as root:
    found = TALLY.outcome("lists", lambda: read_everything(msd_config(root, num_labelled=1)), NAMES)
    if found:
      wanted = [line.strip() for line in files["train.list"].decode("utf-8-sig").splitlines()]
      assert list(found["source"].train_names) == [name for name in wanted if name]
      assert set(found["source"].train_names) <= set("abcd")
      check_msd(root, found["cases"])


def test_lists():
  run_lists()
  TALLY.check("lists")


@st.composite
def nrrd_examples(draw):
  name = draw(st.sampled_from(sorted(NRRD)))
  return {**NRRD, name: draw(fuzzing.changed_nrrd(NRRD[name]))}


NRRD = fuzzing.nrrd_files()


@fuzz(0.1, 30)
@given(nrrd_examples())
def run_nrrd(files):
  import nrrd

  with written(files) as root:
    found = TALLY.outcome("NRRD", lambda: read_everything(msd_config(root, source="la_nrrd", num_labelled=1)), NAMES)
    for name, case in (found["cases"] if found else {}).items():
      image, _ = nrrd.read(str(root / name / "lgemri.nrrd"))
      values = image.astype(np.float64)
      np.testing.assert_allclose(case.image[..., 0], (values - values.mean()) / max(values.std(), 1e-8), rtol=1e-4, atol=1e-4)
      if case.label is not None:
        np.testing.assert_array_equal(case.label, nrrd.read(str(root / name / "laendo.nrrd"))[0] // 255)


def test_nrrd():
  pytest.importorskip("nrrd")
  run_nrrd()
  TALLY.check("NRRD")


@st.composite
def npz_examples(draw):
  name = f"train_npz/case000{draw(st.integers(1, 3))}_slice00{draw(st.integers(0, 1))}.npz"
  return {**NPZ, name: draw(fuzzing.changed_npz(NPZ[name]))}


NPZ = fuzzing.npz_files()


@fuzz(0.1, 30)
@given(npz_examples())
def run_npz(files):
  changes = {"source": "synapse_npz", "slices": True, "patch": (8, 8), "view": "resize"}
  with written(files) as root:
    found = TALLY.outcome("npz", lambda: read_everything(msd_config(root, **changes)), NAMES)
    for name, case in (found["cases"] if found else {}).items():
      with np.load(root / "train_npz" / f"{name}.npz") as arrays:
        np.testing.assert_array_equal(case.image[..., 0], arrays["image"].astype(np.float32))
        assert (case.label is None) == ("label" not in arrays)
        if case.label is not None:
          np.testing.assert_array_equal(case.label, arrays["label"])


def test_npz():
  run_npz()
  TALLY.check("npz")


def segment(image: np.ndarray) -> np.ndarray:
  """Half of the voxels one class, half another."""
  assert np.isfinite(image).all() and image.ndim == 4
  prob = np.zeros((*image.shape[:-1], 2), np.float32)
  prob[..., 0] = 0.25
  prob[image.shape[0] // 2 :, ..., 1] = 0.75
  return prob


@fuzz(0.1, 20)
@given(st.booleans(), fuzzing.changed_nifti(MSD["imagesTr/a.nii.gz"], True))
def run_predict(prepared, content):
  cfg = DataConfig(patch=(8, 8, 8), **({"canonical": True, "spacing": (1.0, 1.0, 1.0), "normalise": "zscore"} if prepared else {}))
  with written({"in/a.nii.gz": content, "in/b.nii.gz": MSD["imagesTr/d.nii.gz"]}) as root:
    use = lambda: segment_files(segment, root / "in", root / "out", cfg, channels=1, class_names=CLASSES[:2])
    with contextlib.redirect_stderr(io.StringIO()):
      files = TALLY.outcome("predict", use, NAMES)
    assert (root / "out" / "b.nii.gz").is_file()  # one bad scan does not keep the others
    if files and not callable(content) and content not in (None, FOLDER):
      values, image = independent_nifti(root / "in" / "a.nii.gz")
      label = nib.load(root / "out" / "a.nii.gz")
      assert label.shape == values.shape and label.get_data_dtype() == np.uint8
      np.testing.assert_allclose(label.affine, image.affine, rtol=1e-4, atol=1e-4)


def test_predict():
  run_predict()
  TALLY.check("predict")


@pytest.fixture(scope="module")
def model_files():
  return fuzzing.model_files()


@fuzz(0.1, 30)
@given(st.data())
def run_model(files, data):
  name = data.draw(st.sampled_from(sorted(files)))
  facts = json.loads(files["model.json"])
  change = fuzzing.changed_json(facts) if name == "model.json" else st.one_of(fuzzing.changed_bytes(files[name]), st.just(FOLDER))
  content = data.draw(change)
  with written({**files, name: content}) as root:
    model = TALLY.outcome("model", lambda: export.load(root), NAMES)
    if model:
      assert name == "model.json" or content == files[name]
      assert len(model.class_names) >= 2 and model.channels >= 1
      assert model.weights["scale"] == 2.0


def test_exported_model(model_files):
  run_model(model_files)
  TALLY.check("model")


@fuzz(0.1, 60)
@given(st.sampled_from(["results_student.json", "metrics.jsonl", "run.json"]), st.data())
def run_folder(name, data):
  values = {"results_student.json": RESULT, "run.json": RUN, "metrics.jsonl": {"step": 3, "loss": 1.5, "student/dice": 0.5}}[name]
  content = data.draw(fuzzing.changed_json(values))
  with written({name: content if name != "metrics.jsonl" else content.replace(b"\n", b"") + b'\n{"step": 4, "loss": 1}\n'}) as root:
    if name == "results_student.json":
      use = lambda: [render(result_tables(load_results([root]), spread=spread, unit=unit), "csv") for spread in SPREADS for unit in UNITS]
    elif name == "run.json":
      use = lambda: open_run(TINY, root)
    else:
      use = lambda: read_history(root / name)
    found = TALLY.outcome(name, use, NAMES)
    if found and name == "metrics.jsonl":
      assert all(len(steps) == len(values) and values.dtype == float for steps, values in found.values())


RESULT, RUN, TINY = result(data=DATA, empty_policy="published"), fuzzing.RUN, tiny_config("supervised")


def test_run_folder():
  run_folder()
  for name in ("results_student.json", "metrics.jsonl", "run.json"):
    TALLY.check(name)


def plain(value):
  """Nested dictionaries and lists, whose items can be replaced."""
  if isinstance(value, dict):
    return {key: plain(item) for key, item in value.items()}
  return [plain(item) for item in value] if isinstance(value, tuple | list) else value


def tiny_configs() -> list[dict]:
  """What some files in configs/ resolve to, on tiny phantoms."""
  found = []
  for name in CONFIG_NAMES:
    values = importlib.import_module(f"configs.{name}").get_config().to_dict()
    flat = len(values["data"]["patch"]) == 2
    values["data"] |= {"source": "phantom", "root": "", "split": "official", "num_labelled": 2, "downsample": 1}
    values["data"] |= {"patch": (16,) * len(values["data"]["patch"])}
    values["data"]["phantom"] |= {"shape": (24, 24, 16), "num_train": 4, "num_test": 1}
    values["data"]["synthesis"]["per_background"] = min(values["data"]["synthesis"]["per_background"], 1)
    values["network"]["width"] = 2
    values["eval"]["stride"] = () if flat else (8, 8, 8)
    found.append(plain(values))
  return found


CONFIG_NAMES = ("supervised_la", "mean_teacher_la", "crln_la", "caml_la", "cml_la", "cmems_acdc", "supervised_acdc", "quickstart")
CONFIG_VALUES = st.one_of(
  st.sampled_from(
    [math.nan, math.inf, -math.inf, 0, -1, 1, 2, 3, 10**6, 10**9, 2**31, 2**63, 10**30, 10**400, 0.0, -0.5, 1.5, 1e-30, 1e30]
  ),
  st.sampled_from([None, True, False, "", "1", "16", "nan", "none", "last", "a\0b", "../..", "/", "~nobody", "x" * 5000, b"1"]),
  st.sampled_from(
    [[], {}, (), [1], [1, 2], [1, 2, 3], [16, 16, 16], [[]], [["train", 1]], {"a": 1}, {1: 2}, {"x": {"y": {}}}, {16, 8}, object]
  ),
)


@st.composite
def config_examples(draw):
  values = draw(st.sampled_from(TINY_CONFIGS))
  for _ in range(draw(st.integers(1, 2))):
    known = sorted(fuzzing.places(values), key=repr)
    values = copy.deepcopy(values)
    path = known[draw(st.integers(0, len(known) - 1))]
    parent = functools.reduce(lambda group, key: group[key], path[:-1], values)
    how, old = draw(st.sampled_from(["replace", "replace", "scale", "remove", "rename", "add"])), parent[path[-1]]
    if how == "scale" and isinstance(old, int | float) and not isinstance(old, bool):
      parent[path[-1]] = old * draw(st.sampled_from([-1, 0, 2, 3, 1000, 0.5, 1e9]))
    elif how in ("rename", "add") and isinstance(parent, dict):
      name = draw(st.sampled_from(["name", "", "x", "wieght", f"{path[-1]}s"]))
      parent[name] = parent.pop(path[-1]) if how == "rename" else draw(CONFIG_VALUES)
    elif how == "remove":
      del parent[path[-1]]
    else:
      parent[path[-1]] = draw(CONFIG_VALUES)
  return values


TINY_CONFIGS = tiny_configs()


def use_config(values: dict) -> Experiment:
  """As `main.run` before anything is trained, and the recorded configuration read back."""
  cfg = config.check(config.parse(Config, values))
  methods = [dataclasses.replace(cfg, method=method, compare={}) for method in cfg.compare.values()] or [cfg]
  for each in methods:
    experiment = open_experiment(each)
    assert all(leaf.shape is not None for leaf in jax.tree.leaves(experiment.abstract_state))
  with written({"config.json": config.to_json(cfg).encode()}) as root:
    assert config.from_json(root / "config.json") == cfg
  return experiment


@fuzz(0.25, 30)
@given(config_examples())
def run_configs(values):
  TALLY.outcome("configurations", lambda: use_config(values), ("config.", "data."))


def test_configurations():
  run_configs()
  TALLY.check("configurations")


@fuzz(0.1, 40)
@given(fuzzing.changed_json(TINY_CONFIGS[-1]))
def run_recorded(content):
  with written({"config.json": content}) as root:
    TALLY.outcome("config.json", lambda: recorded.get_config(str(root / "config.json")), NAMES)


def test_recorded_configuration():
  run_recorded()
  TALLY.check("config.json")
