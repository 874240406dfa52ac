"""One program on one or eight devices: statistics, banks and components see the global batch."""

import jax
import numpy as np
import optax
import pytest

from configs import common
from ssl_jax import methods
from ssl_jax.core import sharding
from ssl_jax.types import Task
from tests.methods.common import SMALL_OPTIONS, normal, slice_networks, small_networks

QUICK = ("crln", "caml")  # the two that draw from the whole batch; the others share what they are made of


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in methods.names()])
def test_eight_devices_take_the_same_step_as_one(name):
  module = methods.load(name)
  on_slices = common.learns_from_synthetic(name)
  networks = slice_networks() if on_slices else small_networks()
  method = module.build(module.Options(**SMALL_OPTIONS.get(name, {})), networks, optax.sgd(0.1), Task(8, 10))
  image = normal(16, 16, 16, *(() if on_slices else (16,)), 1)
  label = (image[:8, ..., 0] > 0).astype(np.int32)
  labelled = {"image": image[:8], "label": label, "index": np.arange(8, dtype=np.int32)}
  batch = {"labelled": labelled, "unlabelled": {"image": image[8:], "index": np.arange(8, dtype=np.int32)}}
  if on_slices:
    batch["synthetic"] = labelled
  state, key = jax.jit(method.init)(jax.random.key(0), batch), jax.random.key(1)
  phase = list(method.steps)[-1]
  found = []
  for count in (1, 8):
    mesh = sharding.data_mesh(count, count)
    assert mesh.size == count
    everywhere, split = sharding.replicated(mesh), sharding.over_data(mesh)
    step = jax.jit(method.steps[phase], in_shardings=(everywhere, split, everywhere), out_shardings=everywhere)
    found.append(jax.device_get(step(jax.device_put(state, everywhere), jax.device_put(batch, split), jax.device_put(key, everywhere))))
  (one, metrics_1), (eight, metrics_8) = found
  np.testing.assert_allclose(metrics_1["loss"], metrics_8["loss"], rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-3), one, eight)
