"""Time of one training step on this machine, ours beside PyTorch's, alternating in one run.

  python benchmarks/step_time.py --shape=112,112,80 --batch=1 --width=16 --peer=torch [--tuned] [--json=PATH]

Each side lives in a process of its own, and the sides take turns, so that whatever else the machine does hits both. `--tuned` runs both
with the settings of malloc that `python -m ssl_jax.main` makes; without it both run with glibc's defaults. `--peer=FOLDER` compares with
another checkout of this project, such as the commit before a change. Peak memory is the process's on a CPU, the device's on a GPU.
PyTorch's bfloat16 is its autocast.
"""

import argparse
import datetime
import importlib
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
Step = Callable[[], float]
Peak = Callable[[], float]
Row = dict[str, Any]


def our_step(args: argparse.Namespace) -> tuple[Step, Peak]:
  sys.path.insert(0, str(ROOT))
  import jax
  import numpy as np

  from ssl_jax import methods
  from ssl_jax.core import optim
  from ssl_jax.core.step import order_for_memory
  from ssl_jax.networks.factory import Networks
  from ssl_jax.types import NetworkConfig, OptimConfig, Task

  if args.remat:
    order_for_memory()
  module = methods.load(args.method)
  cfg = NetworkConfig(width=args.width, dtype=args.dtype, remat=args.remat)
  method = module.build(module.Options(), Networks(cfg, num_classes=2), optim.sgd(OptimConfig(), num_steps=6000), Task(8, 6000))
  rng = np.random.default_rng(0)
  half = lambda: {
    "image": rng.standard_normal((args.batch, *args.shape, 1), np.float32),
    "index": np.arange(args.batch, dtype=np.int32),
  }
  labelled = half()
  batch = jax.device_put({"labelled": {**labelled, "label": (labelled["image"][..., 0] > 0).astype(np.int32)}, "unlabelled": half()})
  key = jax.random.key(0)
  state = jax.jit(method.init)(key, batch)
  step_fn = jax.jit(method.steps[args.phase or next(iter(method.steps))], donate_argnums=0)

  def step() -> float:
    nonlocal state
    state, metrics = step_fn(state, batch, key)
    return float(metrics["loss"])

  device = jax.devices()[0]
  return step, resident_gib if device.platform == "cpu" else lambda: device.memory_stats()["peak_bytes_in_use"] / 2**30


def torch_step(args: argparse.Namespace) -> tuple[Step, Peak]:
  import torch

  name = f"torch_{args.method}"
  module = importlib.import_module(name if (Path(__file__).parent / f"{name}.py").is_file() else "torch_vnet")
  device = "cuda" if torch.cuda.is_available() else "cpu"
  step = module.training_step(args.shape, args.batch, args.width, device, getattr(torch, args.dtype))
  return step, resident_gib if device == "cpu" else lambda: torch.cuda.max_memory_allocated() / 2**30


def resident_gib() -> float:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def work(args: argparse.Namespace) -> None:
  """Runs one side: a step for every line on stdin, its facts on stdout."""
  step, peak_gib = {"ours": our_step, "torch": torch_step}[args.worker](args)
  print("ready", flush=True)
  for _ in sys.stdin:
    wall, cpu = time.perf_counter(), time.process_time()
    loss = step()
    facts = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu, "peak_gib": peak_gib(), "loss": loss}
    print(json.dumps(facts), flush=True)


def malloc(checkout: Path) -> str:
  """The setting that a checkout's `main` makes; importing it would start JAX."""
  return re.findall(r'^MALLOC = "(.*)"', (checkout / "ssl_jax" / "main.py").read_text(), re.M)[0]


class Worker:
  """The process of a side: "ours", "torch", or the folder of another checkout."""

  def __init__(self, side: str, tuned: bool, cache: str | None = None):
    checkout = ROOT if side in ("ours", "torch") else Path(side).resolve()
    env = {**os.environ, "GLIBC_TUNABLES": malloc(checkout) if tuned else "", "PYTHONPATH": str(checkout)}
    env.pop("JAX_COMPILATION_CACHE_DIR", None)  # the first step shall compile
    if cache:
      env["JAX_COMPILATION_CACHE_DIR"] = cache
    worker = f"--worker={'torch' if side == 'torch' else 'ours'}"
    command = [sys.executable, str(checkout / "benchmarks" / "step_time.py"), *sys.argv[1:], worker]
    self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    self._read()
    self.side, self.first = side, self._step()
    self.steps: list[Row] = []

  def _read(self) -> str:
    line = self.process.stdout.readline()
    if not line:
      sys.exit(f"error: a worker ended with status {self.process.wait()}")
    return line

  def _step(self) -> Row:
    self.process.stdin.write("step\n")
    self.process.stdin.flush()
    return json.loads(self._read())

  def step(self) -> None:
    self.steps.append(self._step())

  def close(self) -> Row:
    self.process.stdin.close()
    self.process.wait()
    wall = statistics.median(s["wall_s"] for s in self.steps)
    return {
      "side": self.side,
      "median_s": wall,
      "fastest_s": min(s["wall_s"] for s in self.steps),
      "cpu_s": statistics.median(s["cpu_s"] for s in self.steps),
      "compile_s": max(self.first["wall_s"] - wall, 0.0),
      "peak_gib": max(s["peak_gib"] for s in self.steps),
    }


def compare(args: argparse.Namespace) -> list[Row]:
  """Runs both sides in turns; `ratio` is the median over rounds of our time by the peer's in the same round."""
  sides = [side for side in ("ours", args.peer) if side != "none"]
  with tempfile.TemporaryDirectory() as folder:
    cache = folder if args.cached else None
    if cache:
      for side in set(sides) - {"torch"}:
        Worker(side, args.tuned, cache).process.kill()  # compiles and leaves the program behind
    workers = [Worker(side, args.tuned, cache) for side in sides]
  for turn in range(args.rounds + 1):
    for worker in workers:
      worker.step()
    if turn == 0:  # not counted: allocators and thread pools settle
      for worker in workers:
        worker.steps.clear()
  ratio = statistics.median(a["wall_s"] / b["wall_s"] for a, b in zip(workers[0].steps, workers[-1].steps, strict=True))
  return [{**worker.close(), "ratio": ratio if worker is workers[0] else 1.0} for worker in workers]


def table(rows: list[Row]) -> str:
  head = "| | median s | fastest s | ratio | CPU s | compile s | peak GiB |\n|---|---|---|---|---|---|---|"
  line = "| {side} | {median_s:.3f} | {fastest_s:.3f} | {ratio:.2f} | {cpu_s:.2f} | {compile_s:.1f} | {peak_gib:.2f} |"
  return "\n".join([head, *(line.format(**row) for row in rows)])


def machine() -> Row:
  """When and where: date, processor, versions."""
  models = re.findall(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.M) if sys.platform == "linux" else []
  packages = {d.name: d.version for d in metadata.distributions() if d.name in ("jax", "jaxlib", "flax", "torch", "numpy")}
  return {
    "date": datetime.date.today().isoformat(),
    "platform": platform.platform(),
    "cpu": models[0] if models else platform.processor(),
    "versions": {"python": platform.python_version(), **dict(sorted(packages.items()))},
  }


def parse(argv: list[str] | None = None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    "--method", default="supervised", help="ours; PyTorch's step is the supervised one unless benchmarks/torch_METHOD.py exists"
  )
  parser.add_argument("--phase", help="of the method; default: its first")
  parser.add_argument("--shape", default="112,112,80", type=lambda s: tuple(map(int, s.split(","))))
  parser.add_argument("--batch", default=1, type=int, help="labelled images, and as many unlabelled")
  parser.add_argument("--width", default=16, type=int)
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of both sides")
  parser.add_argument("--remat", action="store_true", help="ours keeps convolutions alone for the gradient")
  parser.add_argument("--peer", default="torch", help="torch, none, or the folder of another checkout")
  parser.add_argument("--rounds", default=5, type=int)
  parser.add_argument("--tuned", action="store_true", help="malloc as `python -m ssl_jax.main` sets it, on both sides")
  parser.add_argument("--cached", action="store_true", help="ours loads its program, as every start of a run but the first does")
  parser.add_argument("--json", type=Path)
  parser.add_argument("--worker", choices=("ours", "torch"), help=argparse.SUPPRESS)
  return parser.parse_args(argv)


def main() -> None:
  args = parse()
  if args.worker:
    work(args)
    return
  rows = compare(args)
  shape, malloc = "x".join(map(str, (args.batch, *args.shape))), "tuned malloc" if args.tuned else "default malloc"
  malloc += ", compiled before" if args.cached else ""
  setting = f"{args.method}, {shape}, n = {args.width}, {args.dtype}, {malloc}, {os.cpu_count()} cores, {args.rounds} rounds"
  print(f"{setting}\n\n{table(rows)}")
  if args.json:
    args.json.write_text(json.dumps({"setting": setting, **machine(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
  main()
