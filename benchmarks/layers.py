"""Every layer of a network, forward and gradient, against what this machine could do at best; then the whole network.

  python -m benchmarks.layers [--config=supervised_la] [--shape=112,112,80] [--batch=1] [--rounds=5] [--json=PATH]

The roof of a layer is the larger of two times: its products at the rate of a large matrix product, and its arguments and results at the
rate of a copy; both rates are measured first. *of the peak* is the roof by the time taken. More than 1 is possible: Winograd's algorithm
needs fewer products than counted, and small arrays stay in the cache. The gradient counts twice the forward pass.
"""

import collections
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks import common
from ssl_jax import compiler
from ssl_jax.networks import blocks
from ssl_jax.networks.factory import Networks
from ssl_jax.ops.segmentation import ce_dice

MATRIX = 4096
LAYERS = (blocks.Conv, blocks.Down, blocks.Up, blocks.BatchNorm)


def keys() -> dict[str, jax.Array]:
  """Drawn when asked for, as a first key starts JAX, which then heeds no more flags."""
  return {"params": jax.random.key(0), "dropout": jax.random.key(1)}


class Rates(NamedTuple):
  """A second, of a large product and of a copy."""

  flop: float
  byte: float


class Call(NamedTuple):
  """A layer as a network calls it: the module without its place in the network, the method, and arguments with arrays as their specs."""

  module: nn.Module
  method: str
  arguments: tuple[Any, ...]


def calls_of(network: nn.Module, image: jax.Array) -> collections.Counter[Call]:
  """How often the network makes each call; what a layer calls in turn is part of it."""
  found: collections.Counter[Call] = collections.Counter()
  inside = False

  def listen(call: Callable[..., Any], given: tuple[Any, ...], keywords: dict[str, Any], context: Any) -> Any:
    nonlocal inside
    if inside or not isinstance(context.module, LAYERS) or context.method_name == "setup":
      return call(*given, **keywords)
    specs = tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) if hasattr(a, "shape") else a for a in given)
    found[Call(context.module.clone(parent=None, name=None), context.method_name, specs)] += 1
    inside = True
    try:
      return call(*given, **keywords)
    finally:
      inside = False

  with nn.intercept_methods(listen):
    jax.eval_shape(functools.partial(network.init, train=True), keys(), image)
  return found


def timed(rounds: int, what: str, side: str, function: Callable[..., Any], *operands: Any) -> common.Row:
  compiled = jax.jit(function, compiler_options=compiler.for_convolutions())
  return common.rows_of(what, common.take_turns({side: lambda: jax.block_until_ready(compiled(*operands))}, rounds))[0]


def rates(rounds: int, dtype: Any) -> tuple[Rates, list[common.Row]]:
  """What this machine does at best, of a few repetitions."""
  matrix, array = jnp.ones((MATRIX, MATRIX), dtype), jnp.ones((MATRIX, MATRIX))
  product = timed(rounds, "rate", "matrix product", functools.partial(jnp.matmul, preferred_element_type=jnp.float32), matrix, matrix)
  copy = timed(rounds, "rate", "copy", lambda a: a + 1, array)
  found = Rates(2 * MATRIX**3 / product["fastest_s"], 2 * array.nbytes / copy["fastest_s"])
  return found, [{**product, "gflop_per_s": found.flop / 1e9}, {**copy, "gb_per_s": found.byte / 1e9}]


def measured(rounds: int, best: Rates, call: Call, count: int) -> tuple[common.Row, common.Row]:
  """The rows of a layer: forward, gradient."""
  arrays = [jax.random.normal(jax.random.key(i), a.shape, a.dtype) for i, a in enumerate(call.arguments) if hasattr(a, "shape")]
  rest = [a for a in call.arguments if not hasattr(a, "shape")]
  own = jax.jit(lambda *given: call.module.init(keys(), *given, *rest, method=call.method))(*arrays)
  params, stats = own["params"], {key: value for key, value in own.items() if key != "params"}

  def forward(params: Any, *given: jax.Array) -> Any:
    return call.module.apply({"params": params, **stats}, *given, *rest, method=call.method, mutable=list(stats))[0]

  def gradient(cotangent: Any, params: Any, *given: jax.Array) -> Any:
    return jax.vjp(forward, params, *given)[1](cotangent)

  out = jax.eval_shape(forward, params, *arrays)
  cotangent = jax.tree.map(lambda a: jnp.ones(a.shape, a.dtype), out)
  first, result = arrays[0], jax.tree.leaves(out)[0]
  kernels = sum(p.size for p in jax.tree.leaves(params) if p.ndim > 1)
  flops = 2 * kernels * min(math.prod(first.shape[:-1]), math.prod(result.shape[:-1]))
  moved = sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves((arrays, out)))
  roof = max(flops / best.flop, moved / best.byte)
  side = f"{count} x {type(call.module).__name__} {first.shape[-1]} to {result.shape[-1]}, {'x'.join(map(str, first.shape[1:-1]))}"

  def row(what: str, times: int, function: Callable[..., Any], *operands: Any) -> common.Row:
    found = timed(rounds, what, side, function, *operands)
    return {**found, "gflop_per_s": times * flops / found["median_s"] / 1e9, "of_peak": times * roof / found["median_s"]}

  return row("forward", 1, forward, params, *arrays), row("gradient", 2, gradient, cotangent, params, *arrays)


def whole(rounds: int, network: nn.Module, image: jax.Array) -> tuple[common.Row, common.Row]:
  """The rows of the network: forward with its loss; with the gradient as well."""
  variables = jax.jit(functools.partial(network.init, train=True))(keys(), image)
  label = (image[..., 0] > 0).astype(jnp.int32)

  def loss(params: Any) -> jax.Array:
    given = {**variables, "params": params}
    out, _ = network.apply(given, image, train=True, mutable=["batch_stats"], rngs={"dropout": keys()["dropout"]})
    return ce_dice(out.logits, label)

  of = functools.partial(timed, rounds, "network")
  return of("forward, loss", loss, variables["params"]), of("forward, loss, gradient", jax.value_and_grad(loss), variables["params"])


def main() -> None:
  parser = common.parser(__doc__)
  parser.add_argument("--config", default="supervised_la", help="name of a file in configs/")
  parser.add_argument("--shape", type=common.sides_of, help="of a crop")
  parser.add_argument("--batch", type=int, default=1)
  parser.add_argument("--width", type=int)
  parser.add_argument("--dtype", choices=("float32", "bfloat16"))
  args = parser.parse_args()
  compiler.vectorize_channels()
  cfg = common.configuration(args.config, patch=args.shape, width=args.width, dtype=args.dtype)
  network = Networks(cfg.network, 2).backbone()
  image = jax.random.normal(jax.random.key(0), (args.batch, *cfg.data.patch, 1))
  best, rows = rates(args.rounds, jnp.dtype(cfg.network.dtype))
  total, roof = [0.0, 0.0], [0.0, 0.0]  # forward, gradient
  for call, count in calls_of(network, image).items():
    for i, row in enumerate(measured(args.rounds, best, call, count)):
      rows.append(row)
      total[i] += count * row["median_s"]
      roof[i] += count * row["median_s"] * row["of_peak"]
  forward, both = whole(args.rounds, network, image)
  rows += [
    {"what": "all layers", "side": "forward", "median_s": total[0], "of_peak": roof[0] / total[0]},
    {"what": "all layers", "side": "gradient", "median_s": total[1], "of_peak": roof[1] / total[1]},
    {**forward, "of_peak": roof[0] / forward["median_s"]},
    {**both, "of_peak": sum(roof) / both["median_s"]},
  ]
  shape = "x".join(map(str, image.shape[:-1]))
  common.report(f"{args.config}: {cfg.network.name} of width {cfg.network.width}, {shape}, {cfg.network.dtype}", rows, args.json)


if __name__ == "__main__":
  main()
