"""Sweeps: every committed one is sound, and one is run, interrupted, resumed and tabulated as a user would."""

import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ssl_jax import config
from ssl_jax import sweep as sweeps
from ssl_jax.sweep import Sweep, Variant
from ssl_jax.types import InputError
from tests.helpers import HANG_S, ROOT, tiny_config, with_train
from tests.test_report import result, rows
from tests.test_train import lines

ABLATIONS = sorted((ROOT / "configs" / "ablations").glob("*.py"))
COMPARISONS = sorted(p for p in (ROOT / "configs" / "comparisons").glob("*.py") if p.stem != "common")
STEPS = 120
VARIANTS = '(Variant("plain", {"network.dropout": 0.0}, {"dice": 50.0}), Variant("dropout", {"network.dropout": 0.5}))'


def sweep_file(folder: Path, variants: str = VARIANTS, **changes) -> Path:
  """Writes a sweep of tiny supervised runs on phantoms."""
  cfg = dataclasses.replace(with_train(tiny_config("supervised"), phases=(("train", STEPS),), checkpoint_every_steps=4), **changes)
  file = folder / "small.py"
  file.write_text(
    "from ml_collections import ConfigDict\nfrom ssl_jax.sweep import Sweep, Variant\n\n"
    f"def get_sweep():\n  return Sweep(lambda: ConfigDict({dataclasses.asdict(cfg)!r}), {variants}, title='Small')\n"
  )
  return file


def start(*arguments: str, **env: str) -> subprocess.Popen:
  command = [sys.executable, "-m", "tests.stand_ins", "ssl_jax.sweep", *arguments]
  env = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", **env}
  return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def files(folder: Path) -> dict[str, int]:
  return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("file", ABLATIONS + COMPARISONS, ids=lambda file: file.stem)
def test_every_sweep_is_made_of_valid_runs(file, tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)
  sweep = sweeps.load(file)
  runs = sweeps.plan(sweep, tmp_path, seeds=(1, 2))
  assert len(runs) == 2 * len(sweep.variants)
  assert len({sweeps._that_matters(run.cfg) for run in runs}) == len(runs), "two variants are the same run"
  document = file.read_text().split('"""')[1]
  assert f"--sweep={file.relative_to(ROOT)}" in document
  assert file in COMPARISONS or f"{len(sweep.variants)} variants" in document


@pytest.mark.parametrize("file", COMPARISONS, ids=lambda file: file.stem)
def test_a_comparison_is_fair(file, tmp_path, monkeypatch):
  """Equal steps, and all the same but the method's own options, the names of its phases, its decoder and who draws its weak views."""
  monkeypatch.chdir(ROOT)
  runs = sweeps.plan(sweeps.load(file), tmp_path)
  published = lambda run: importlib.import_module(f"configs.{run.variant.name}_{file.stem.split('_')[0]}").get_config()
  assert all(run.cfg.data.view == published(run).data.view for run in runs), "a method without the weak views that it learns from"
  assert len({sum(length for _, length in run.cfg.train.phases) for run in runs}) == 1
  own = lambda cfg: dataclasses.replace(
    cfg,
    method={},
    train=dataclasses.replace(cfg.train, phases=()),
    network=dataclasses.replace(cfg.network, upsample="transpose"),
    data=dataclasses.replace(cfg.data, view="none"),
  )
  assert len({config.to_json(own(run.cfg)) for run in runs}) == 1


@pytest.mark.parametrize("file", ABLATIONS, ids=lambda file: file.stem)
def test_published_numbers_belong_to_the_method_as_its_configuration_has_it(file, tmp_path, monkeypatch):
  """Only the whole method's numbers are known to us, so they may stand only where a variant changes nothing."""
  monkeypatch.chdir(ROOT)
  sweep = sweeps.load(file)
  (whole,) = sweeps.plan(dataclasses.replace(sweep, variants=(Variant("whole"),)), tmp_path)
  for run in sweeps.plan(sweep, tmp_path):
    assert bool(run.variant.published) == (run.cfg == whole.cfg), run.variant.name


def test_a_sweep_is_interrupted_resumed_and_tabulated(tmp_path, capsys):
  """Both variants have the same settings, so that the second shows what the first would be without interruption."""
  file = sweep_file(tmp_path, '(Variant("first", {"network.dropout": 0.5}, {"dice": 50.0}), Variant("second"))')
  workdir = tmp_path / "runs"
  arguments = [f"--sweep={file}", "--seeds=1,2", f"--workdir={workdir}"]
  interrupted = workdir / "first_seed2"

  process = start(*arguments)
  while not (interrupted / "checkpoints" / "4").exists():
    time.sleep(0.01)
    assert process.poll() is None, process.stderr.read()
  process.send_signal(signal.SIGTERM)
  error = process.communicate(timeout=60)[1]
  assert process.returncode == 75, error
  assert lines(interrupted)[-1]["step"] < STEPS and not (interrupted / "results.md").exists()

  before = files(workdir / "first_seed1")
  process = start(*arguments, GLIBC_TUNABLES="glibc.malloc.hugetlb=1")
  out, error = process.communicate(timeout=HANG_S)
  assert process.returncode == 0, error
  assert "first_seed1" not in error and "[2/4]" in error and "[4/4]" in error
  assert files(workdir / "first_seed1") == before
  assert sorted(p.name for p in workdir.iterdir()) == ["first_seed1", "first_seed2", "second_seed1", "second_seed2", "sweep.md"]
  begins = [line["step"] for line in lines(interrupted) if "phase" in line]
  assert begins[0] == 0 and len(begins) == 2 and 4 <= begins[1] < STEPS
  steps = [line["step"] for line in lines(interrupted) if "loss" in line]
  assert steps == sorted(set(steps)) and steps[-1] == STEPS

  for seed in (1, 2):
    folders = [workdir / f"{name}_seed{seed}" for name in ("first", "second")]
    assert len({(folder / "results_student.json").read_text() for folder in folders}) == 1
    assert len({lines(folder)[-1]["loss"] for folder in folders}) == 1

  text = (workdir / "sweep.md").read_text()
  assert text.strip() in out and "# Small" in text and "over seeds" in text and f"step {STEPS}" in text
  first, second = rows(text)
  dice = [json.loads((workdir / f"first_seed{s}" / "results_student.json").read_text())["summary"]["dice"]["mean"] for s in (1, 2)]
  assert first[:2] == ["first", "50.00"] and first[2].startswith(f"{50 * sum(dice):.2f} ± ") and first[-1] == "2/2"
  assert second == ["second", "", *first[2:]]

  before = files(workdir)
  assert sweeps.main(arguments) == 0  # all finished: nothing but the table
  assert rows(capsys.readouterr().out) == [first, second]
  assert {name for name, changed in files(workdir).items() if before[name] != changed} == {"sweep.md"}
  assert sweeps.main([*arguments, "--config.eval.num_resamples=7", "--mode=table"]) == 0
  found = capsys.readouterr()
  assert [row[-1] for row in rows(found.out)] == ["0/2", "0/2"] and "other settings" in found.err
  assert sweeps.main([*arguments, "--config.optim.lr=0.5"]) == 2
  assert "config.optim.lr was 0.01, now 0.5" in capsys.readouterr().err
  assert {name for name, changed in files(workdir).items() if before[name] != changed} == {"sweep.md"}


@pytest.mark.parametrize(("index", "name"), [(0, "plain_seed3"), (2, "dropout_seed3")])
def test_an_index_is_one_run(tmp_path, monkeypatch, index, name):
  from ssl_jax import main as command

  ran = []
  monkeypatch.setattr(command, "run", lambda cfg, folder: ran.append((folder.name, cfg.seed)))
  workdir = tmp_path / "runs"
  assert sweeps.main([f"--sweep={sweep_file(tmp_path)}", "--seeds=3,4", f"--workdir={workdir}", f"--index={index}"]) == 0
  assert ran == [(name, 3)] and [path.name for path in workdir.iterdir() if path.is_dir()] == [name]


def test_the_table_shows_what_has_finished(tmp_path):
  sweep = sweeps.load(sweep_file(tmp_path))
  runs = sweeps.plan(sweep, tmp_path, seeds=(1, 2, 3))
  assert [row[1:] for row in rows(sweeps.table(sweep, runs))] == [["50.00", *["–"] * 4, "0/3"], ["", *["–"] * 4, "0/3"]]
  assert "No run has finished." in sweeps.table(sweep, runs)
  for run, dice in zip(runs[:2], ((0.8, 0.6), (0.8, 0.8)), strict=True):
    run.folder.mkdir()
    (run.folder / "config.json").write_text(sweeps.config.to_json(run.cfg))
    (run.folder / "results_student.json").write_text(json.dumps(result(seed=run.cfg.seed, dice=dice, step=STEPS)))
    (run.folder / "results_teacher.json").write_text(json.dumps(result(seed=run.cfg.seed, dice=(0, 0), predictor="teacher")))
    (run.folder / "results.md").touch()
  assert rows(sweeps.table(sweep, runs[:1] + runs[3:4])) == [
    ["plain", "50.00", "70.00", "35.00", "4.00", "2.00", "1/1"],
    ["dropout", "", *["–"] * 4, "0/1"],
  ]
  assert rows(sweeps.table(sweep, runs))[0] == ["plain", "50.00", "75.00 ± 7.07", "37.50 ± 3.54", "4.00 ± 0.00", "2.00 ± 0.00", "2/3"]


def test_the_list_has_every_run(tmp_path, capsys):
  assert sweeps.main([f"--sweep={sweep_file(tmp_path)}", "--seeds=3,4", f"--workdir={tmp_path / 'runs'}", "--list"]) == 0
  assert capsys.readouterr().out.splitlines() == [
    "0\tplain\t3\tnetwork.dropout=0.0",
    "1\tplain\t4\tnetwork.dropout=0.0",
    "2\tdropout\t3\tnetwork.dropout=0.5",
    "3\tdropout\t4\tnetwork.dropout=0.5",
  ]
  assert not (tmp_path / "runs").exists()


def test_overrides_reach_every_variant_and_the_variant_wins(tmp_path):
  def factory():
    from ml_collections import ConfigDict

    return ConfigDict(dataclasses.asdict(tiny_config("supervised")))

  sweep = Sweep(factory, (Variant("a"), Variant("b", {"optim.lr": 1})), title="")
  runs = sweeps.plan(sweep, tmp_path, overrides=["--config.optim.lr=0.5", "--config.train.log_every_steps=1"])
  assert [(run.folder.name, run.cfg.optim.lr, run.cfg.train.log_every_steps) for run in runs] == [
    ("a_seed1337", 0.5, 1),
    ("b_seed1337", 1.0, 1),
  ]
  with pytest.raises(InputError, match=r"config.optim.lr: every variant"):
    sweeps.plan(dataclasses.replace(sweep, variants=sweep.variants[1:]), tmp_path, overrides=["--config.optim.lr=0.5"])


def test_a_result_counts_only_when_it_is_of_the_last_step_and_these_settings(tmp_path):
  (run, *_) = sweeps.plan(sweeps.load(sweep_file(tmp_path)), tmp_path)
  assert sweeps.finished(run) is None
  run.folder.mkdir()
  settings, results = run.folder / "config.json", run.folder / "results_student.json"
  write = lambda cfg, **changes: (settings.write_text(sweeps.config.to_json(cfg)), results.write_text(json.dumps(result(**changes))))
  write(run.cfg, step=STEPS)
  assert sweeps.finished(run) is None  # results.md comes last
  (run.folder / "results.md").touch()
  assert sweeps.finished(run)["step"] == STEPS
  write(run.cfg, step=STEPS - 2)
  assert sweeps.finished(run) is None
  write(with_train(run.cfg, checkpoint_every_steps=1), step=STEPS)
  assert sweeps.finished(run)
  write(dataclasses.replace(run.cfg, seed=2), step=STEPS)
  assert sweeps.finished(run) is None
  write(run.cfg, step=STEPS)
  results.write_text("{")
  assert sweeps.finished(run) is None


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--index=4"], "--index: 4 is not between 0 and 3"),
    (["--index=-1"], "not between 0 and 3"),
    (["--seeds=1,x"], "--seeds"),
    (["--seeds=1,1"], "--seeds"),
    (["--config.seed=1"], "--seeds=1,2,3"),
    (["--config.optim.lrr=1"], "config.optim.lrr: no such key; did you mean 'lr'?"),
    (["--config.network.dropout=0.1"], "every variant of this sweep sets it"),
    (["--confg.optim.lr=1"], "--confg.optim.lr=1: no such argument"),
    (["--config.data.num_labelled=99"], "variant plain: data.num_labelled=99"),
    (["--config.train.phases=(('pretrain', 1),)"], "has no phase 'pretrain'"),
  ],
)
def test_bad_arguments_are_one_line_before_anything_trains(tmp_path, capsys, arguments, message):
  assert sweeps.main([f"--sweep={sweep_file(tmp_path)}", "--seeds=1,2", f"--workdir={tmp_path / 'runs'}", *arguments]) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and message in error and error.count("\n") == 1
  assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
  ("variants", "message"),
  [
    ('(Variant("a"), Variant("b", {"optim.lrr": 1.0}))', "variant b: config.optim.lrr: no such key; did you mean 'lr'?"),
    ('(Variant("a", {"optin.lr": 1.0}),)', "variant a: config.optin: no such key; did you mean 'optim'?"),
    ('(Variant("a", {"optim.lr.x": 1.0}),)', "config.optim.lr.x: no such key"),
    ('(Variant("a", {"optim.lr": "fast"}),)', "variant a: config.optim.lr: expected float, got 'fast'"),
    ('(Variant("a", {"method.name": "supervized"}),)', "did you mean 'supervised'?"),
    ('(Variant("a", {"network.width": 2, "data.patch": (20, 20, 20)}),)', "variant a: "),
    ('(Variant("a"), Variant("a"))', "only once"),
    ('(Variant("a/b"),)', "names a folder"),
    ('(Variant("a", {}, {"dise": 1.0}),)', "did you mean 'dice'?"),
    ("()", "with variants"),
    ("1 / 0", "ZeroDivisionError"),
    ("(", "SyntaxError"),
  ],
)
def test_bad_sweep_files_are_one_line_before_anything_trains(tmp_path, capsys, variants, message):
  assert sweeps.main([f"--sweep={sweep_file(tmp_path, variants)}", f"--workdir={tmp_path / 'runs'}"]) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and message in error and error.count("\n") == 1
  assert not (tmp_path / "runs").exists()


def test_files_that_are_not_there_or_no_sweep(tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(ROOT)
  missing = tmp_path / "missing.py"
  missing.write_text(
    "from ssl_jax.sweep import Sweep, Variant\ndef get_sweep():\n  return Sweep('configs/nowhere.py', (Variant('a'),), 't')\n"
  )
  for file, message in (
    ("configs/ablations/crln_table55.py", "did you mean 'configs/ablations/crln_table5.py'?"),
    ("configs/ablations", "no Python file"),
    ("configs/crln_la.py", "get_sweep"),
    (str(missing), "configs/nowhere.py"),
  ):
    assert sweeps.main([f"--sweep={file}", f"--workdir={tmp_path / 'runs'}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
  compared = sweep_file(tmp_path, compare={"one": {"name": "supervised"}})
  assert sweeps.main([f"--sweep={compared}"]) == 2
  assert "config.compare" in capsys.readouterr().err


def test_a_run_that_diverges_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
  from ssl_jax import main as command
  from ssl_jax.train import TrainingDiverged

  ran = []

  def run(cfg, folder):
    ran.append(folder.name)
    if len(ran) == 1:
      raise TrainingDiverged("step 4: loss is nan")

  monkeypatch.setattr(command, "run", run)
  assert sweeps.main([f"--sweep={sweep_file(tmp_path)}", f"--workdir={tmp_path / 'runs'}"]) == 2
  assert ran == ["plain_seed1337", "dropout_seed1337"]
  assert "plain_seed1337: step 4: loss is nan" in capsys.readouterr().err


def test_importing_a_sweep_starts_no_device():
  code = """
import runpy
runpy.run_path("configs/ablations/crln_table5.py")["get_sweep"]()
import jax._src.xla_bridge as b
assert not b._backends
"""
  subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
