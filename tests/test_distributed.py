"""Several processes and other numbers of devices: the same losses, the same stops, the same checkpoints."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.helpers import ROOT

STEPS = 20
# XLA starts independent collectives of a short step in any order on pretended devices, and waits for ever when two disagree.
XLA_FLAGS = "--xla_cpu_enable_concurrency_optimized_scheduler=false"


def start(method, workdir, processes=1, devices=1, stop_after=0, **env):
  """Starts the processes of one run."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  command = [sys.executable, "-m", "tests.distributed_child", method, str(workdir), str(stop_after)]
  shared = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "XLA_FLAGS": XLA_FLAGS, **env}
  joined = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes)} if processes > 1 else {}
  return [
    subprocess.Popen(
      command, cwd=ROOT, env={**shared, **joined, "JAX_PROCESS_ID": str(k)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for k in range(processes)
  ]


def finish(running, expected=0, timeout=200):
  errors = [process.communicate(timeout=timeout)[1] for process in running]
  assert [process.returncode for process in running] == [expected] * len(running), errors
  return errors


def losses(workdir):
  return {line["step"]: line["loss"] for line in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()) if "loss" in line}


def same(found, expected):
  assert list(found) == list(expected) == list(range(1, STEPS + 1))
  np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5)


def wait_for(workdir, step, running):
  while not (workdir / "metrics.jsonl").exists() or max(losses(workdir), default=0) < step:
    time.sleep(0.05)
    assert all(process.poll() is None for process in running), [process.communicate()[1] for process in running]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  """Method -> losses on one device, made once."""
  found = {}

  def of(method):
    if method not in found:
      workdir = tmp_path_factory.mktemp(method)
      finish(start(method, workdir))
      found[method] = losses(workdir)
    return found[method]

  return of


@pytest.mark.slow
@pytest.mark.parametrize("method", ["crln", "caml"])
def test_two_processes_of_two_devices_are_one_of_four_and_one_of_one(method, tmp_path, alone):
  for name, processes, devices in (("one", 1, 4), ("two", 2, 2)):
    finish(start(method, tmp_path / name, processes, devices))
    same(losses(tmp_path / name), alone(method))


@pytest.mark.slow
def test_a_run_goes_on_with_other_numbers_of_devices_and_processes(tmp_path, alone):
  """1 -> 4 -> 2 devices -> 2 processes, the last with optimizer and teacher divided."""
  finish(start("crln", tmp_path, stop_after=5), 75)
  finish(start("crln", tmp_path, devices=4, stop_after=10), 75)
  finish(start("crln", tmp_path, devices=2, stop_after=15, SHARD_STATE="1"), 75)
  finish(start("crln", tmp_path, processes=2, SHARD_STATE="1"))
  same(losses(tmp_path), alone("crln"))


@pytest.mark.slow
def test_sigterm_to_one_process_stops_both_at_one_step(tmp_path):
  many = {"STEPS": "4000"}
  running = start("crln", tmp_path, 2, 1, **many)
  wait_for(tmp_path, 3, running)
  running[1].send_signal(signal.SIGTERM)
  finish(running, 75)
  assert (tmp_path / "checkpoints" / str(max(losses(tmp_path)))).is_dir()


@pytest.mark.slow
def test_when_one_process_dies_the_other_ends_too_and_the_run_resumes(tmp_path):
  many = {"STEPS": "100"}
  running = start("crln", tmp_path, 2, 1, **many)
  wait_for(tmp_path, 7, running)
  running[1].kill()
  error = running[0].communicate(timeout=200)[1]
  assert running[0].returncode not in (0, 2, 75), error
  finish(start("crln", tmp_path, 2, 1, **many))
  assert max(losses(tmp_path)) == 100
