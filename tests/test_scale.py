"""Switches for more devices and less memory: what they leave as it is, and what they change."""

import dataclasses
import gc
import os
import subprocess
import sys
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssl_jax import compiler, networks
from ssl_jax.core import optim, sharding
from ssl_jax.core.step import forward
from ssl_jax.ops.conv import conv3
from ssl_jax.ops.initial import init_module
from ssl_jax.types import InputError, NetworkConfig, OptimConfig
from tests.helpers import tiny_config

has_options = pytest.mark.skipif(not metadata.version("jaxlib").startswith(("0.10.", "0.11.")), reason="flags of jaxlib 0.10 and 0.11")
IMAGE = np.random.default_rng(0).normal(size=(4, 32, 16, 1)).astype(np.float32)


def passes(image, views=1, **changes):
  """Output, running averages and gradients of a network in training mode, dropout off."""
  network = networks.build(NetworkConfig(width=2, **changes), num_classes=2)
  variables = jax.jit(lambda key: init_module(network, key, image[:1], train=False))(jax.random.key(0))

  def loss(params):
    out, stats = forward(network, params, variables["batch_stats"], image, key=None, views=views)
    return jnp.mean(jnp.square(out.logits)), (out.logits, stats)

  (_, found), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
  return *found, gradient


def test_recomputing_changes_neither_parameters_nor_results():
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
  jax.tree.map(close, passes(IMAGE), passes(IMAGE, remat=True))


def test_recomputing_keeps_less():
  def kept(remat):
    network = networks.build(NetworkConfig(width=2, remat=remat), num_classes=2)
    variables = jax.eval_shape(lambda: network.init(jax.random.key(0), IMAGE[:1], train=False))

    def saved(params, stats):
      return jax.vjp(lambda params: forward(network, params, stats, IMAGE, key=None)[0].logits, params)[1]

    residuals = jax.eval_shape(saved, variables["params"], variables["batch_stats"])
    return sum(leaf.size for leaf in jax.tree.leaves(residuals))

  assert kept(True) < 0.8 * kept(False)


@has_options
def test_ordering_for_memory_keeps_other_flags_and_a_choice_already_made(monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "--other=1")
  compiler.order_for_memory()
  assert os.environ["XLA_FLAGS"] == "--other=1 --xla_cpu_enable_concurrency_optimized_scheduler=false"
  monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_concurrency_optimized_scheduler=true")
  compiler.order_for_memory()
  assert os.environ["XLA_FLAGS"] == "--xla_cpu_enable_concurrency_optimized_scheduler=true"


@has_options
def test_short_loops_stay_where_jax_can_only_find_cpus(monkeypatch):
  def flags(platforms, plugins=()):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(compiler.metadata, "entry_points", lambda group: plugins)
    monkeypatch.setattr(compiler.util, "find_spec", lambda name: None)
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", platforms)
    compiler.vectorize_channels()
    jax.config.update("jax_platforms", before)
    return os.environ["XLA_FLAGS"]

  assert flags("cpu") == flags("cpu", plugins=["cuda"]) == flags("") == "--xla_backend_extra_options=-unroll-full-max-count=2"
  assert flags("", plugins=["cuda"]) == flags("cuda,cpu") == ""


@pytest.mark.parametrize(
  "module", ["ssl_jax.main", "ssl_jax.sweep", "benchmarks.layers", "benchmarks.step_time", "benchmarks.sliding_window"]
)
def test_importing_a_command_does_not_start_jax_which_would_heed_no_more_flags(module):
  """A started JAX refuses another number of devices."""
  script = f"import {module}, jax; jax.config.update('jax_num_cpu_devices', 3); assert jax.device_count() == 3"
  ran = subprocess.run([sys.executable, "-c", script], env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)
  assert ran.returncode == 0, ran.stderr


@has_options
def test_convolutions_are_not_library_calls_on_cpus(monkeypatch):
  images, kernel = jnp.ones((4, 32, 32, 32)), jnp.ones((3, 3, 32, 32))
  calls = lambda options: jax.jit(conv3).lower(images, kernel).compile(options).as_text().count("ynn")
  assert calls(compiler.for_convolutions()) == 0 < calls(None)
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  assert compiler.for_convolutions() is None and compiler.for_one_run() is None


def test_a_gpu_convolves_with_channels_last_where_it_can_and_the_user_has_not_chosen(monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  monkeypatch.setattr(compiler, "_convolves_channels_last", lambda: True)
  monkeypatch.setenv("XLA_FLAGS", "")
  assert compiler.for_convolutions() == {"xla_gpu_force_conv_nhwc": True}
  monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_force_conv_nchw=true")
  assert compiler.for_convolutions() is None
  monkeypatch.setenv("XLA_FLAGS", "")
  monkeypatch.setattr(compiler, "_convolves_channels_last", lambda: False)
  assert compiler.for_convolutions() is None and compiler.for_one_run() is None


@pytest.mark.parametrize(("option", "knows"), [("xla_gpu_force_conv_nhwc", True), ("no_such_option", False)])
def test_whether_channels_may_come_last_is_asked_of_the_compiler(option, knows, monkeypatch):
  monkeypatch.setattr(compiler, "_CHANNELS_LAST", {option: True})
  assert compiler._convolves_channels_last.__wrapped__() is knows


def test_the_collector_rests_while_a_step_is_traced_and_is_left_as_it_was():
  with compiler.tracing():
    assert not gc.isenabled()
  assert gc.isenabled()
  with pytest.raises(ZeroDivisionError), compiler.tracing():
    _ = 1 // 0
  assert gc.isenabled()
  gc.disable()
  try:
    with compiler.tracing():
      pass
    assert not gc.isenabled()
  finally:
    gc.enable()


def test_what_a_network_has_traced_its_gradient_finds():
  traced = []

  @jax.jit
  def inner(x):
    traced.append(x)
    return jnp.sin(x)

  outer = jax.custom_vjp(inner)
  outer.defvjp(lambda x: (inner(x), x), lambda x, grad: (grad * inner(x),))
  with compiler.tracing():
    jax.eval_shape(jax.grad(jax.jit(outer)), 1.0)
  assert len(traced) == 1


def test_groups_have_batch_statistics_of_their_own():
  name = "unet2d"
  grouped, stats, _ = passes(IMAGE, name=name, bn_group=2)
  first, first_stats, _ = passes(IMAGE[:2], name=name)
  second = passes(IMAGE[2:], name=name)[0]
  np.testing.assert_allclose(grouped, np.concatenate([first, second]), atol=1e-4)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), stats, first_stats)
  assert not np.allclose(grouped, passes(IMAGE, name=name)[0], atol=1e-3)
  with_views = passes(IMAGE, 2, name=name, bn_group=2)[0]
  np.testing.assert_array_equal(with_views, grouped)


def test_groups_must_divide_what_passes_at_once():
  with pytest.raises(ValueError, match="config.network.bn_group: 3 does not divide the 4 images"):
    passes(IMAGE, bn_group=3)
  with pytest.raises(InputError, match="config.network.bn_group"):
    networks.build(NetworkConfig(bn_group=-1), num_classes=2)


def test_accumulating_updates_by_the_mean_gradient():
  cfg = OptimConfig(lr=0.1, momentum=0.9, weight_decay=0.01, schedule="poly")
  params, gradients = jnp.array([1.0, -2.0]), [jnp.array([0.5, 1.0]), jnp.array([1.5, -3.0])]
  optimizer = optim.build(dataclasses.replace(cfg, accumulate=2), 20)
  state, found = optimizer.init(params), params
  for k, gradient in enumerate(gradients * 2):
    updates, state = optimizer.update(gradient, state, found)
    assert bool(np.any(updates)) == (k % 2 == 1)
    found = optax.apply_updates(found, updates)
  plain, expected = optim.build(cfg, 10), params
  state = plain.init(params)
  for _ in range(2):
    updates, state = plain.update(sum(gradients) / 2, state, expected)
    expected = optax.apply_updates(expected, updates)
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  with pytest.raises(InputError, match="config.optim.accumulate"):
    optim.build(dataclasses.replace(cfg, accumulate=0), 20)


def test_a_divided_state_lies_once_on_all_devices_together():
  from ssl_jax.experiment import open_experiment

  experiment = open_experiment(tiny_config("mean_teacher"))
  mesh = sharding.data_mesh(8, 8)
  state = experiment.abstract_state
  split = sharding.of_state(mesh, state, True)
  size = lambda tree, at: sum(
    int(np.prod(place.shard_shape(leaf.shape))) for leaf, place in zip(jax.tree.leaves(tree), jax.tree.leaves(at), strict=True)
  )
  whole = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
  for part in ("opt", "teacher"):
    assert size(getattr(state, part), getattr(split, part)) < 0.3 * whole(getattr(state, part))  # width 2 leaves sides of 2 and 4 whole
  assert size(state.students, split.students) == whole(state.students)
  assert size(state.opt, sharding.of_state(mesh, state, False).opt) == whole(state.opt)
