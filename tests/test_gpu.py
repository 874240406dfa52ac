"""What only an accelerator can show: the same numbers as on a CPU, whose kernels are others, and steps in bfloat16.

JAX_PLATFORMS=cuda,cpu JAX_DISABLE_MOST_OPTIMIZATIONS=0 python -m pytest -m gpu
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from ssl_jax import methods
from ssl_jax.experiment import open_experiment, run_key
from ssl_jax.ops import conv, resize, upconv
from ssl_jax.ops.components import largest_component
from ssl_jax.train import compile_step
from tests.helpers import tiny_config

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(jax.default_backend() == "cpu", reason="needs an accelerator")]
TENSOR_FLOAT_32 = 2e-3  # of the largest value


def random(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.parametrize(
  ("layer", "kernel"),
  [
    (conv.conv3, (3, 3, 3, 16, 32)),
    (conv.conv_down2, (2, 2, 2, 16, 32)),
    (conv.conv_up2, (2, 2, 2, 16, 32)),
    (lambda x, k: upconv.upsample_conv3(x, k, resize.upsample_linear), (3, 3, 3, 16, 32)),
  ],
  ids=["conv3", "down2", "up2", "upsample_conv3"],
)
def test_convolutions_and_their_gradients_are_those_of_a_cpu(layer, kernel):
  image, kernel = random(2, 32, 32, 16, 16), random(*kernel, seed=1) / 20

  def both(image, kernel):
    out, pull = jax.vjp(layer, image, kernel)
    return out, pull(jnp.cos(out))

  results = [jax.jit(both)(*jax.device_put((image, kernel), device)) for device in (jax.devices()[0], jax.devices("cpu")[0])]
  for ours, reference in zip(*map(jax.tree.leaves, results), strict=True):
    np.testing.assert_allclose(ours, reference, atol=TENSOR_FLOAT_32 * np.abs(reference).max())


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
def test_the_largest_component_is_scipys(share):
  mask = random(112, 112, 80) > np.quantile(random(112, 112, 80), 1 - share)
  labels, _ = ndimage.label(mask, np.ones((3, 3, 3)))
  np.testing.assert_array_equal(largest_component(jnp.asarray(mask)[None])[0], labels == 1 + np.bincount(labels.ravel())[1:].argmax())


@pytest.mark.parametrize("name", methods.names())
def test_a_step_is_finite_and_its_loss_that_of_float32_in_bfloat16(name):
  """Targets of random networks sit on their thresholds, so the tolerance is wide; what it would find is a term that overflows or stalls."""
  losses = {}
  for dtype in ("float32", "bfloat16"):
    cfg = tiny_config(name)
    cfg = dataclasses.replace(cfg, network=dataclasses.replace(cfg.network, dtype=dtype, width=16))
    experiment = open_experiment(cfg)
    batch = jax.tree.map(lambda s: jnp.asarray(random(*s.shape) > 0, s.dtype), experiment.batch_spec)
    step, _ = compile_step(experiment, cfg.train.phases[-1][0])
    state, metrics = step(experiment.first_state(), batch, run_key(cfg))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get((state.students, metrics))))
    losses[dtype] = float(metrics["loss"])
  assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.1)
