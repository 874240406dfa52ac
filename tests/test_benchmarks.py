"""The benchmarks: what is planned can start, and what is reported was measured."""

import argparse
import functools
import importlib
import json
import re
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks import __main__ as everything
from benchmarks import common, elsewhere, scaling
from ssl_jax import methods
from tests.helpers import ROOT


class Parsed(BaseException):
  """The arguments were understood."""


def plan(size):
  options = argparse.Namespace(size=size, methods=methods.names(), dtypes=("float32", "bfloat16"), remat=True, root="data/la", rounds=2)
  return everything.plan(options)


@pytest.mark.parametrize("size", everything.STEPS)
def test_every_method_is_planned_and_every_command_can_start(size, monkeypatch):
  planned = plan(size)
  assert {f"step_{name}_bfloat16" for name in methods.names()} <= set(planned)

  def parse_args(self, args=None, namespace=None, *, original=argparse.ArgumentParser.parse_args):
    raise Parsed(original(self, args, namespace))

  for module, *words in planned.values():
    assert (ROOT / "benchmarks" / f"{module}.py").is_file()
    source = (ROOT / "benchmarks" / f"{module}.py").read_text()
    try:
      imported = importlib.import_module(f"benchmarks.{module}")
    except ModuleNotFoundError as error:  # a peer, such as medpy
      assert error.name in (ROOT / "requirements-bench.txt").read_text()
      assert all(f'"{word.split("=")[0]}"' in source for word in words if not re.match("--(rounds|json)=", word))
      continue
    with monkeypatch.context() as patched, pytest.raises(Parsed) as parsed:
      patched.setattr(argparse.ArgumentParser, "parse_args", parse_args)
      patched.setattr(sys, "argv", [module, *words])
      imported.main()
    if name := getattr(parsed.value.args[0], "config", None):
      assert (ROOT / "configs" / f"{name}.py").is_file()


def test_the_pipeline_is_measured_and_what_fails_is_said(tmp_path):
  words = ["--only=pipeline", "--size=toy", "--rounds=1", f"--out={tmp_path}"]
  subprocess.run([sys.executable, "-m", "benchmarks", *words], cwd=ROOT, check=True)
  rows = json.loads((tmp_path / "all.json").read_text())["rows"]
  assert len(rows) == 3 and all(row["per_s"] == pytest.approx(1 / row["median_s"]) for row in rows)
  failing = subprocess.run([sys.executable, "-m", "benchmarks", *words, "--limit_s=0"], cwd=ROOT, capture_output=True, text=True)
  assert failing.returncode == 1 and "not measured:\n  pipeline: " in failing.stderr


def test_a_step_is_measured_without_peers(tmp_path):
  file = tmp_path / "step.json"
  words = ["--config=supervised_la", "--peer=none", "--shape=16,16,16", "--batch=2", "--width=2", "--rounds=1", f"--json={file}"]
  subprocess.run([sys.executable, "-m", "benchmarks.step_time", *words], cwd=ROOT, check=True)
  found = json.loads(file.read_text())
  [row] = found["rows"]
  assert row["first_s"] > row["median_s"] > 0 and 0 < row["needs_gib"] < 0.1 < row["peak_gib"]
  assert "2 + 2 of 16x16x16, width 2" in found["setting"] and "jax" in found["versions"]


def test_ratios_are_of_rounds_and_the_round_before_the_first_is_not_counted(monkeypatch):
  clock = [0.0]

  def nap(lengths):
    clock[0] += next(lengths)

  monkeypatch.setattr(common, "time", types.SimpleNamespace(perf_counter=lambda: clock[0]))
  lengths = {"ours": iter([0.5, 0.01, 0.03]), "peer": iter([0, 0.02, 0.02])}
  taken = common.take_turns({name: functools.partial(nap, each) for name, each in lengths.items()}, 2)
  ours, peer = common.rows_of("nap", taken)
  assert ours["median_s"] == pytest.approx(0.02) and ours["ratio"] == pytest.approx(1) and peer["ratio"] == 1
  text = common.table([ours, {"what": "alone", "side": "x", "median_s": 2.0, "peak_gib": 1.5}])
  assert "| what | side | median ms | fastest ms | ratio | peak GiB |" in text and "| alone | x | 2000 | – | – | 1.50 |" in text


@pytest.mark.parametrize(("wanted", "collectives", "size"), [(("data",), 0, 0), ((), 1, 4 * 3 * 5)])
def test_what_devices_exchange_is_counted(wanted, collectives, size):
  mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))
  shardings = [NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), wanted)]
  program = jax.jit(lambda x: 2 * x if wanted else x.sum(0), in_shardings=shardings[0], out_shardings=shardings[1])
  text = program.lower(jax.ShapeDtypeStruct((8, 3, 5), np.float32)).compile().as_text()
  assert scaling.exchanged(text) == (collectives, size)


PROGRAM = """HloModule step

%turned (p: bf16[4,8]) -> bf16[8,4] {
  %p = bf16[4,8]{1,0} parameter(0)
  ROOT %t = bf16[8,4]{1,0} transpose(%p), dimensions={1,0}
}

%body (state: (s32[], f32[10])) -> (s32[], f32[10]) {
  %state = (s32[], f32[10]{0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[10]{0} get-tuple-element(%state), index=1
  %twice = f32[10]{0} add(%x, %x), metadata={op_name="%x"}
  ROOT %next = (s32[], f32[10]{0}) tuple(%i, %twice)
}

ENTRY %main (image: bf16[4,8], start: (s32[], f32[10])) -> (bf16[8,4], (s32[], f32[10])) {
  %image = bf16[4,8]{1,0} parameter(0)
  %start = (s32[], f32[10]{0}) parameter(1)
  %loop = (s32[], f32[10]{0}) while(%start), condition=%less, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %fusion = bf16[8,4]{1,0} fusion(%image), kind=kInput, calls=%turned
  ROOT %out = (bf16[8,4]{1,0}, (s32[], f32[10]{0})) tuple(%fusion, %loop)
}
"""


def test_kernels_of_a_program_are_counted_as_often_as_they_run():
  assert list(elsewhere.kernels(PROGRAM)) == [(3, 3 * 40, False), (1, 2 * 64, True)]
