"""A run small enough to train in a test."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from configs import common, own_data
from ssl_jax import config, methods
from ssl_jax.core.checkpoint import Checkpoints
from ssl_jax.experiment import open_experiment, record
from ssl_jax.types import Config

ROOT = Path(__file__).parents[1]
HANG_S = 900  # longer than anything takes on a slow machine; whatever takes longer hangs


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
  if common.learns_from_synthetic(method):
    _on_slices(cfg)
  cfg.data.update(data)
  return config.check(config.parse(Config, cfg.to_dict()))


def _on_slices(cfg) -> None:
  cfg.network.name = "unet2d"
  cfg.data.slices, cfg.data.view, cfg.data.patch = True, "none", (16, 16)
  cfg.data.num_labelled = 1
  cfg.data.synthesis.per_background = 1
  cfg.train.batch_synthetic = 2


def own_config(choice: str, root: Path) -> Config:
  """`configs/own_data.py` on the folder `root`, on crops or slices of 16 voxels a side."""
  raw = own_data.get_config(choice)
  raw.data.root = str(root)
  raw.data.downsample = 1
  raw.data.patch = (16,) * len(raw.data.patch)
  raw.data.synthesis.per_background = min(raw.data.synthesis.per_background, 1)
  for stream in ("labelled", "unlabelled", "synthetic"):
    raw.train[f"batch_{stream}"] = min(raw.train[f"batch_{stream}"], 2)
  raw.eval.stride = (8,) * len(raw.eval.stride)
  return config.check(config.parse(Config, raw.to_dict()))


def phases(method: str) -> tuple[str, ...]:
  """The names of a method's phases."""
  import optax

  from ssl_jax.networks.factory import Networks
  from ssl_jax.types import NetworkConfig, Task

  network = NetworkConfig(name="unet2d" if common.learns_from_synthetic(method) else "vnet", width=2)
  module = methods.load(method)
  return tuple(module.build(module.Options(), Networks(network, 2), optax.sgd(0.1), Task(2, 6)).steps)


def untrained_run(cfg: Config, folder: Path) -> Path:
  """Writes the folder of a run that has not made a step yet."""
  experiment = open_experiment(cfg)
  record(experiment, folder)
  checkpoints = Checkpoints(folder / "checkpoints")
  checkpoints.save(0, experiment.first_state())
  checkpoints.close()
  return folder


def refined(prob: np.ndarray, factor: int, shape: tuple[int, ...]) -> np.ndarray:
  """Values of blocks of `factor` voxels, interpolated linearly at the voxels along the axes that `shape` names."""
  for axis, side in enumerate(shape):
    at = (np.arange(side) - (factor - 1) / 2) / factor
    prob = np.apply_along_axis(lambda line, at=at: np.interp(at, np.arange(len(line)), line), axis, prob)
  return prob


def with_train(cfg: Config, **changes) -> Config:
  """Returns the configuration with keys of `train` replaced."""
  return dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, **changes))


def command(*arguments: str, env: dict[str, str] | None = None, **options) -> subprocess.CompletedProcess:
  """Runs `python -m ssl_jax.main` as a user would, on one device."""
  full = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", **(env or {})}
  return subprocess.run(
    [sys.executable, "-m", "ssl_jax.main", *arguments], cwd=ROOT, capture_output=True, text=True, env=full, timeout=HANG_S, **options
  )


class Forked:
  """Runs command lines for the price of one start, see `tests/forked.py`."""

  def __init__(self, *groups: list[dict[str, Any]], env: dict[str, str] | None = None):
    self._process = subprocess.Popen(
      [sys.executable, "-m", "tests.forked"],
      cwd=ROOT,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env={**os.environ, **(env or {})},
    )
    assert self._process.stdin
    self._process.stdin.write(json.dumps(groups))
    self._process.stdin.close()
    self._process.stdin = None

  def kill_last(self, number: int) -> None:
    """Sends a signal to the job that was started last."""
    found = subprocess.run(["ps", "--ppid", str(self._process.pid), "-o", "pid="], capture_output=True, text=True, check=True)
    os.kill(int(found.stdout.split()[-1]), number)

  def wait_for_lines(self, workdir: Path, count: int) -> None:
    """Waits until a run has written so many lines of metrics."""
    file = workdir / "metrics.jsonl"
    while not file.exists() or len(file.read_text().splitlines()) < count:
      assert self._process.poll() is None, self.finish()
      time.sleep(0.02)

  def finish(self, timeout: float = HANG_S) -> list[tuple[int, str]]:
    """Returns exit statuses and standard errors, in order."""
    return [(status, error) for status, error in json.loads(self._process.communicate(timeout=timeout)[0])]


def forked(*groups: list[dict[str, Any]], timeout: float = HANG_S, env: dict[str, str] | None = None) -> list[tuple[int, str]]:
  """Runs groups of command lines, one group after the other, to their ends; returns exit statuses and standard errors."""
  return Forked(*groups, env=env).finish(timeout)


def write_config(cfg: Config, file: Path) -> str:
  """Writes a configuration as a file and returns the flag that names it."""
  file.write_text(f"from ml_collections import ConfigDict\n\ndef get_config():\n  return ConfigDict({dataclasses.asdict(cfg)!r})\n")
  return f"--config={file}"


def write_msd(
  root: Path, cases: dict[str, tuple[int, ...]], channels: int = 1, classes: int = 2, spacing: tuple[float, ...] = (1.5, 1.5, 8.0)
) -> Path:
  """Writes random volumes with every class, `case -> sides`, as a folder of the Medical Segmentation Decathlon; classes are bright."""
  rng, affine = np.random.default_rng(0), np.diag([*spacing, *[1.0] * (4 - len(spacing))])
  for folder in ("imagesTr", "labelsTr"):
    (root / folder).mkdir(parents=True, exist_ok=True)
  for name, sides in cases.items():
    blocks = (3, 3, 2)[: len(sides)]
    label = ndimage.zoom(rng.integers(0, classes, blocks), np.array(sides) / blocks, order=0).astype(np.uint8)
    label[(slice(classes), *[0] * (len(sides) - 1))] = range(classes)
    image = label[..., None] + rng.normal(scale=0.3, size=(*sides, channels))
    image = image if channels > 1 or len(sides) == 3 else image[..., 0]
    nib.save(nib.Nifti1Image(image.astype(np.float32), affine), root / "imagesTr" / f"{name}.nii.gz")
    nib.save(nib.Nifti1Image(label, affine), root / "labelsTr" / f"{name}.nii.gz")
  names = ("background", "RV", "MYO", "LV")[:classes]
  description = {
    "channel_names": {str(c): f"c{c}" for c in range(channels)},
    "labels": {name: value for value, name in enumerate(names)},
    "numTraining": len(cases),
    "file_ending": ".nii.gz",
  }
  (root / "dataset.json").write_text(json.dumps(description))
  return root
