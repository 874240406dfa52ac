"""A run small enough to train in a test."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

from configs import common
from ssl_jax import config, methods
from ssl_jax.types import Config

ROOT = Path(__file__).parents[1]


def tiny_config(method: str, **data) -> Config:
  """Two-channel-wide V-Net on 16³ crops of a few phantom scans, 6 steps."""
  cfg = common.base(method)
  cfg.data.source = "phantom"
  cfg.data.split = "official"
  cfg.data.num_labelled = 2
  cfg.data.patch = (16, 16, 16)
  cfg.data.phantom.shape = (24, 24, 16)
  cfg.data.phantom.num_train = 6
  cfg.data.phantom.num_test = 2
  cfg.network.width = 2
  cfg.train.phases = tuple((phase, 6) for phase in phases(method))
  cfg.train.log_every_steps = 2
  cfg.train.checkpoint_every_steps = 2
  cfg.eval.stride = (8, 8, 8)
  cfg.data.update(data)
  return config.check(config.parse(Config, cfg.to_dict()))


def phases(method: str) -> tuple[str, ...]:
  """The names of a method's phases."""
  import optax

  from ssl_jax.networks.factory import Networks
  from ssl_jax.types import NetworkConfig, Task

  module = methods.load(method)
  return tuple(module.build(module.Options(), Networks(NetworkConfig(width=2), 2), optax.sgd(0.1), Task(2, 6)).steps)


def with_train(cfg: Config, **changes) -> Config:
  """Returns the configuration with keys of `train` replaced."""
  return dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, **changes))


def command(*arguments: str, env: dict[str, str] | None = None, **options) -> subprocess.CompletedProcess:
  """Runs `python -m ssl_jax.main` as a user would, on one device."""
  full = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", **(env or {})}
  return subprocess.run(
    [sys.executable, "-m", "ssl_jax.main", *arguments], cwd=ROOT, capture_output=True, text=True, env=full, timeout=300, **options
  )
