"""Command line: `python -m ssl_jax.sweep --sweep=FILE [--seeds=1,2] [--index=N] [--mode=train|table] [--list] [--config.key=value ...]`.

A sweep file has `get_sweep() -> Sweep`: variants of one configuration, such as the rows of a paper's ablation table. Each is trained and
evaluated under every seed in `<workdir>/<variant>_seed<seed>`; the same command again goes on where it was interrupted. At the end a table
shows the paper's numbers beside ours.
"""

import argparse
import copy
import dataclasses
import importlib.util
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from ssl_jax import config, methods
from ssl_jax.report.results import load_results
from ssl_jax.report.tables import METRICS, published_table
from ssl_jax.types import Config, InputError, nearest


@dataclasses.dataclass(frozen=True)
class Variant:
  """One row of the table."""

  name: str  # of the row and of its runs' folders
  overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # dotted key -> value
  published: Mapping[str, float] = dataclasses.field(default_factory=dict)  # metric -> the paper's number (%, voxels), where it is known


@dataclasses.dataclass(frozen=True)
class Sweep:
  """Variants of one configuration: a file, such as "configs/crln_la.py", or a function that returns a `ConfigDict`."""

  config: str | Callable[[], ConfigDict]
  variants: tuple[Variant, ...]
  title: str


@dataclasses.dataclass(frozen=True)
class Run:
  """One variant under one seed."""

  variant: Variant
  cfg: Config
  folder: Path


def load(file: Path) -> Sweep:
  """Returns the sweep of a file.

  Raises:
    InputError: there is no such file, or no sound sweep in it.
  """
  if file.suffix != ".py" or not file.is_file():
    raise InputError(f"--sweep: no Python file {file}; {nearest(str(file), map(str, Path('configs').glob('[ac]*s/*.py')))}")
  spec = importlib.util.spec_from_file_location(file.stem, file)
  assert spec and spec.loader
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    sweep = module.get_sweep()
  except Exception as error:  # whatever a file that is not ours may raise
    raise InputError(f"{file}: {type(error).__name__}: {' '.join(str(error).split())}") from error
  if not isinstance(sweep, Sweep) or not sweep.variants:
    raise InputError(f"{file}: get_sweep() must return a ssl_jax.sweep.Sweep with variants")
  names = [variant.name for variant in sweep.variants]
  for variant in sweep.variants:
    if not re.fullmatch(r"[\w.,=+-]+", variant.name) or names.count(variant.name) > 1:
      raise InputError(f"{file}: variant {variant.name!r} names a folder: give it letters, digits and _.,=+- only, and only once")
    for metric in variant.published.keys() - set(METRICS):
      raise InputError(f"{file}: variant {variant.name}: published.{metric}: no such metric; {nearest(metric, METRICS)}")
  return sweep


def plan(sweep: Sweep, workdir: Path, seeds: Sequence[int] = (), overrides: Sequence[str] = ()) -> list[Run]:
  """Returns the runs of a sweep, all seeds of the first variant first.

  Args:
    sweep: see `load`.
    workdir: of the sweep; each run has a folder in it.
    seeds: by default the configuration's.
    overrides: `--config.key=value` for every variant; what a variant sets itself wins.

  Raises:
    InputError: a key that does not exist or has a wrong value, with the variant's name.
  """
  base = _base(sweep, overrides)
  for key in (override.removeprefix("--config.").split("=")[0] for override in overrides):
    if key == "seed" or all(any(f"{key}.".startswith(f"{own}.") for own in variant.overrides) for variant in sweep.variants):
      raise InputError(f"--config.{key}: " + ("use --seeds=1,2,3" if key == "seed" else "every variant of this sweep sets it"))
  if base["compare"]:
    raise InputError("config.compare: a sweep varies one method; use a configuration without it")
  runs = []
  for variant in sweep.variants:
    try:
      for seed in seeds or (base["seed"],):
        values = copy.deepcopy(base)
        for key, value in variant.overrides.items():
          _override(values, key, value)
        cfg = config.check(config.parse(Config, {**values, "seed": seed}))
        config.parse(methods.load(cfg.method["name"]).Options, {k: v for k, v in cfg.method.items() if k != "name"}, "config.method")
        runs.append(Run(variant, cfg, workdir / f"{variant.name}_seed{seed}"))
    except InputError as error:
      raise InputError(f"variant {variant.name}: {error}") from error
  return runs


def finished(run: Run) -> dict[str, Any] | None:
  """Returns the results of a run after its last step; `None` while there are none, or they belong to another configuration."""
  try:
    trained = config.from_json(run.folder / "config.json")
    if _that_matters(trained) != _that_matters(run.cfg) or not (run.folder / "results.md").exists():
      return None
    result = next(r for r in load_results([run.folder]) if r["predictor"] == "student")  # what the paper evaluates
  except (OSError, ValueError, StopIteration):  # interrupted while writing
    return None
  steps = sum(length for _, length in run.cfg.train.phases)
  complete = result["step"] == steps if run.cfg.eval.select == "last" else (run.folder / "checkpoints" / str(steps)).is_dir()
  return result if complete else None


def execute(runs: Sequence[Run]) -> bool:
  """Trains and evaluates what is not finished; returns whether all went to the end: a loss that is not finite ends only its own run.

  Raises:
    InputError: something is wrong with any of them, found before the first trains; or a run's folder holds another run.
    SystemExit: SIGTERM arrived while training, which has saved its state.
  """
  import jax

  from ssl_jax import main as command
  from ssl_jax.experiment import open_experiment, record
  from ssl_jax.train import TrainingDiverged

  command.prepare_compiler(*(run.cfg for run in runs))
  todo = [run for run in runs if not finished(run)]
  for run in {run.variant.name: run for run in todo}.values():  # seeds share what is checked
    try:
      experiment = open_experiment(run.cfg)
      for phase, _ in run.cfg.train.phases:
        jax.eval_shape(experiment.method.steps[phase], experiment.abstract_state, experiment.batch_spec, jax.random.key(0))
    except ValueError as error:
      raise InputError(f"variant {run.variant.name}: {error}") from error
  ok = True
  for number, run in enumerate(todo, start=len(runs) - len(todo) + 1):
    print(f"[{number}/{len(runs)}] {run.folder}", file=sys.stderr, flush=True)
    record(open_experiment(run.cfg), run.folder)  # refuses the folder of a run that trained differently
    for stale in run.folder.glob("results*"):  # of other evaluation settings, or from before the end
      stale.unlink()
    try:
      command.run(run.cfg, run.folder)
    except TrainingDiverged as error:
      print(f"error: {run.folder}: {error}", file=sys.stderr, flush=True)
      ok = False
    jax.clear_caches()  # the next run shares no compiled program with this one
  return ok


def table(sweep: Sweep, runs: Sequence[Run]) -> str:
  """Returns the sweep's heading and Markdown table, one row per variant, with the results of the runs that have finished."""
  results = {v.name: [r for r in (finished(run) for run in runs if run.variant == v) if r] for v in sweep.variants}
  rows = [(variant.name, variant.published, results[variant.name]) for variant in sweep.variants]
  return f"# {sweep.title}\n\n{published_table(rows, num_seeds=len(runs) // len(rows))}"


def _base(sweep: Sweep, overrides: Sequence[str]) -> dict[str, Any]:
  """Returns the configuration that all variants share, as nested dictionaries."""
  from ssl_jax import main as command

  values, argv = flags.FlagValues(), ["sweep", *overrides]
  with command.flag_errors(argv):
    if isinstance(sweep.config, str):
      argv.insert(1, f"--config={sweep.config}")
      config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=argv)
    else:
      config_flags.DEFINE_config_dict("config", sweep.config(), flag_values=values, sys_argv=argv)
    values(argv)
    return values["config"].value.to_dict()  # type: ignore[union-attr]


def _override(values: dict[str, Any], key: str, value: Any) -> None:
  """Sets the dotted `key`, which must exist."""
  parent, group, where = values, values, "config"
  for part in key.split("."):
    if not isinstance(group, dict) or part not in group:
      raise InputError(f"{where}.{part}: no such key" + (f"; {nearest(part, group)}" if isinstance(group, dict) else ""))
    parent, group, where = group, group[part], f"{where}.{part}"
  parent[part] = value


def _that_matters(cfg: Config) -> str:
  """Returns what must be the same for a result to count as this run's: all but the data's place and how often to log and save."""
  train = dataclasses.replace(cfg.train, log_every_steps=1, checkpoint_every_steps=1, keep_checkpoints=1)
  return config.to_json(dataclasses.replace(cfg, train=train, data=dataclasses.replace(cfg.data, root="")))


def _seeds(text: str) -> tuple[int, ...]:
  seeds = text.split(",") if text else []
  if not all(seed.isdecimal() for seed in seeds) or len(set(seeds)) < len(seeds):
    raise InputError(f"--seeds: expected different whole numbers separated by commas, such as 1337,3407,10000; got {text!r}")
  return tuple(map(int, seeds))


def main(argv: Sequence[str]) -> int:
  """Parses the command line and runs; returns the exit status."""
  parser = argparse.ArgumentParser("python -m ssl_jax.sweep", description="Trains the variants of a sweep.", allow_abbrev=False)
  parser.add_argument("--sweep", required=True, type=Path, help="file with get_sweep(), such as configs/ablations/crln_table5.py")
  parser.add_argument("--seeds", default="", help="numbers separated by commas; default: the configuration's seed")
  parser.add_argument("--index", type=int, help="only this run of the list, from 0: for array jobs")
  parser.add_argument("--mode", choices=("train", "table"), default="train", help="train what is not finished; or only print the table")
  parser.add_argument("--list", action="store_true", help="print index, variant, seed and overrides of every run, and train nothing")
  parser.add_argument("--workdir", type=Path, help="folder of the runs and of sweep.md; default: runs/<sweep>")
  options, overrides = parser.parse_known_args(argv)
  try:
    for argument in overrides:
      if not re.match(r"--config\.[\w.]+=", argument):
        raise InputError(f"{argument}: no such argument; what every variant shares is given as --config.key=value")
    sweep, workdir = load(options.sweep), options.workdir or Path("runs") / options.sweep.stem
    runs = plan(sweep, workdir, _seeds(options.seeds), overrides)
    if options.index is not None and not 0 <= options.index < len(runs):
      raise InputError(f"--index: {options.index} is not between 0 and {len(runs) - 1}; --list shows all runs")
    if options.list:
      for index, run in enumerate(runs):
        print(index, run.variant.name, run.cfg.seed, *(f"{key}={value}" for key, value in run.variant.overrides.items()), sep="\t")
      return 0
    ok = options.mode == "table" or execute(runs if options.index is None else [runs[options.index]])
    text = table(sweep, runs)
    print(text)
    if any((run.folder / "config.json").exists() and not finished(run) for run in runs):
      print("some runs have begun but not finished, or were begun with other settings", file=sys.stderr)
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "sweep.md").write_text(text + "\n")
  except InputError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0 if ok else 2


if __name__ == "__main__":
  from ssl_jax import main as _command
  from ssl_jax import sweep as _sweep  # not as __main__: sweep files must see these very classes

  _command.with_tuned_malloc()
  sys.exit(_sweep.main(sys.argv[1:]))
