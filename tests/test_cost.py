"""What a training step costs at the published shapes by XLA's count, against what is recorded: counts, unlike times, do not vary.

After a change that is meant to change them: `python -m tests.test_cost` records them anew.
"""

import importlib
import json
from importlib import metadata
from pathlib import Path

import jax
import pytest

from ssl_jax import config
from ssl_jax.ops import order
from ssl_jax.types import Config
from tests.test_contract import build, spec

RECORD = Path(__file__).parent / "data" / "step_cost.json"
CONFIGS = ("supervised_la", "caml_la", "cml_la", "crln_la", "cmems_acdc")
TOLERANCE = 0.02


def lowered_steps(name):
  """Yields the name and the program of every phase, for the platform at hand; all samples at once, as XLA counts a loop's body once."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(order, "_LARGE", 1 << 62)
    jax.clear_caches()
    yield from _lowered_steps(name)
  jax.clear_caches()


def _lowered_steps(name):
  cfg = config.parse(Config, importlib.import_module(f"configs.{name}").get_config().to_dict())
  method, batch, key = build(cfg, num_labelled=8), spec(cfg), jax.eval_shape(lambda: jax.random.key(0))
  state = jax.eval_shape(method.init, key, batch)
  for phase, _ in cfg.train.phases:
    yield phase, jax.jit(method.steps[phase]).lower(state, batch, key)


def cost(lowered):
  """Floating-point operations and bytes that all operations read and write, in 10⁹, before any are fused."""
  found = lowered.cost_analysis()
  return {"gflop": round(found["flops"] / 1e9, 1), "gbyte": round(found["bytes accessed"] / 1e9, 1)}


@pytest.mark.skipif(not metadata.version("jax").startswith("0.10."), reason="recorded with JAX 0.10")
@pytest.mark.parametrize("name", CONFIGS)
def test_a_step_costs_what_is_recorded_and_never_calls_the_host(name):
  recorded = json.loads(RECORD.read_text())[name]
  for phase, lowered in lowered_steps(name):
    now = cost(lowered)
    for unit, before in recorded[phase].items():
      assert abs(now[unit] / before - 1) < TOLERANCE, (
        f"{name}, {phase}: {now[unit]} {unit} instead of {before}; if that is meant, `python -m tests.test_cost` records it"
      )
    program = lowered.as_text()
    assert "callback" not in program and "infeed" not in program and "outfeed" not in program


if __name__ == "__main__":
  RECORD.write_text(json.dumps({name: {phase: cost(step) for phase, step in lowered_steps(name)} for name in CONFIGS}, indent=2) + "\n")
