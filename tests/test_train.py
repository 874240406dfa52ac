"""The loop, end to end on phantoms: resume, devices, guards, errors a user meets."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from tensorboardX.proto import event_pb2

from ssl_jax import compiler, main
from ssl_jax import experiment as experiment_module
from ssl_jax import train as train_module
from ssl_jax.config import from_json, to_json
from ssl_jax.evaluate import evaluate, write_results
from ssl_jax.experiment import open_experiment, restore, run_key
from ssl_jax.report import __main__ as report
from ssl_jax.train import TrainingDiverged, compile_step, is_compiled, train
from ssl_jax.types import Config, InputError
from tests.helpers import Forked, command, forked, tiny_config, with_train, write_config
from tests.methods.common import small_networks


def equal(a, b):
  return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool(np.array_equal(x, y, equal_nan=True)), jax.device_get(a), jax.device_get(b))))


def lines(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def stand_in_networks(monkeypatch):
  """Networks that compile in a second; whole ones take part where a test does not ask for these."""
  monkeypatch.setattr(experiment_module, "Networks", lambda cfg, num_classes: small_networks())


@contextlib.contextmanager
def keeping_programs(folder):
  always = {"jax_enable_compilation_cache": True, "jax_persistent_cache_min_compile_time_secs": 0.0}
  wanted = {"jax_compilation_cache_dir": folder and str(folder), **always}
  before = {name: getattr(jax.config, name) for name in wanted}
  try:
    for name, value in wanted.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()  # JAX 0.11 stays with the folder that it has opened
    yield
  finally:
    for name, value in before.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()


def events(folder):
  """TensorBoard's: each a length, its checksum, that many bytes, their checksum."""
  (file,) = folder.glob("events.*")
  content, at = file.read_bytes(), 0
  while at < len(content):
    (length,) = struct.unpack_from("<Q", content, at)
    yield event_pb2.Event.FromString(content[at + 12 : at + 12 + length])
    at += 16 + length


@pytest.mark.parametrize("method", ["supervised", "crln"])
def test_resume_is_bit_identical(tmp_path, method, request):
  if method == "crln":
    request.getfixturevalue("stand_in_networks")
  cfg = with_train(tiny_config(method), batch_labelled=3)  # on one device: so short a step can dead-lock XLA's pretended ones
  whole = train(open_experiment(cfg), tmp_path / "whole")

  class Killed(Exception):
    pass

  experiment = open_experiment(cfg)
  fetch, train_module._fetch = train_module._fetch, None

  def fetch_or_die(pending, step):
    if step == 6:
      raise Killed
    return fetch(pending, step)

  train_module._fetch = fetch_or_die
  try:
    with pytest.raises(Killed):
      train(experiment, tmp_path / "parts")
  finally:
    train_module._fetch = fetch
  assert [line["step"] for line in lines(tmp_path / "parts")][-1] == 4
  resumed = train(open_experiment(cfg), tmp_path / "parts")
  assert equal(whole, resumed) and int(resumed.step) == 6


def test_one_device_equals_eight():
  """Over several steps of a whole network; one step of every method: `test_contract.py`."""
  cfg = with_train(tiny_config("mean_teacher"), batch_labelled=8, batch_unlabelled=8)
  from ssl_jax import data
  from ssl_jax.core import sharding

  losses = {}
  for count in (1, 8):
    experiment = open_experiment(cfg)
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:count]), ("data",))
    experiment.__dict__["mesh"] = mesh
    step, _ = compile_step(experiment, "train")
    state = jax.jit(experiment.init, out_shardings=sharding.replicated(mesh))(jax.random.key(0))
    batches = data.batches(
      cfg.data, experiment.source, experiment.split, seed=0, batch_labelled=8, batch_unlabelled=8, start_step=0, num_steps=4
    )
    key = jax.device_put(jax.random.key(0), sharding.replicated(mesh))
    losses[count] = []
    for batch in batches:
      state, metrics = step(state, sharding.to_devices(batch, sharding.over_data(mesh)), key)
      losses[count].append(float(metrics["loss"]))
  np.testing.assert_allclose(losses[1], losses[8], rtol=2e-5)


def test_mesh_takes_the_devices_that_divide_the_batch():
  assert open_experiment(tiny_config("supervised")).mesh.size == 2
  assert open_experiment(with_train(tiny_config("supervised"), batch_labelled=3)).mesh.size == 1


def test_no_recompilation_after_the_first_step(tmp_path, caplog, stand_in_networks):
  with jax.log_compiles():
    train(open_experiment(with_train(tiny_config("mean_teacher"), batch_labelled=3)), tmp_path)
  compiled = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Finished XLA compilation of jit(step)")]
  assert len(compiled) == 1


@pytest.mark.parametrize("large", [True, False])
def test_a_large_step_on_a_cpu_is_over_before_the_next_is_sent(tmp_path, monkeypatch, stand_in_networks, large):
  late = jax.jit(lambda loss: loss + 0 * jax.lax.fori_loop(0, 40, lambda _, a: 1e-3 * (a @ a), jnp.ones((400, 400)))[0, 0])
  jax.block_until_ready(late(jnp.float32(0)))
  losses, ready = [], []

  def compile_slow_step(experiment, phase):
    step, facts = compile_step(experiment, phase)

    def slow_step(state, batch, key):
      ready.extend(loss.is_ready() for loss in losses[-1:])
      state, metrics = step(state, batch, key)
      losses.append(late(metrics["loss"]))
      return state, {**metrics, "loss": losses[-1]}

    return slow_step, {**facts, "step_peak_bytes": float(1 << 30 if large else 1 << 20)}

  monkeypatch.setattr(train_module, "compile_step", compile_slow_step)
  train(open_experiment(with_train(tiny_config("supervised"), batch_labelled=3, log_every_steps=6, checkpoint_every_steps=6)), tmp_path)
  assert len(ready) == 5 and all(ready) == large


_MANY_STEPS = """
import sys, time
import jax, jax.numpy as jnp, numpy as np
from ssl_jax.core.heap import Room
from ssl_jax.train import wait_out

@jax.jit
def step(x):
  return jax.lax.fori_loop(0, 2, lambda i, held: held + i, jnp.full(16 << 20, x)).sum()

step = step.lower(jnp.float32(0)).compile()
block, read = step.memory_analysis().temp_size_in_bytes, int(sys.argv[1])
if read:
  with Room() as room:
    room.take(block)
x, scans, small, resident = jnp.float32(0), [], [], []
for _ in range(60):
  sent = time.perf_counter()
  x = step(0 * x)
  scans.append(np.ones(read << 16))  # above the block
  small.append([bytes(size) for size in range(520, 2000 * read, 8)])
  wait_out(x, sent - 2)  # as after a step of two seconds
  resident.append(int(open("/proc/self/statm").read().split()[1]) >> 8)
  scans.append(np.ones(read << 16))  # where the block was
print(block >> 20, max(now - resident[0] - i * read * 1.5 for i, now in enumerate(resident)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="malloc is tuned on Linux")
@pytest.mark.parametrize("read", [0, 2], ids=["alone", "scans_are_read"])
def test_steps_that_are_waited_out_share_one_block_of_memory(read):
  """Without the wait some of so many steps take a second or third block, without `Room` the step after the first scan does."""
  env = {**os.environ, "GLIBC_TUNABLES": main.MALLOC, "JAX_PLATFORMS": "cpu"}
  found = subprocess.run([sys.executable, "-c", _MANY_STEPS, str(read)], env=env, capture_output=True, text=True, check=True).stdout
  block, growth = map(float, found.split())
  assert block == 64 and growth < block / 2


_TOUCHED = """
import ctypes, time
from ssl_jax.core.heap import Room

libc = ctypes.CDLL(None)
libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
resident = lambda: int(open("/proc/self/statm").read().split()[1]) >> 8
before = resident()
with Room() as room:
  room.take(256 << 20)
  deadline = time.perf_counter() + 30
  while resident() - before < 190 and time.perf_counter() < deadline:
    time.sleep(0.01)
  loaded = [libc.malloc(1 << 20) for _ in range(8)]
  ahead = resident() - before
arranged = resident()
block = libc.malloc(256 << 20)
ctypes.memset(block, 1, 256 << 20)
print(ahead, resident() - arranged)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="malloc is tuned on Linux")
def test_most_of_a_steps_memory_is_touched_while_its_program_is_loaded():
  env = {**os.environ, "GLIBC_TUNABLES": main.MALLOC}
  found = subprocess.run([sys.executable, "-c", _TOUCHED], env=env, capture_output=True, text=True, check=True).stdout
  ahead, by_the_step = map(int, found.split())
  assert 180 < ahead < 240 and 50 < by_the_step < 90


def test_make_tunes_malloc_as_the_command_line_does():
  exported = re.search(r"GLIBC_TUNABLES \?= (.*)", (Path(main.__file__).parents[1] / "Makefile").read_text())[1]
  assert set(exported.split(":")) == set(main.MALLOC.split(":"))


_HELD = """
import ctypes, sys
from ssl_jax.core.heap import trim

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
resident = lambda: int(open("/proc/self/statm").read().split()[1]) >> 8
before, blocks = resident(), [libc.malloc(1 << 16) for _ in range(4096)]
for block in blocks:
  ctypes.memset(ctypes.c_void_p(block), 1, 1 << 16)
pin = libc.malloc(1 << 16)  # above what is freed
for block in blocks:
  libc.free(block)
held = resident() - before
trim()
print(held, resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="malloc is glibc's on Linux")
@pytest.mark.parametrize("malloc", ["", main.MALLOC], ids=["default", "tuned"])
def test_what_a_compilation_leaves_goes_back(malloc):
  env = {**os.environ, "GLIBC_TUNABLES": malloc}
  found = subprocess.run([sys.executable, "-c", _HELD], env=env, capture_output=True, text=True, check=True).stdout
  held, kept = map(int, found.split())
  assert held > 200 and kept < 50


def test_a_poisoned_batch_stops_with_step_and_term_and_leaves_a_sound_checkpoint(tmp_path, monkeypatch, stand_in_networks):
  experiment = open_experiment(with_train(tiny_config("supervised"), log_every_steps=6, batch_labelled=3))
  to_devices, calls = train_module.sharding.to_devices, []

  def poisoned(batch, sharding):
    calls.append(1)
    if len(calls) == 4:
      batch["labelled"]["image"][0, 0, 0, 0] = np.nan
    return to_devices(batch, sharding)

  with monkeypatch.context() as patch:
    patch.setattr(train_module.sharding, "to_devices", poisoned)
    with pytest.raises(TrainingDiverged, match=r"step 4: loss_supervised is nan.*phantom") as caught:
      train(experiment, tmp_path)
  assert all(name in str(caught.value) for name in experiment.split.labelled)
  state = restore(open_experiment(experiment.cfg), tmp_path)
  assert int(state.step) == 2 and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.students))


def test_a_folder_of_another_run_is_refused_by_key(tmp_path, stand_in_networks):
  cfg = with_train(tiny_config("supervised"), batch_labelled=3)
  train(open_experiment(cfg), tmp_path)
  other = dataclasses.replace(cfg, optim=dataclasses.replace(cfg.optim, lr=0.5))
  with pytest.raises(InputError, match=r"config.optim.lr was 0.01, now 0.5"):
    train(open_experiment(other), tmp_path)


def test_evaluation_writes_tables_and_the_run_its_record(tmp_path, stand_in_networks):
  experiment = open_experiment(with_train(tiny_config("crln"), batch_labelled=3, eval_every_steps=3))
  state = train(experiment, tmp_path)
  results = evaluate(experiment, state)
  write_results(results, tmp_path)
  assert list(results) == ["student", "teacher"]
  saved = json.loads((tmp_path / "results_student.json").read_text())
  assert saved["data"] == {"dataset": "phantom", "num_labelled": 2, "downsample": 1, "test_list": "test.list"}
  assert (saved["select"], saved["checkpoint"], saved["empty_policy"]) == ("last", "last", "published")
  assert len(saved["cases"]) == 2 and {"dice", "jaccard", "hd95", "asd", "hd95_mm"} <= set(saved["cases"][0])
  assert (tmp_path / "results_teacher.csv").read_text().startswith("case,dice")
  record = json.loads((tmp_path / "run.json").read_text())
  assert record["versions"]["jax"] == jax.__version__ and len(record["data"]["fingerprint"]) == 64
  validated = [line for line in lines(tmp_path) if "student/dice" in line]
  assert [line["step"] for line in validated] == [3, 6]
  assert {"teacher/dice", "pseudo_before/dice_all", "pseudo_after/share_reliable"} <= set(validated[0])
  pictures = [event for event in events(tmp_path / "tensorboard") if any(v.HasField("image") for v in event.summary.value)]
  assert [event.step for event in pictures] == [3, 6] and pictures[0].summary.value[0].tag == "evaluation/phantom_test_000"
  assert report.main(["confidence", str(tmp_path), "--format=svg"]) == 0
  assert "Before" in (tmp_path / "confidence_phantom_test_000.svg").read_text()
  best = dataclasses.replace(experiment.cfg, eval=dataclasses.replace(experiment.cfg.eval, select="best"))
  assert int(restore(open_experiment(best), tmp_path).step) in (3, 6)


def test_the_published_checkpoint_is_the_one_the_method_names():
  def opened(method, select, every):
    cfg = with_train(tiny_config(method), eval_every_steps=every)
    return open_experiment(dataclasses.replace(cfg, eval=dataclasses.replace(cfg.eval, select=select)))

  assert opened("supervised", "published", 0).select == "last"
  assert opened("cml", "published", 3).select == opened("supervised", "best", 6).select == "best"
  for method, select, every in (("cml", "published", 0), ("supervised", "best", 7)):
    with pytest.raises(InputError, match=r"config\.eval\.select"):
      opened(method, select, every)


def test_more_phases_than_one_run_in_order(tmp_path, stand_in_networks):
  cfg = tiny_config("supervised")
  cfg = with_train(cfg, batch_labelled=3, phases=(("train", 2), ("train", 3)))
  state = train(open_experiment(cfg), tmp_path)
  assert int(state.step) == 5 and [line["step"] for line in lines(tmp_path) if "phase" in line] == [0, 2]


def small_arguments(tmp_path, **train):
  cfg = with_train(tiny_config("supervised"), **train)
  return [write_config(cfg, tmp_path / "small.py"), f"--workdir={tmp_path / 'run'}"]


def test_sigterm_saves_and_sigkill_loses_only_steps_since_the_checkpoint(tmp_path):
  steps = 240
  arguments = small_arguments(tmp_path, phases=(("train", steps),), checkpoint_every_steps=20, batch_labelled=3)
  job, workdir = {"argv": arguments, "stand_ins": True}, tmp_path / "run"
  for number in (signal.SIGTERM, signal.SIGKILL):
    running = Forked([job])
    running.wait_for_lines(workdir, (len(lines(workdir)) if workdir.exists() else 0) + 15)
    running.kill_last(number)
    ((status, _),) = running.finish()
    assert status == (train_module.EXIT_PREEMPTED if number == signal.SIGTERM else -signal.SIGKILL)
    assert lines(workdir)[-1]["step"] < steps
  (status, error), (status_of_whole, _) = forked([job], [{**job, "argv": [arguments[0], f"--workdir={tmp_path / 'whole'}"]}])
  assert (status, status_of_whole) == (0, 0), error
  last = lambda folder: [line["loss"] for line in lines(folder) if line.get("step") == steps and "loss" in line]
  assert len(last(workdir)) == 1 and last(workdir) == last(tmp_path / "whole")
  assert max(b["step"] - a["step"] for a, b in zip(lines(workdir), lines(workdir)[1:], strict=False)) <= 2


def test_compiling_leaves_the_program_in_the_cache_and_trains_nothing(tmp_path):
  cache, workdir = tmp_path / "cache", tmp_path / "run"
  tiny = [f"--config.data.{key}" for key in ("num_labelled=2", "patch=(16,16,16)", "phantom.shape=(24,24,16)", "phantom.num_train=6")]
  arguments = ["--config=configs/supervised_la_small.py", "--config.data.source=phantom", "--config.network.width=2", *tiny]
  result = command(
    *arguments,
    "--mode=compile",
    "--config.data.downsample=1",
    "--config.data.num_holdout=2",
    "--config.eval.stride=(8,8,8)",
    f"--workdir={workdir}",
    env={"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
  )
  assert result.returncode == 0, result.stderr
  assert list(cache.glob("jit_step-*")) and not workdir.exists()


def test_a_long_run_compiles_apart_until_it_has_begun(tmp_path, monkeypatch, stand_in_networks):
  begun, calls = tmp_path / "begun", []
  (begun / "checkpoints").mkdir(parents=True)
  short = open_experiment(with_train(tiny_config("supervised"), batch_labelled=3))
  long = open_experiment(with_train(tiny_config("supervised"), batch_labelled=3, phases=(("train", 1000),)))
  monkeypatch.setattr(main.subprocess, "run", lambda command, env, **_: calls.append((command[-2:], env["GLIBC_TUNABLES"])))
  main.compile_apart(long, tmp_path)  # on eight devices, whose programs are not kept
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  for experiment, folder in ((short, tmp_path), (long, begun), (long, tmp_path)):
    main.compile_apart(experiment, folder)
  assert calls == [([f"--workdir={tmp_path}", "--mode=compile"], "")]


@pytest.fixture
def kept_programs(tmp_path, monkeypatch):
  """A cache as a command on one CPU has it, which keeps programs."""
  first = jax.devices()[:1]
  monkeypatch.setattr(compiler, "_keeping", True)
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  monkeypatch.setattr(jax, "devices", lambda *_: first)
  jax.clear_caches()  # what this process has compiled before JAX does not compile again
  with keeping_programs(tmp_path / "cache"):
    yield tmp_path / "cache" / "ssl_jax"


def test_a_program_is_known_once_it_is_compiled(tmp_path, monkeypatch, stand_in_networks, kept_programs):
  cfg = with_train(tiny_config("supervised"), batch_labelled=3, phases=(("train", 1000),))
  experiment, calls = open_experiment(cfg), []
  monkeypatch.setattr(main.subprocess, "run", lambda *_, **__: calls.append(1))
  (tmp_path / "config.json").write_text(to_json(dataclasses.replace(cfg, seed=cfg.seed + 1)))
  assert not is_compiled(experiment, "train")
  compile_step(experiment, "train")
  again = open_experiment(from_json(tmp_path / "config.json"))
  other = open_experiment(dataclasses.replace(cfg, optim=dataclasses.replace(cfg.optim, lr=0.5)))
  fewer = open_experiment(dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, num_labelled=1)))
  elsewhere = open_experiment(dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, intensity_jitter=0.5)))
  assert is_compiled(again, "train") and not is_compiled(other, "train") and not is_compiled(experiment, "another")
  assert is_compiled(elsewhere, "train") and not is_compiled(fewer, "train")
  assert not is_compiled(dataclasses.replace(experiment, made_of=None), "train")
  main.compile_apart(again, tmp_path)
  assert not calls
  monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
  assert not is_compiled(again, "train")
  main.compile_apart(again, tmp_path)
  assert calls


def untraceable(experiment):
  def refuse(*_):
    raise AssertionError("traced")

  return dataclasses.replace(experiment, method=dataclasses.replace(experiment.method, steps={"train": refuse}))


def test_a_program_that_was_kept_is_the_same_and_not_traced(stand_in_networks, kept_programs):
  experiment = open_experiment(with_train(tiny_config("mean_teacher"), batch_labelled=3))

  def two_steps(step):
    state, key = experiment.first_state(), run_key(experiment.cfg)
    batch = jax.tree.map(lambda spec: jnp.ones(spec.shape, spec.dtype), experiment.batch_spec)
    for _ in range(2):
      before, (state, metrics) = state, step(state, batch, key)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.students))
    return jax.device_get((state, metrics))

  step, facts = compile_step(experiment, "train")
  loaded, facts_of_loaded = compile_step(untraceable(experiment), "train")
  assert facts["step_peak_bytes"] == facts_of_loaded["step_peak_bytes"]
  jax.tree.map(np.testing.assert_array_equal, two_steps(step), two_steps(loaded))


@pytest.mark.parametrize("harm", ["cut", "changed", "empty", "of others", "open to others"])
def test_a_program_that_may_not_be_what_was_kept_is_not_loaded(monkeypatch, stand_in_networks, kept_programs, harm):
  experiment = open_experiment(with_train(tiny_config("supervised"), batch_labelled=3))
  compile_step(experiment, "train")
  (file,) = kept_programs.iterdir()
  whole = file.read_bytes()
  if harm == "of others":
    monkeypatch.setattr(os, "getuid", lambda: file.stat().st_uid + 1)
  elif harm == "open to others":
    file.chmod(0o664)
  else:
    at = len(whole) // 2
    file.write_bytes({"cut": whole[:at], "changed": whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :], "empty": b""}[harm])
  with pytest.raises(AssertionError, match="traced"):
    compile_step(untraceable(experiment), "train")
  compile_step(experiment, "train")


def test_what_jax_had_in_its_cache_is_not_written_again(stand_in_networks, kept_programs):
  experiment = open_experiment(with_train(tiny_config("supervised"), batch_labelled=3))
  compile_step(experiment, "train")
  (file,) = kept_programs.iterdir()
  assert file.stat().st_mode & 0o777 == 0o600 and file.stat().st_size > 10_000
  file.unlink()
  jax.clear_caches()
  compile_step(experiment, "train")
  assert file.read_bytes() == b"" and is_compiled(experiment, "train")  # no child process would find more to do
  with pytest.raises(AssertionError, match="traced"):
    compile_step(untraceable(experiment), "train")


def test_a_full_disk_keeps_no_program_and_trains(monkeypatch, stand_in_networks, kept_programs):
  def no_space(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(Path, "write_bytes", no_space)
  experiment = open_experiment(with_train(tiny_config("supervised"), batch_labelled=3))
  compile_step(experiment, "train")
  assert list(kept_programs.iterdir()) == [] and not is_compiled(experiment, "train")


def test_programs_are_kept_for_commands_whose_source_is_what_they_run(tmp_path, monkeypatch, stand_in_networks, kept_programs):
  assert compiler.program_file("a") == compiler.program_file("a") != compiler.program_file("b")
  file = compiler.program_file("a")
  assert file.parent == kept_programs
  for name, value in (("_processor", lambda: "another"), ("_versions", lambda: ["jax 0"]), ("_source", lambda: "another")):
    with monkeypatch.context() as changed:
      changed.setattr(compiler, name, value)
      assert compiler.program_file("a") != file
  compiler._source.cache_clear()
  monkeypatch.setattr(compiler, "_IMPORTED", 0.0)  # as if every file had been written since
  assert compiler.program_file("a") is None and not is_compiled(open_experiment(tiny_config("supervised")), "train")
  compiler._source.cache_clear()
  monkeypatch.undo()
  for elsewhere in (None, "gs://bucket/cache"):
    with keeping_programs(elsewhere):
      assert compiler.program_file("a") is None
  with keeping_programs(tmp_path / "cache"):  # no command's process
    assert compiler.program_file("a") is None


def test_programs_of_several_cpu_devices_are_not_kept():
  kept = jax.config.jax_enable_compilation_cache
  try:
    main.prepare_compiler()
    assert jax.device_count() > 1 and not jax.config.jax_enable_compilation_cache
  finally:
    jax.config.update("jax_enable_compilation_cache", kept)


def test_command_line_errors_are_one_line(tmp_path):
  arguments = small_arguments(tmp_path)
  messages = {
    ("--config.optim.lrr=1",): "config.optim.lrr: no such key; did you mean 'lr'?",
    ("--config.data.source=msd",): "configs/quickstart.py",
    ("--config.method.name=supervized",): "did you mean 'supervised'?",
    ("--config.data.num_labelled=0",): "num_labelled",
    ("--config.data.num_labelled=99",): "num_labelled",
    ("--config.data.patch=(20,20,20)", "--config.eval.stride=(8,8,8)"): "16",
    ("--config.optim.lr=fast",): "lr",
    ("--mode=predict",): "--input",
    ("--mode=eval",): "no checkpoints",
    ("--config=nowhere.py",): "nowhere.py",
  }
  found = forked(*[[{"argv": [*arguments, *extra]}] for extra in messages])
  for (extra, message), (status, error) in zip(messages.items(), found, strict=True):
    assert status == 2, (extra, error)
    assert message in error and "Traceback" not in error, (extra, error)
  assert not (tmp_path / "run").exists()


def test_config_survives_json(tmp_path):
  from ssl_jax.config import from_json

  cfg = tiny_config("crln")
  (tmp_path / "config.json").write_text(to_json(cfg))
  assert from_json(tmp_path / "config.json") == cfg
  assert isinstance(cfg, Config)
