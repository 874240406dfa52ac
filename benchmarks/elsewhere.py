"""What XLA makes of a training step for an accelerator that is not here: the memory it needs, its kernels, what they move.

  python -m benchmarks.elsewhere [--target=h100|a100|v5e] [--configs=crln_la,caml_la] [--dtype=bfloat16] [--shape=64,64,32] [--json=PATH]

Needs the target's compiler beside JAX, of the same version, and neither driver nor device: `pip install jax-cuda12-plugin==VERSION
jax-cuda12-pjrt==VERSION` for GPUs, `pip install libtpu` for TPUs. What only the device can decide is left out: which of cuDNN's kernels a
convolution takes, and the memory that it then works in. So this says what a step asks for, not how long it takes; *least ms* is what its
kernels move at the bandwidth of the device's memory. For GPUs alone: kernels, what they read and write, each argument counted whole, and
what of it is turned around.
"""

import dataclasses
import os
import re
import time
from collections.abc import Iterator
from unittest import mock

import jax
import numpy as np
from jax.experimental import topologies

from benchmarks import common
from ssl_jax.experiment import open_experiment
from ssl_jax.train import compile_step

GPU = """
platform_name: "CUDA"
runtime_version {{ major: 12 minor: 9 }}
dnn_version_info {{ major: 9 minor: 12 }}
gpu_device_info {{
  cuda_compute_capability {{ major: {capability} }}
  core_count: {cores} fpus_per_core: {units} clock_rate_ghz: {ghz} memory_bandwidth: {bandwidth:.0f} device_memory_size: {memory:.0f}
  l2_cache_size: {cache} shared_memory_per_core: {shared} shared_memory_per_block: 49152 shared_memory_per_block_optin: {optional}
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048 registers_per_core_limit: 65536
  registers_per_block_limit: 65536 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
}}
"""


@dataclasses.dataclass(frozen=True)
class Target:
  """An accelerator: what JAX calls its platform, the compiler's description of it, and bytes a second of its memory."""

  backend: str
  topology: tuple[str, str]  # name, platform
  bandwidth: float
  options: dict[str, str] = dataclasses.field(default_factory=dict)


def gpu(name: str, bandwidth: float, **facts: float) -> Target:
  return Target("gpu", (name, "cuda"), bandwidth, {"topology": "1x1x1", "target_config": GPU.format(bandwidth=bandwidth, **facts)})


TARGETS = {
  "h100": gpu("h100", 3.35e12, capability=9, cores=132, units=128, ghz=1.98, memory=8.5e10, cache=52428800, shared=233472, optional=232448),
  "a100": gpu("a100", 2.04e12, capability=8, cores=108, units=64, ghz=1.41, memory=8.5e10, cache=41943040, shared=167936, optional=166912),
  "v5e": Target("tpu", ("v5e:2x2", "tpu"), 8.19e11),
}
NO_KERNEL = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while")
Instruction = tuple[str, str, str, str]  # name, shape, operation, the rest of its line
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")


def computations(program: str) -> tuple[str, dict[str, list[Instruction]]]:
  """The entry's name, and the instructions of every computation of a compiled program's text."""
  found: dict[str, list[Instruction]] = {}
  entry = inside = ""
  for line in program.splitlines():
    if begins := COMPUTATION.match(line):
      inside = begins[2]
      entry, found[inside] = inside if begins[1] else entry, []
    elif inside and (instruction := INSTRUCTION.match(line)):
      found[inside].append(instruction.groups())  # type: ignore[arg-type]
  return entry, found


def kernels(program: str) -> Iterator[tuple[int, int, bool]]:
  """Yields of each kernel how often it runs, the bytes it reads and writes, and whether it turns an array around; loops are followed."""
  entry, all_of = computations(program)

  def walk(name: str, times: int) -> Iterator[tuple[int, int, bool]]:
    shapes = {result: shape for result, shape, _, _ in all_of[name]}
    for _, shape, operation, rest in all_of[name]:
      called = re.search(r"(?:calls|body)=%([\w.\-]+)", rest)
      if operation == "while":
        trips = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', rest)
        yield from walk(called[1], times * int(trips[1]) if trips else times)  # type: ignore[index]
      elif operation not in NO_KERNEL:
        operands = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
        inner = {operation, *(of for _, _, of, _ in all_of.get(called[1], []))} if called else {operation}
        yield times, common.size_of(shape) + sum(common.size_of(shapes.get(operand, "")) for operand in operands), "transpose" in inner

  yield from walk(entry, 1)


def measured(name: str, target: Target, dtype: str, shape: tuple[int, ...] | None) -> common.Row:
  """The row of a configuration's last phase."""
  device = topologies.get_topology_desc(*target.topology, **target.options).devices[0]
  cfg = common.configuration(name, patch=shape, dtype=dtype)
  experiment = open_experiment(cfg)
  experiment.__dict__["mesh"] = jax.sharding.Mesh(np.asarray([device]), ("data",))
  begin = time.perf_counter()
  with mock.patch.object(jax, "default_backend", lambda: target.backend):  # for which everything is traced
    step, facts = compile_step(experiment, cfg.train.phases[-1][0])
  row = {"what": name, "needs_gib": facts["step_peak_bytes"] / 2**30, "first_s": time.perf_counter() - begin}
  if target.backend == "gpu":
    found = list(kernels(step.as_text()))  # type: ignore[attr-defined]
    moved = sum(times * size for times, size, _ in found)
    turned = sum(times * size for times, size, turns in found if turns)
    row |= {"kernels": sum(times for times, _, _ in found), "moved_gb": moved / 1e9, "turned_gb": turned / 1e9}
  else:
    moved = step.cost_analysis()["bytes accessed"]  # type: ignore[attr-defined]
    row["moved_gb"] = moved / 1e9
  return {**row, "least_s": moved / target.bandwidth}


def main() -> None:
  parser = common.parser(__doc__)
  parser.add_argument("--target", choices=tuple(TARGETS), default="h100")
  parser.add_argument("--configs", default="supervised_la,crln_la,caml_la,cml_la,cmems_acdc", help="names of files in configs/")
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
  parser.add_argument("--shape", type=common.sides_of, help="of a crop")
  args = parser.parse_args()
  # Kernels are otherwise chosen by running them. Without that choice some of Triton's products do not compile.
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false".strip()
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # or libtpu asks the cloud which TPU this is
  rows = []
  for name in args.configs.split(","):
    rows.append({**measured(name, TARGETS[args.target], args.dtype, args.shape), "side": args.target})
    print(common.table(rows[-1:]), flush=True)
  common.report(f"{args.target}, {args.dtype}", rows, args.json)


if __name__ == "__main__":
  main()
