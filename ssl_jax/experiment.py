"""Puts a run together from its configuration: data, networks, method, devices."""

import dataclasses
import functools
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax import compiler, config, data, methods
from ssl_jax.core import optim, sharding
from ssl_jax.core.checkpoint import Checkpoints
from ssl_jax.inference import SliceWise, SlidingWindow, WholeVolume, whole_scan
from ssl_jax.networks.factory import Networks
from ssl_jax.types import Config, InputError, Method, PyTree, Task, TrainState, read_json, shown, write_whole

_FREE_KEYS = ("eval", "compare")  # may change between the start of a run and its resumption
_FREE_TRAIN_KEYS = ("log_every_steps", "checkpoint_every_steps", "keep_checkpoints", "eval_every_steps", "shard_state", "hang_s")


@dataclasses.dataclass(frozen=True)
class _RecordedData:
  labelled: tuple[str, ...]
  unlabelled: tuple[str, ...] = ()
  evaluation: tuple[str, ...] = ()
  fingerprint: str = ""


@dataclasses.dataclass(frozen=True)
class _Recorded:
  """What `run.json` says that prediction needs."""

  channels: int
  class_names: tuple[str, ...]
  data: _RecordedData


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A run, ready to train or evaluate.

  Attributes:
    synthetic: images that the method made for training, with labels, see `data.batches`; `None` when it makes none.
    made_of: by its `repr` all that `method` was built from; `None` when that was no configuration.
  """

  cfg: Config
  source: data.Source
  split: data.Split
  method: Method
  synthetic: Sequence[tuple[np.ndarray, np.ndarray]] | None = None
  made_of: tuple[Any, ...] | None = None

  @functools.cached_property
  def mesh(self) -> jax.sharding.Mesh:
    """The devices that share the batch."""
    train = self.cfg.train
    return sharding.data_mesh(train.batch_labelled, train.batch_unlabelled, train.batch_synthetic)

  @property
  def state_sharding(self) -> PyTree:
    """Where every leaf of the state lies."""
    return sharding.of_state(self.mesh, self.abstract_state, self.cfg.train.shard_state)

  @property
  def num_steps(self) -> int:
    """Steps of all phases together."""
    return sum(steps for _, steps in self.cfg.train.phases)

  @property
  def select(self) -> Literal["last", "best"]:
    """The checkpoint to evaluate, what `published` stands for resolved."""
    return self.method.published_select if self.cfg.eval.select == "published" else self.cfg.eval.select

  @functools.cached_property
  def batch_spec(self) -> PyTree:
    """Shapes and dtypes of one global batch."""

    def half(size: int, with_label: bool) -> dict[str, jax.ShapeDtypeStruct]:
      arrays = {
        "image": jax.ShapeDtypeStruct((size, *self.cfg.data.patch, self.source.channels), jnp.float32),
        "index": jax.ShapeDtypeStruct((size,), jnp.int32),
      }
      return {**arrays, "label": jax.ShapeDtypeStruct((size, *self.cfg.data.patch), jnp.int32)} if with_label else arrays

    train = self.cfg.train
    spec = {"labelled": half(train.batch_labelled, True), "unlabelled": half(train.batch_unlabelled, False)}
    return {**spec, "synthetic": half(train.batch_synthetic, True)} if train.batch_synthetic else spec

  @functools.cached_property
  def predictors(self) -> dict[str, SlidingWindow | SliceWise | WholeVolume]:
    """Whole-scan predictors, called as `(state, image)`; the first is what the paper evaluates."""
    return self._on_whole_scans({"student": self.method.predict, **self.method.predict_also})

  @functools.cached_property
  def stage_predictors(self) -> dict[str, SlidingWindow | SliceWise | WholeVolume]:
    """Whole-scan predictors of the method's pseudo-labels, one a stage that it names; empty when it has none."""
    if self.method.pseudo_labels is None:
      return {}
    of = self.method.pseudo_labels
    stages: list[str] = []  # in the method's order, which a pytree forgets
    jax.eval_shape(lambda state, image: stages.extend(of(state, image)), self.abstract_state, self.batch_spec["unlabelled"]["image"])
    return self._on_whole_scans({stage: lambda state, image, stage=stage: of(state, image)[stage][0] for stage in stages})

  def _on_whole_scans(self, named: Mapping[str, Callable[..., Any]]) -> dict[str, SlidingWindow | SliceWise | WholeVolume]:
    return {name: whole_scan(predict, self.cfg.data.patch, self.cfg.eval) for name, predict in named.items()}

  @functools.cached_property
  def pseudo_labels(self) -> Callable[..., Any] | None:
    """The method's pseudo-labels, compiled once; `None` when it has none."""
    labels = self.method.pseudo_labels
    return jax.jit(labels, compiler_options=compiler.for_convolutions()) if labels else None

  def init(self, key: jax.Array) -> PyTree:
    """Returns the state before the first step; pure, for `jit` and `eval_shape`."""
    return self.method.init(key, self.batch_spec)

  def first_state(self) -> TrainState:
    """Returns the state before the first step, every device with its part."""
    key = np.asarray(jax.random.key_data(run_key(self.cfg)))  # an argument, so that runs that differ in their seed share a program
    init = lambda key: self._traced_once(jax.random.wrap_key_data(key))
    with compiler.tracing():
      return jax.jit(init, out_shardings=self.state_sharding, compiler_options=compiler.for_one_run())(key)

  @functools.cached_property
  def _traced_once(self) -> Callable[[jax.Array], PyTree]:
    return jax.jit(lambda key: self.init(key))  # jit hashes what it is given, and an experiment has no hash

  @functools.cached_property
  def abstract_state(self) -> PyTree:
    """Shapes and dtypes of the state.

    Raises:
      InputError: an option of the method or network that its file refuses while tracing.
    """
    try:
      with compiler.tracing():
        return jax.eval_shape(self._traced_once, jax.random.key(0))
    except (ValueError, TypeError, ArithmeticError) as error:
      raise _refused(error) from error


def _refused(error: Exception) -> InputError:
  """What a method or network raises for an option, in one line that names the key, or the groups that it may be in."""
  message = " ".join(str(error).split())
  return InputError(message if "config." in message else f"config.method, config.network: no such state can be made ({message[:500]})")


def open_experiment(cfg: Config) -> Experiment:
  """Opens the data and builds the method.

  Raises:
    InputError: whatever is wrong with configuration or data, before anything is compiled.
  """
  build = _builder(cfg)
  source = data.open_source(cfg.data)
  split = _split(cfg, source)
  data.check_patch(cfg.data, source, split)
  return build(source, split)


def open_run(cfg: Config, workdir: Path) -> Experiment:
  """Opens a run from its folder alone, without its data, to predict; its source has channels and classes but no cases.

  Raises:
    InputError: the folder holds no run, or `cfg` is wrong.
  """
  build = _builder(cfg)
  file = workdir / "run.json"
  if not file.is_file():
    raise InputError(f"{workdir}: no run here; train first, or name another --workdir")
  try:
    run = config.parse_known(_Recorded, read_json(file), "run")
    if run.channels < 1 or len(run.class_names) < 2:
      raise InputError(f"{run.channels} channels and {len(run.class_names)} classes")
  except InputError as error:
    raise InputError(f"{file}: not what a run has written ({error}); restore it") from error
  source = data.MsdSource((), (), run.channels, run.class_names)
  return build(source, data.Split(run.data.labelled, (), (), "none"))


def _builder(cfg: Config) -> Callable[[data.Source, data.Split], Experiment]:
  """Checks the configuration, before any data is looked for; what comes back puts the run together."""
  config.check(cfg)
  module = methods.load(cfg.method["name"])
  options = config.parse(module.Options, {k: v for k, v in cfg.method.items() if k != "name"}, "config.method")
  steps = sum(n for _, n in cfg.train.phases)

  def build(source: data.Source, split: data.Split) -> Experiment:
    made_of = options, (cfg.network, source.num_classes), (cfg.optim, steps), Task(len(split.labelled), steps)
    _, network, optimizer, task = made_of
    try:
      method = module.build(options, Networks(*network), optim.build(*optimizer), task)
    except (ValueError, ArithmeticError) as error:
      raise _refused(error) from error
    for name, _ in cfg.train.phases:
      if name not in method.steps:
        raise InputError(f"config.train.phases: {cfg.method['name']} has no phase {shown(name)}; it has {', '.join(method.steps)}")
    experiment = Experiment(cfg, source, split, method, made_of=(cfg.method["name"], *made_of))
    if experiment.select == "best" and not 0 < cfg.train.eval_every_steps <= steps:
      raise InputError(
        f"config.eval.select: {cfg.eval.select!r} takes the best checkpoint here, and none has a score unless "
        f"config.train.eval_every_steps lies between 1 and the {steps} steps of the run"
      )
    return experiment

  return build


def _split(cfg: Config, source: data.Source) -> data.Split:
  split = data.make_split(cfg.data, source)
  if cfg.train.batch_synthetic and not cfg.data.synthesis.per_background:
    raise InputError("config.data.synthesis.per_background: must be positive, or config.train.batch_synthetic 0")
  return data.with_exemplar(cfg.data, source, split) if cfg.data.synthesis.per_background else split


def with_synthetic(experiment: Experiment, cache_dir: Path, draw: Callable[[np.ndarray, np.ndarray, Path], object]) -> Experiment:
  """Returns the experiment with the synthetic images that its configuration asks for, made once and kept in `cache_dir`.

  Args:
    experiment: any; without `config.train.batch_synthetic` it comes back as it is.
    cache_dir: a folder that all processes see.
    draw: makes a contact sheet, see `data.build_synthetic`.

  Raises:
    InputError: see `data.build_synthetic`.
  """
  cfg = experiment.cfg
  if not cfg.train.batch_synthetic:
    return experiment
  made = data.build_synthetic(
    cfg.data, experiment.source, experiment.split, cfg.seed, cache_dir, process_index=jax.process_index(), draw=draw
  )
  return dataclasses.replace(experiment, synthetic=made)


def restore(experiment: Experiment, workdir: Path) -> TrainState:
  """Returns the state that `config.eval.select` names from a run's checkpoints.

  Raises:
    InputError: there is none.
  """
  if not (workdir / "checkpoints").is_dir():
    raise InputError(f"{workdir}: no checkpoints here; train first, or name another --workdir")
  checkpoints = Checkpoints(workdir / "checkpoints", experiment.cfg.train.keep_checkpoints)
  state = checkpoints.restore(experiment.abstract_state, experiment.state_sharding, experiment.select)
  checkpoints.close()
  return state


def record(experiment: Experiment, workdir: Path) -> None:
  """Writes the resolved configuration, versions, git revision and data fingerprint; refuses a folder that another run has begun.

  Raises:
    InputError: `workdir` holds a run whose configuration differs, naming the first key that does.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  cfg = experiment.cfg
  refuse_another(cfg, workdir)
  if jax.process_index() != 0:
    return
  packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "scipy", "nibabel")
  run = {
    "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in packages}},
    "git_revision": _git_revision(),
    "device": f"{experiment.mesh.size} x {jax.devices()[0].device_kind}",
    "data": {
      "fingerprint": data.fingerprint(cfg.data, experiment.source, experiment.split),
      "labelled": experiment.split.labelled,
      "unlabelled": experiment.split.unlabelled,
      "evaluation": experiment.split.evaluation,
    },
    "num_classes": experiment.source.num_classes,
    "channels": experiment.source.channels,
    "class_names": experiment.source.class_names,
  }
  write_whole(workdir / "run.json", json.dumps(run, indent=2))
  write_whole(workdir / "config.json", config.to_json(cfg))


def refuse_another(cfg: Config, workdir: Path) -> None:
  """Raises `InputError` when `workdir` holds a run of another configuration, naming the first key that differs."""
  file = workdir / "config.json"
  if not file.exists():
    return
  old, new = (_fixed_part(json.loads(config.to_json(c))) for c in (config.from_json(file), cfg))
  if difference := _first_difference(old, new, "config"):
    raise InputError(
      f"{workdir}: this folder holds a run with another configuration ({difference}); leave the override out, or choose another --workdir"
    )


def _fixed_part(tree: dict[str, Any]) -> dict[str, Any]:
  fixed = {k: v for k, v in tree.items() if k not in _FREE_KEYS}
  fixed["train"] = {k: v for k, v in fixed["train"].items() if k not in _FREE_TRAIN_KEYS}
  fixed["data"] = {k: v for k, v in fixed["data"].items() if k != "root"}
  return fixed


def _first_difference(old: Any, new: Any, where: str) -> str | None:
  if isinstance(old, dict) and isinstance(new, dict):
    found = (_first_difference(old.get(k), new.get(k), f"{where}.{k}") for k in sorted(old.keys() | new.keys()))
    return next((d for d in found if d), None)
  return None if old == new else f"{where} was {old!r}, now {new!r}"


def _git_revision() -> str | None:
  command = ["git", "describe", "--always", "--dirty"]
  try:
    return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False).stdout.strip() or None
  except FileNotFoundError:  # no git here
    return None


def run_key(cfg: Config) -> jax.Array:
  """Returns the run's random key; steps fold their number into it."""
  return jax.random.key(cfg.seed)
