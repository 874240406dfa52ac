"""Several processes and other numbers of devices: the same losses, the same stops, the same checkpoints."""

import dataclasses
import json
import signal
import socket

import numpy as np
import pytest

from configs import common
from tests.helpers import Forked, forked, phases, tiny_config, with_train, write_config
from tests.methods.common import SMALL_OPTIONS

STEPS = 20


def run(config, workdir, processes=1, devices=1, stop_after=0, *flags):
  """Returns the jobs of the processes of one run."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  argv = [config, f"--workdir={workdir}", *flags, *(["--distributed"] if processes > 1 else [])]
  joined = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes)} if processes > 1 else {}
  job = {"argv": argv, "devices": devices, "stand_ins": True, "stop_after": stop_after}
  return [{**job, "env": {**joined, "JAX_PROCESS_ID": str(k)} if joined else {}} for k in range(processes)]


def config(method, folder, steps=STEPS, **train):
  names = phases(method)
  sizes = {"batch_labelled": 4, "batch_unlabelled": 4, "batch_synthetic": 4 if common.learns_from_synthetic(method) else 0}
  settings = {"phases": tuple((name, steps // len(names)) for name in names), "log_every_steps": 1, "checkpoint_every_steps": 5, **sizes}
  cfg = with_train(tiny_config(method), **settings | train)
  gentle = dataclasses.replace(
    cfg.optim, lr=0.001
  )  # a larger one blows differences of rounding up until a voxel near a tie falls to the other side
  return write_config(dataclasses.replace(cfg, optim=gentle, method={**cfg.method, **SMALL_OPTIONS.get(method, {})}), folder / "config.py")


def losses(workdir):
  return {line["step"]: line["loss"] for line in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()) if "loss" in line}


def same(found, expected):
  assert list(found) == list(expected) == list(range(1, STEPS + 1))
  np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5)


@pytest.mark.parametrize("method", ["crln", "caml"])
def test_processes_and_devices_change_no_loss(method, tmp_path):
  """1 × 1 = 1 × 4 = 2 × 2, and for CRLN one run that goes 1 -> 4 -> 2 devices -> 2 processes with a divided state."""
  file, moved, split = config(method, tmp_path, STEPS + 1), tmp_path / "moved", "--config.train.shard_state=True"
  groups = [run(file, tmp_path / name, *number, STEPS) for name, number in {"one": (1, 1), "four": (1, 4), "two": (2, 2)}.items()]
  if method == "crln":
    stages = [(1, 1, 5), (1, 4, 10), (1, 2, 15, split), (2, 1, 20, split)]
    groups += [run(file, moved, *stage) for stage in stages]
  found = forked(*groups)
  assert {status for status, _ in found} == {75}, found
  for name in ("four", "two", *(["moved"] if method == "crln" else [])):
    same(losses(tmp_path / name), losses(tmp_path / "one"))


def test_two_processes_share_the_evaluation(tmp_path):
  """Three scans; a table of every one, in order, as one process makes it."""
  file = config("supervised", tmp_path, 2)
  found = forked(run(file, tmp_path / "one"), run(file, tmp_path / "two", 2))
  assert {status for status, _ in found} == {0}, found
  one, two = (json.loads((tmp_path / name / "results_student.json").read_text()) for name in ("one", "two"))
  assert [case["case"] for case in two["cases"]] == [case["case"] for case in one["cases"]]
  for a, b in zip(one["cases"], two["cases"], strict=True):
    np.testing.assert_allclose(a["dice"], b["dice"], atol=1e-3)
  assert (tmp_path / "two" / "results.md").is_file()


def test_sigterm_to_one_process_stops_both_at_one_step(tmp_path):
  workdir = tmp_path / "run"
  running = Forked(run(config("mean_teacher", tmp_path, 4000), workdir, 2))
  running.wait_for_lines(workdir, 5)
  running.kill_last(signal.SIGTERM)
  (first, error), (second, _) = running.finish()
  assert (first, second) == (75, 75), error
  assert (workdir / "checkpoints" / str(max(losses(workdir)))).is_dir()
