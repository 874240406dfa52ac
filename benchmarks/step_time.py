"""Time of one training step on this machine, ours beside PyTorch's, alternating in one run.

  python -m benchmarks.step_time --config=supervised_la --peer=torch [--shape=64,64,32] [--batch=2] [--tuned] [--json=PATH]

The step is that of a file in configs/ on random numbers, at its published shape unless told otherwise. Each side lives in a process of its
own, and the sides take turns, so that whatever else the machine does hits both. `--tuned` runs both with the settings of malloc that
`python -m ssl_jax.main` makes; without it both run with glibc's defaults. `--peer=FOLDER` compares with another checkout of this project,
such as the commit before a change. Peak memory is the process's on a CPU, the device's on a GPU; *needs* is the compiler's count for the
step. *first s* is the first step with tracing and compilation. A virtual machine may get memory from its host only at first touch, which
can take longer than all of that; with `--tuned --touched=GIB` each side has touched so much before. PyTorch's bfloat16 is its autocast.
"""

import argparse
import importlib
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import common

Step = Callable[[], float]
Facts = Callable[[], common.Row]


def configured(args: argparse.Namespace) -> Any:
  changes = {"width": args.width, "dtype": args.dtype, "remat": args.remat or None}
  return common.configuration(args.config, patch=args.shape, batch=args.batch, **changes)


def our_step(args: argparse.Namespace) -> tuple[Step, Facts]:
  import jax

  from ssl_jax import compiler
  from ssl_jax.core import sharding
  from ssl_jax.experiment import open_experiment, run_key
  from ssl_jax.train import compile_step, runs_alone, wait_out

  cfg = configured(args)
  compiler.vectorize_channels()
  compiler.keep_programs()
  if cfg.network.remat:
    compiler.order_for_memory()
  experiment = open_experiment(cfg)
  rng, batch = np.random.default_rng(0), {}
  for stream, spec in experiment.batch_spec.items():
    image = rng.standard_normal(spec["image"].shape, np.float32)
    batch[stream] = {"image": image, "index": np.arange(len(image), dtype=np.int32)}
    if "label" in spec:
      batch[stream]["label"] = (image[..., 0] > 0).astype(np.int32)
  batch = jax.device_put(batch, sharding.over_data(experiment.mesh))
  key = jax.device_put(run_key(cfg), sharding.replicated(experiment.mesh))
  state = experiment.first_state()
  compiled: Any = None
  found: common.Row = {}

  def step() -> float:
    nonlocal state, compiled, found
    if compiled is None:
      compiled, found = compile_step(experiment, args.phase or cfg.train.phases[-1][0])
    sent = time.perf_counter()
    state, metrics = jax.block_until_ready(compiled(state, batch, key))
    if runs_alone(found):
      wait_out(metrics, sent)
    return float(metrics["loss"])

  def facts() -> common.Row:
    device = jax.devices()[0]
    peak = resident_gib() if device.platform == "cpu" else device.memory_stats()["peak_bytes_in_use"] / 2**30
    return {"peak_gib": peak, "needs_gib": found["step_peak_bytes"] / 2**30}

  return step, facts


def torch_step(args: argparse.Namespace) -> tuple[Step, Facts]:
  import torch

  cfg = configured(args)
  names = (f"torch_{cfg.method['name']}", {"vnet": "torch_vnet", "unet2d": "torch_unet2d"}.get(cfg.network.name, "none"))
  module = next((name for name in names if (Path(__file__).parent / f"{name}.py").is_file()), None)
  if module is None:
    sys.exit(f"error: {args.config} has no peer in PyTorch here; choose --peer=none")
  device = "cuda" if torch.cuda.is_available() else "cpu"
  step = importlib.import_module(f"benchmarks.{module}").training_step(
    cfg.data.patch, cfg.train.batch_labelled, cfg.network.width, device, getattr(torch, cfg.network.dtype)
  )
  return step, lambda: {"peak_gib": resident_gib() if device == "cpu" else torch.cuda.max_memory_allocated() / 2**30}


def resident_gib() -> float:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def work(args: argparse.Namespace) -> None:
  """Runs one side: a step for every line on stdin, its facts on stdout."""
  step, facts = {"ours": our_step, "torch": torch_step}[args.worker](args)
  np.ones(args.touched << 27)  # freed at once; tuned malloc keeps it
  print("ready", flush=True)
  for _ in sys.stdin:
    wall, cpu = time.perf_counter(), time.process_time()
    loss = step()
    taken = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu, "loss": loss}
    print(json.dumps({**taken, **facts()}), flush=True)


def malloc(checkout: Path) -> str:
  """The setting that a checkout's `main` makes; importing it would start JAX."""
  return re.findall(r'^MALLOC = "(.*)"', (checkout / "ssl_jax" / "main.py").read_text(), re.M)[0]


class Worker:
  """The process of a side: "ours", "torch", or the folder of another checkout."""

  def __init__(self, side: str, tuned: bool, cache: str | None = None):
    checkout = common.ROOT if side in ("ours", "torch") else Path(side).resolve()
    env = {**os.environ, "GLIBC_TUNABLES": malloc(checkout) if tuned else "", "PYTHONPATH": str(checkout)}
    env.pop("JAX_COMPILATION_CACHE_DIR", None)  # the first step shall compile
    if cache:
      env["JAX_COMPILATION_CACHE_DIR"] = cache
    worker = f"--worker={'torch' if side == 'torch' else 'ours'}"
    command = [sys.executable, "-m", "benchmarks.step_time", *sys.argv[1:], worker]
    self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env, cwd=checkout)
    self._read()
    self.side, self.first = side, self._step()
    self.steps: list[common.Row] = []

  def _read(self) -> str:
    line = self.process.stdout.readline()
    if not line:
      sys.exit(f"error: a worker ended with status {self.process.wait()}")
    return line

  def _step(self) -> common.Row:
    self.process.stdin.write("step\n")
    self.process.stdin.flush()
    return json.loads(self._read())

  def step(self) -> None:
    self.steps.append(self._step())

  def close(self) -> common.Row:
    """What the steps that were counted took beside time."""
    self.process.stdin.close()
    self.process.wait()
    counted = self.steps[1:]
    most = {key: max(step[key] for step in counted) for key in ("peak_gib", "needs_gib") if key in counted[0]}
    return {"cpu_s": sorted(step["cpu_s"] for step in counted)[len(counted) // 2], "first_s": self.first["wall_s"], **most}


def compare(args: argparse.Namespace) -> list[common.Row]:
  sides = [side for side in ("ours", args.peer) if side != "none"]
  with tempfile.TemporaryDirectory() as folder:
    caches = {side: str(Path(folder, str(i))) if args.cached else None for i, side in enumerate(sides)}
    for side in sides if args.cached else ():
      if side != "torch":
        Worker(side, False, caches[side]).process.kill()  # compiles and leaves the program behind, as `main.compile_apart`
    taken: dict[str, list[float]] = {}
    beside: dict[str, common.Row] = {}
    for together in [[side] for side in sides] if args.apart else [sides]:
      workers = {side: Worker(side, args.tuned, caches[side]) for side in together}
      common.take_turns({side: worker.step for side, worker in workers.items()}, args.rounds)
      for side, worker in workers.items():
        taken[side], beside[side] = [step["wall_s"] for step in worker.steps[1:]], worker.close()
  return [{**row, **beside[row["side"]]} for row in common.rows_of(args.config, taken)]


def parse(argv: list[str] | None = None) -> argparse.Namespace:
  parser = common.parser(__doc__)
  parser.add_argument("--config", default="supervised_la", help="name of a file in configs/; torch_METHOD.py is its peer")
  parser.add_argument("--phase", help="of the method; default: its last")
  parser.add_argument("--shape", type=common.sides_of, help="of a crop")
  parser.add_argument("--batch", type=int, help="images of every kind that the configuration has")
  parser.add_argument("--width", type=int)
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of both sides")
  parser.add_argument("--remat", action="store_true", help="ours keeps convolutions alone for the gradient")
  parser.add_argument("--peer", default="torch", help="torch, none, or the folder of another checkout")
  parser.add_argument("--tuned", action="store_true", help="malloc as `python -m ssl_jax.main` sets it, on both sides")
  parser.add_argument("--cached", action="store_true", help="ours loads its program, as every start of a run but the first does")
  parser.add_argument("--touched", type=int, default=0, help="GiB that each side has touched before its first step")
  parser.add_argument("--apart", action="store_true", help="one side after the other, where both do not fit into memory")
  parser.add_argument("--worker", choices=("ours", "torch"), help=argparse.SUPPRESS)
  return parser.parse_args(argv)


def main() -> None:
  args = parse()
  if args.worker:
    work(args)
    return
  rows = compare(args)
  cfg = configured(args)
  sizes = " + ".join(str(n) for n in (cfg.train.batch_labelled, cfg.train.batch_unlabelled, cfg.train.batch_synthetic) if n)
  shape, malloc = "x".join(map(str, cfg.data.patch)), "tuned malloc" if args.tuned else "default malloc"
  switches = [switch for switch in ("remat", "cached", "touched", "apart") if getattr(args, switch)]
  notes = ", ".join((f"width {cfg.network.width}", cfg.network.dtype, malloc, *switches))
  common.report(f"{args.config}: batch {sizes} of {shape}, {notes}, {args.rounds} rounds", rows, args.json)


if __name__ == "__main__":
  main()
