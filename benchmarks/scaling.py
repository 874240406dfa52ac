"""What dividing a step costs: the same global batch on 1, 2, 4 and 8 pretended CPU devices, and what the devices exchange.

  python -m benchmarks.scaling [--method=crln] [--width=8] [--patch=32] [--batch=8] [--rounds=5] [--bn-group=0]
                              [--convolutions=cpu|xla]

The devices share this machine's cores, so the arithmetic takes as long on eight as on one, and what a step takes longer is the price of
collectives and of smaller pieces. Exchanged bytes are counted in the compiled program. The CPU's kernel gradients walk through the slices
of all images one after the other and therefore gather them on every device; `--convolutions=xla` is what accelerators run.
"""

import argparse
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
# Short steps on pretended devices can otherwise wait for each other for ever: XLA starts independent collectives in any order.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_enable_concurrency_optimized_scheduler=false")

import re
import statistics
import time

import jax
import numpy as np
from jax import lax

from benchmarks.common import size_of
from configs import common
from ssl_jax import config, data
from ssl_jax.core import sharding
from ssl_jax.experiment import open_experiment, run_key
from ssl_jax.train import compile_step
from ssl_jax.types import Config

COLLECTIVE = re.compile(r"= (?P<shapes>.+?) (?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")


def exchanged(program: str) -> tuple[int, int]:
  """Returns the number of collectives in a compiled program's text and the bytes of their results."""
  found = [match["shapes"] for match in COLLECTIVE.finditer(program)]
  return len(found), sum(map(size_of, found))


def main() -> None:
  """Prints one row a number of devices."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  for name, default in (("--method", "crln"), ("--width", 8), ("--patch", 32), ("--batch", 8), ("--rounds", 5), ("--bn-group", 0)):
    parser.add_argument(name, type=type(default), default=default)
  parser.add_argument("--convolutions", choices=("cpu", "xla"), default="cpu")
  options = parser.parse_args()
  if options.convolutions == "xla":
    lax.platform_dependent = lambda *args, default, **platforms: default(*args)
  raw = common.base(options.method)
  raw.data.update(source="phantom", split="official", num_labelled=8, patch=(options.patch,) * 3)
  raw.network.update(width=options.width, bn_group=options.bn_group)
  raw.train.update(batch_labelled=options.batch, batch_unlabelled=options.batch)
  cfg = config.check(config.parse(Config, raw.to_dict()))
  print("| devices | s/step | against one | host s/step | collectives | MB exchanged |\n| ---: | ---: | ---: | ---: | ---: | ---: |")
  alone = 0.0
  for count in (1, 2, 4, 8):
    experiment = open_experiment(cfg)
    experiment.__dict__["mesh"] = jax.sharding.Mesh(np.asarray(jax.devices()[:count]), ("data",))
    mesh = experiment.mesh
    step, _ = compile_step(experiment, cfg.train.phases[0][0])
    number, size = exchanged(step.as_text())  # type: ignore[attr-defined]
    state = experiment.first_state()
    key = jax.device_put(run_key(cfg), sharding.replicated(mesh))
    sizes = {"batch_labelled": options.batch, "batch_unlabelled": options.batch}
    stream = data.batches(cfg.data, experiment.source, experiment.split, seed=0, start_step=0, num_steps=options.rounds + 2, **sizes)
    taken, host = [], []
    for batch in stream:
      begin = time.perf_counter()
      placed = sharding.to_devices(batch, sharding.over_data(mesh))
      state, metrics = step(state, placed, key)
      host.append(time.perf_counter() - begin)
      jax.block_until_ready((state, metrics))
      taken.append(time.perf_counter() - begin)
    seconds = statistics.median(taken[2:])
    alone = alone or seconds
    print(
      f"| {count} | {seconds:.3f} | {seconds / alone:.2f} | {statistics.median(host[2:]):.3f} | {number} | {size / 1e6:.1f} |", flush=True
    )


if __name__ == "__main__":
  main()
