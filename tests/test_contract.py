"""What every method and every configuration file must keep."""

import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import common
from ssl_jax import config, data, methods
from ssl_jax.core import optim, sharding
from ssl_jax.experiment import open_experiment, with_synthetic
from ssl_jax.networks.factory import Networks
from ssl_jax.types import Config, Task
from tests.helpers import ROOT, own_config, tiny_config, with_train
from tests.methods.common import slice_networks, small_networks

CONFIGS = sorted(p.stem for p in Path(ROOT, "configs").glob("*.py") if p.stem not in ("common", "__init__"))
SHAPE_OF = lambda tree: jax.tree.map(lambda a: (a.shape, str(a.dtype)), tree)


def stand_ins(cfg, num_classes=2):
  """Whole networks take part in the tests of the loop."""
  return small_networks(num_classes) if len(cfg.data.patch) == 3 else slice_networks(num_classes)


def build(cfg, networks=None, num_labelled=2, optimizer=None):
  module = methods.load(cfg.method["name"])
  options = config.parse(module.Options, {k: v for k, v in cfg.method.items() if k != "name"})
  return module.build(options, networks or Networks(cfg.network, 2), optimizer or optim.build(cfg.optim, 10), Task(num_labelled, 10))


def spec(cfg, channels=1):
  half = lambda n: {
    "image": jax.ShapeDtypeStruct((n, *cfg.data.patch, channels), jnp.float32),
    "index": jax.ShapeDtypeStruct((n,), jnp.int32),
  }
  labelled = {**half(cfg.train.batch_labelled), "label": jax.ShapeDtypeStruct((cfg.train.batch_labelled, *cfg.data.patch), jnp.int32)}
  batch = {"labelled": labelled, "unlabelled": half(cfg.train.batch_unlabelled)}
  if cfg.train.batch_synthetic:
    label = jax.ShapeDtypeStruct((cfg.train.batch_synthetic, *cfg.data.patch), jnp.int32)
    batch["synthetic"] = {**half(cfg.train.batch_synthetic), "label": label}
  return batch


@pytest.mark.parametrize("name", CONFIGS)
def test_config_builds_and_its_steps_keep_the_state(name):
  raw = importlib.import_module(f"configs.{name}").get_config()
  cfg = config.check(config.parse(Config, raw.to_dict()))
  for group in (cfg.method, *cfg.compare.values()):
    run = config.parse(Config, {**raw.to_dict(), "method": dict(group)})
    method, batch = build(run), spec(run)
    state = jax.eval_shape(method.init, jax.random.key(0), batch)
    for phase, _ in run.train.phases:
      new, metrics = jax.eval_shape(method.steps[phase], state, batch, jax.random.key(0))
      assert SHAPE_OF(new) == SHAPE_OF(state)
      assert "loss" in metrics and all(m.shape == () for m in metrics.values())
    image = batch["labelled"]["image"]
    for predict in (method.predict, *method.predict_also.values()):
      assert jax.eval_shape(predict, state, image).shape == (*image.shape[:-1], 2)


@pytest.mark.parametrize("name", methods.names())
def test_two_steps_on_an_own_folder_are_finite_deterministic_learn_and_need_no_certain_number_of_devices(name, own_folder, tmp_path):
  """Two channels, three classes, cases without a label. Eight devices: statistics, banks and components see the whole batch."""
  cfg = own_config(name, own_folder)
  streams = [stream for stream in ("labelled", "unlabelled", "synthetic") if getattr(cfg.train, f"batch_{stream}")]
  sizes = {f"batch_{stream}": 8 for stream in streams}
  cfg = with_train(cfg, **sizes)
  experiment = with_synthetic(open_experiment(cfg), tmp_path, lambda *_: None)
  where = {"seed": 0, "start_step": 0, "num_steps": 2, "num_threads": 0, "synthetic": experiment.synthetic}
  batch, following = data.batches(cfg.data, experiment.source, experiment.split, **sizes, **where)
  networks, key = stand_ins(cfg, experiment.source.num_classes), jax.random.key(1)
  method = build(cfg, networks, len(experiment.split.labelled), optax.sgd(0.1))
  state = jax.jit(method.init)(jax.random.key(0), batch)
  for step in map(jax.jit, method.steps.values()):
    new, metrics = step(state, batch, key)
    again, _ = step(state, batch, key)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), new, again)))
    assert any(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), new.students, state.students)))
    second, metrics_of_second = step(new, following, key)
    assert all(np.isfinite(v) for v in (*metrics.values(), *metrics_of_second.values()))
    assert (int(new.step), int(second.step)) == (1, 2)
  mesh = sharding.data_mesh(8, 8)
  everywhere, split = sharding.replicated(mesh), sharding.over_data(mesh)
  new_8, metrics_8 = step(jax.device_put(state, everywhere), jax.device_put(batch, split), jax.device_put(key, everywhere))
  assert mesh.size == 8 and len(new_8.step.sharding.device_set) == 8
  np.testing.assert_allclose(metrics["loss"], metrics_8["loss"], rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-3), new, jax.device_get(new_8))
  probabilities = jax.jit(method.predict)(second, batch["labelled"]["image"])
  assert probabilities.shape[-1] == 3
  np.testing.assert_allclose(np.sum(probabilities, -1), 1.0, atol=1e-5)


@pytest.mark.parametrize("name", methods.names())
def test_no_gradient_reaches_the_teacher(name):
  cfg = tiny_config(name)
  method, batch = build(cfg, stand_ins(cfg)), jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), spec(cfg))
  if not jax.eval_shape(method.init, jax.random.key(0), batch).teacher:
    return
  state = jax.jit(method.init)(jax.random.key(0), batch)
  for step in method.steps.values():
    moved = lambda teacher: sum(
      jnp.sum(leaf) for leaf in jax.tree.leaves(step(dataclasses.replace(state, teacher=teacher), batch, jax.random.key(1))[0].students)
    )
    gradient = jax.jit(jax.grad(moved))(state.teacher)
    # the updated student may depend on the teacher through targets only, and targets carry no gradient
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_common_method_rejects_nothing_silently():
  with pytest.raises(ValueError, match="did you mean 'tau'"):
    group = common.method("crln")
    options = {**group.to_dict(), "taw": 0.5}
    options.pop("name")
    config.parse(methods.load("crln").Options, options, "config.method")


def test_importing_a_config_needs_no_data_and_starts_no_device():
  code = "import configs.crln_la as c; c.get_config(); import jax._src.xla_bridge as b; assert not b._backends"
  subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
