"""Time of one training step on this machine, ours beside PyTorch's, alternating in one run.

  python benchmarks/step_time.py --shape=112,112,80 --batch=1 --width=16 --peer=torch [--tuned] [--json=PATH]

Each side lives in a process of its own with the same environment, and the sides take turns, so that whatever else the machine does hits both. `--tuned` runs
both with huge pages for malloc, as `python -m ssl_jax.main` does; without it both run with glibc's defaults.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def our_step(args: argparse.Namespace) -> Callable[[], float]:
  sys.path.insert(0, str(ROOT))
  import jax
  import numpy as np

  from ssl_jax import methods
  from ssl_jax.core import optim
  from ssl_jax.networks.factory import Networks
  from ssl_jax.types import NetworkConfig, OptimConfig

  module = methods.load(args.method)
  cfg = NetworkConfig(width=args.width, dtype=args.dtype)
  method = module.build(module.Options(), Networks(cfg, num_classes=2), optim.sgd(OptimConfig(), num_steps=6000))
  rng = np.random.default_rng(0)
  half = lambda: {
    "image": rng.standard_normal((args.batch, *args.shape, 1), np.float32),
    "index": np.arange(args.batch, dtype=np.int32),
  }
  label = rng.integers(0, 2, (args.batch, *args.shape), np.int32)
  batch = jax.device_put({"labelled": {**half(), "label": label}, "unlabelled": half()})
  key = jax.random.key(0)
  state = jax.jit(method.init)(key, batch)
  step_fn = jax.jit(method.steps[args.phase or next(iter(method.steps))], donate_argnums=0)

  def step() -> float:
    nonlocal state
    state, metrics = step_fn(state, batch, key)
    return float(metrics["loss"])

  return step


def torch_step(args: argparse.Namespace) -> Callable[[], float]:
  from torch_vnet import training_step

  return training_step(args.shape, args.batch, args.width)


def work(args: argparse.Namespace) -> None:
  """Runs one side: a step for every line on stdin."""
  build = {"ours": our_step, "torch": torch_step}[args.worker]
  begin = time.perf_counter()
  step = build(args)
  print("ready", flush=True)
  for _ in sys.stdin:
    begin = time.perf_counter()
    loss = step()
    seconds = time.perf_counter() - begin
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": seconds, "loss": loss, "peak_gib": peak_gib}), flush=True)


class Worker:
  def __init__(self, side: str, tuned: bool):
    env = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1" if tuned else ""}
    command = [sys.executable, __file__, *sys.argv[1:], f"--worker={side}"]
    self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    self._read()
    self.first = self.step()
    self.times: list[float] = []

  def _read(self) -> str:
    line = self.process.stdout.readline()
    if not line:
      sys.exit(f"error: a worker ended with status {self.process.wait()}")
    return line

  def step(self) -> dict[str, float]:
    self.process.stdin.write("step\n")
    self.process.stdin.flush()
    return json.loads(self._read())

  def close(self) -> None:
    self.process.stdin.close()
    self.process.wait()


def compare(args: argparse.Namespace) -> list[dict[str, float | str]]:
  sides = ["ours"] + ([] if args.peer == "none" else [args.peer])
  workers = {side: Worker(side, args.tuned) for side in sides}
  for side in sides:  # a second step: the first of PyTorch plans its convolutions, the first of JAX compiles
    workers[side].step()
  ratios = []
  for _ in range(args.rounds):
    last = {side: workers[side].step() for side in sides}
    for side in sides:
      workers[side].times.append(last[side]["seconds"])
    ratios.append(last["ours"]["seconds"] / last[sides[-1]]["seconds"])
  rows = []
  for side in sides:
    worker = workers[side]
    median = statistics.median(worker.times)
    rows.append(
      {
        "side": side,
        "median_s": median,
        "fastest_s": min(worker.times),
        "ratio": statistics.median(ratios) if side == "ours" else 1.0,
        "first_step_s": worker.first["seconds"],
        "peak_gib": last[side]["peak_gib"],
      }
    )
    worker.close()
  return rows


def table(rows: list[dict[str, float | str]]) -> str:
  lines = ["| | median s | fastest s | median ratio | compile s | peak RSS GiB |", "|---|---|---|---|---|---|"]
  for r in rows:
    compile_s = max(r["first_step_s"] - r["median_s"], 0.0)
    lines.append(f"| {r['side']} | {r['median_s']:.3f} | {r['fastest_s']:.3f} | {r['ratio']:.2f} | {compile_s:.1f} | {r['peak_gib']:.2f} |")
  return "\n".join(lines)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--method", default="supervised", help="ours; PyTorch's step is always the supervised one")
  parser.add_argument("--phase", help="of the method; default: its first")
  parser.add_argument("--shape", default="112,112,80", type=lambda s: tuple(map(int, s.split(","))))
  parser.add_argument("--batch", default=1, type=int, help="labelled images, and as many unlabelled")
  parser.add_argument("--width", default=16, type=int)
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="ours")
  parser.add_argument("--peer", default="torch", choices=("torch", "none"))
  parser.add_argument("--rounds", default=5, type=int)
  parser.add_argument("--tuned", action="store_true", help="huge pages for malloc on both sides")
  parser.add_argument("--json", type=Path)
  parser.add_argument("--worker", choices=("ours", "torch"), help=argparse.SUPPRESS)
  return parser.parse_args(argv)


def main() -> None:
  args = parse()
  if args.worker:
    work(args)
    return
  rows = compare(args)
  setting = f"{args.method}, {args.batch}x{'x'.join(map(str, args.shape))}, n = {args.width}, {args.dtype}, {'tuned' if args.tuned else 'default'} malloc"
  print(f"{setting}, {os.cpu_count()} cores, {args.rounds} rounds\n\n{table(rows)}")
  if args.json:
    facts = {"setting": setting, "machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version(), "rows": rows}
    args.json.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
  main()
