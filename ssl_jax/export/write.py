"""Writes a run's predictor as a folder that stands alone."""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.export  # not loaded by `import jax`
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from ssl_jax import data
from ssl_jax.experiment import Experiment, open_run, restore
from ssl_jax.export.model import DESCRIPTION, FORMAT, PROGRAM, WEIGHTS
from ssl_jax.types import Array, Config, InputError, TrainState

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
_DATA_KEYS = ("patch", "canonical", "spacing", "downsample", "normalise")
_EVAL_KEYS = ("stride", "window_batch", "window_weights", "flips")


def write_model(cfg: Config, workdir: Path, output: Path) -> Path:
  """Exports the predictor that the paper evaluates.

  Args:
    cfg: the run's configuration.
    workdir: the run's folder; its data need not be there.
    output: folder to make: weights, the program that applies them to patches, and how scans are prepared and covered with patches.

  Returns:
    `output`.

  Raises:
    InputError: there is no run, its scans were prepared in a way that cannot be repeated, or `output` is there already or cannot be made.
  """
  data.check_predictable(cfg.data)
  if cfg.eval.whole_volume:
    raise InputError("config.eval.whole_volume: an exported program takes patches; set it to False")
  if output.exists() and not (output.is_dir() and not any(output.iterdir())):
    raise InputError(f"--output: {output} is there already; name another folder")
  experiment = open_run(cfg, workdir)
  state = restore(experiment, workdir)
  program, weights = export_predict(experiment, state)
  description = {
    "format": FORMAT,
    "class_names": experiment.source.class_names,
    "channels": experiment.source.channels,
    "data": {key: getattr(cfg.data, key) for key in _DATA_KEYS},
    "eval": {key: getattr(cfg.eval, key) for key in _EVAL_KEYS},
    "network": dataclasses.asdict(cfg.network),
    "method": dict(cfg.method),
    "step": int(state.step),
    "select": cfg.eval.select,
    "versions": {package: importlib.metadata.version(package) for package in ("jax", "flax")},
    "platforms": program.platforms,
  }
  partial = output.with_name(f".partial_{output.name}")
  try:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    files = {WEIGHTS: safetensors.numpy.save(weights), PROGRAM: bytes(program.serialize())}
    for name, content in files.items():
      (partial / name).write_bytes(content)
    checksums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    (partial / DESCRIPTION).write_text(json.dumps({**description, "sha256": checksums}, indent=2) + "\n")
    os.replace(partial, output)
  except OSError as error:
    raise InputError(f"--output: {output} cannot be written ({error.strerror}); name another folder") from error
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  return output


def export_predict(experiment: Experiment, state: TrainState) -> tuple[jax.export.Exported, dict[str, np.ndarray]]:
  """Lowers `method.predict` for every platform, for patches in batches of any size.

  Returns:
    The program, `(weights, f32[B, *patch, channels]) -> f32[B, *patch, C]`, and the leaves of the state that it uses, by name.
  """
  paths, structure = jax.tree_util.tree_flatten_with_path(state)
  leaves = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in paths}
  (batch,) = jax.export.symbolic_shape("batch")
  image = jax.ShapeDtypeStruct((batch, *experiment.cfg.data.patch, experiment.source.channels), jnp.float32)

  def predict(weights: Mapping[str, Array], image: Array) -> Array:
    unused = lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)
    full = [weights[name] if name in weights else unused(leaf) for name, leaf in leaves.items()]
    return experiment.method.predict(jax.tree.unflatten(structure, full), image).astype(jnp.float32)

  spec = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in leaves.items()}
  traced = jax.make_jaxpr(predict)(spec, image).jaxpr
  read = {id(variable) for equation in traced.eqns for variable in equation.invars}
  used = [name for name, variable in zip(sorted(spec), traced.invars, strict=False) if id(variable) in read]  # JAX sorts a dict's keys
  program = jax.export.export(jax.jit(predict), platforms=PLATFORMS)({name: spec[name] for name in used}, image)
  return program, {name: np.asarray(leaves[name]) for name in used}
