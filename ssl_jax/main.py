"""Command line: `python -m ssl_jax.main --config=FILE [--mode=train|compile|eval|predict|export] [--workdir=DIR] [--config.key=value ...]`.

Without `--config` a run's folder, `--workdir`, gives the configuration it has recorded.
"""

import errno
import os
import re
import subprocess
import sys

# Huge pages, and one heap that keeps what a step frees: gigabytes handed back to the system would be cleared anew for the next step.
# No small blocks kept aside: one of them in between, and a step does not fit into what loading its program has freed.
MALLOC = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.arena_max=1:glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0:glibc.malloc.trim_threshold=68719476736"  # noqa: E501

WORTH_COMPILING_APART = 300  # steps
EXIT_DISK_FULL = 74  # EX_IOERR


def with_tuned_malloc() -> None:
  """Starts the interpreter again with `MALLOC`, a third of the step time on CPU; glibc reads the setting at start only."""
  if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
    os.execve(sys.executable, sys.orig_argv, {**os.environ, "GLIBC_TUNABLES": MALLOC})


if __name__ == "__main__":
  with_tuned_malloc()

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import config_flags

from ssl_jax import compiler, config
from ssl_jax.core import distributed
from ssl_jax.evaluate import evaluate, write_results
from ssl_jax.experiment import Experiment, open_experiment, record, refuse_another, restore, with_synthetic
from ssl_jax.export.write import write_model
from ssl_jax.predict import predict
from ssl_jax.report.figures import contact_sheet
from ssl_jax.report.tables import markdown_table
from ssl_jax.train import TrainingDiverged, compile_step, is_compiled, train
from ssl_jax.types import Config, InputError, write_whole

_CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file; override its keys with --config.a.b=value.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, logs, results. Default: runs/<config>_seed<seed>.")
_MODE = flags.DEFINE_enum(
  "mode",
  "train",
  ["train", "compile", "eval", "predict", "export"],
  "train: train, then evaluate; compile: only leave the programs in the cache; eval: the checkpoint; predict: new images; "
  "export: the predictor as a folder that needs neither run nor configuration.",
)
_INPUT = flags.DEFINE_string("input", None, "predict: a NIfTI file or a folder of them.")
_OUTPUT = flags.DEFINE_string("output", None, "predict: folder for the label maps; export: folder for the model.")
_PROBABILITIES = flags.DEFINE_bool("probabilities", False, "predict: also write class probabilities, <case>_probabilities.nii.gz.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the other processes of this run, which launch/ starts.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "predict: segment images again that the output folder has already.")
_RECORDED = Path(__file__).with_name("recorded.py")


def run(cfg: Config, workdir: Path, mode: str = "train") -> None:
  """Runs one mode of one configuration; with `cfg.compare`, every method it names, in `workdir/<name>`.

  Raises:
    InputError: anything wrong with what the user gave.
  """
  runs = {workdir / name: dataclasses.replace(cfg, method=method, compare={}) for name, method in cfg.compare.items()} or {workdir: cfg}
  experiments: dict[Path, Experiment] = {folder: open_experiment(c) for folder, c in runs.items()}
  for experiment in experiments.values():
    _ = experiment.abstract_state  # refuse every bad option before the first method trains
  if mode == "compile":
    for experiment in experiments.values():
      for phase, _ in experiment.cfg.train.phases:
        if not is_compiled(experiment, phase):
          compile_step(experiment, phase)
    return
  results: list[dict[str, Any]] = []
  for folder, experiment in experiments.items():
    state = None
    if mode == "train":  # all runs of a folder share their synthetic images
      ready = with_synthetic(experiment, folder.parent / "synthetic", contact_sheet)
      record(ready, folder)
      compile_apart(ready, folder)
      state = train(ready, folder)
    if state is None or experiment.select != "last":
      state = restore(experiment, folder)
    found = evaluate(experiment, state)
    if jax.process_index() == 0:
      write_results(found, folder)
    results += found.values()
  if jax.process_index() == 0:
    table = markdown_table(results)
    print(table)
    write_whole(workdir / "results.md", table + "\n")


def use(cfg: Config, workdir: Path) -> None:
  """Predicts with a trained run or exports it, as the flags say; its data need not be there.

  Raises:
    InputError: a flag is missing, or whatever is wrong with run or images.
  """
  mode, output = _MODE.value, _OUTPUT.value
  if _DISTRIBUTED.value:
    raise InputError(f"--distributed: --mode={mode} is the work of one process; leave the flag out")
  if cfg.compare:
    folders = ", ".join(str(workdir / name) for name in cfg.compare)
    raise InputError(f"--mode={mode} needs one method: name one of the folders {folders} as --workdir, without --config")
  refuse_another(cfg, workdir)
  if mode == "export":
    if not output:
      raise InputError("--mode=export needs --output=FOLDER")
    print(f"{write_model(cfg, workdir, Path(output))}: the exported model; ssl_jax.export.load reads it")
    return
  if not _INPUT.value or not output:
    raise InputError("--mode=predict needs --input=FILE_OR_FOLDER and --output=FOLDER")
  options = {"probabilities": _PROBABILITIES.value, "overwrite": _OVERWRITE.value}
  written = predict(cfg, workdir, Path(_INPUT.value), Path(output), **options)
  print(f"{len(written)} files written to {output}")


def with_recorded_config(argv: list[str]) -> list[str]:
  """Names the configuration that the folder `--workdir` has recorded where `argv` names none, so that its keys can be overridden too."""
  names = [argument.lstrip("-").partition("=")[0] for argument in argv[1:] if argument.startswith("-")]
  if "config" in names or "workdir" not in names:
    return argv
  place = next(i for i, argument in enumerate(argv) if argument.lstrip("-").partition("=")[0] == "workdir" and argument.startswith("-"))
  workdir = argv[place].partition("=")[2] or next(iter(argv[place + 1 :]), "")
  file = Path(workdir) / "config.json"
  return [argv[0], f"--config={_RECORDED}:{file}", *argv[1:]] if file.is_file() else argv


def _load_config() -> Config:
  if _CONFIG.value is None:
    raise InputError("--config: name a configuration file, such as --config=configs/quickstart.py, or a --workdir that has one")
  return config.parse(Config, _CONFIG.value.to_dict())


@contextlib.contextmanager
def flag_errors(argv: list[str]) -> Iterator[None]:
  """Turns what parsing `argv` raises into an `InputError` of one line that names the flag, the key or the file."""
  try:
    yield
  except (
    AttributeError,
    KeyError,
  ) as error:  # an override that the configuration lacks; the message starts with the missing part of its key
    missing = re.findall(r"\w+", str(error))[0]
    keys = (argument.removeprefix("--").split("=")[0] for argument in argv if argument.startswith("--config."))
    key = next((key for key in keys if missing in key.split(".")), missing)
    close = re.search(r'Did you mean "(\w+)"', str(error))
    raise InputError(f"{key}: no such key; " + (f"did you mean {close[1]!r}?" if close else "see the configuration file")) from error
  except (OSError, ImportError, SyntaxError, TypeError, ValueError, flags.Error) as error:
    message = str(error).rpartition("InputError: ")[2]  # what a configuration file raises comes with its whole traceback
    raise InputError(" ".join(message.split())) from error


def _parse_flags(argv: list[str]) -> None:
  with flag_errors(argv):
    flags.FLAGS(argv)
    if _CONFIG.value is not None:
      _CONFIG.value.to_dict()  # a file that cannot be loaded shows only when its values are asked for


def prepare_compiler(*configs: Config) -> None:
  """Sets XLA's flags, and keeps compiled programs in the user's cache, so that the next start of the same run is quick.

  Not those of several CPU devices: one loaded from the cache starts its collectives in any order (jaxlib 0.10), and the devices end up
  waiting for each other.
  """
  compiler.vectorize_channels()
  compiler.keep_programs()
  if any(cfg.network.remat for cfg in configs):
    compiler.order_for_memory()
  if jax.default_backend() == "cpu" and jax.device_count() > 1:
    jax.config.update("jax_enable_compilation_cache", False)
  elif "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    jax.config.update("jax_compilation_cache_dir", str(Path("~/.cache/ssl_jax/compiled").expanduser()))


def _name(config_file: str) -> str:
  """`configs/own_data.py:crln,small` -> `own_data_crln_small`."""
  file, _, choice = config_file.partition(":")
  return "_".join([Path(file).stem, *re.findall(r"\w+", choice)])


def compile_apart(experiment: Experiment, folder: Path) -> None:
  """On CPU, compiles a long run's programs in a child process, from whose cache this one loads them.

  LLVM leaves malloc's heap in tatters: a process that has compiled takes up to half longer for every step than one that has not. And
  its threads wait for each other at the one heap of `MALLOC`: the child, with malloc as it is, takes two thirds of the time.

  Args:
    experiment: of one run. Where all of its programs are in the cache, nothing happens.
    folder: where its configuration is recorded. A run that is resumed finds its programs in the cache.
  """
  long = experiment.num_steps >= WORTH_COMPILING_APART
  alone = jax.default_backend() == "cpu" and jax.device_count() == 1
  if not (long and alone) or (folder / "checkpoints").exists():
    return
  if not all(is_compiled(experiment, phase) for phase, _ in experiment.cfg.train.phases):
    command = [sys.executable, "-m", "ssl_jax.main", f"--workdir={folder}", "--mode=compile"]
    plain, nowhere = {**os.environ, "GLIBC_TUNABLES": ""}, subprocess.DEVNULL  # this process says what is wrong
    print(f"{folder.name}: compiling", file=sys.stderr)
    subprocess.run(command, check=False, env=plain, stdout=nowhere, stderr=nowhere)


def main(argv: list[str]) -> int:
  """Parses the command line and runs; returns the exit status."""
  try:
    _parse_flags(with_recorded_config(argv))
    if _DISTRIBUTED.value:
      distributed.join()
    cfg = _load_config()
    prepare_compiler(cfg)
    name = _name(config_flags.get_config_filename(flags.FLAGS["config"]))
    workdir = Path(_WORKDIR.value or f"runs/{name}_seed{cfg.seed}")
    if _MODE.value in ("predict", "export"):
      use(cfg, workdir)
      return 0
    run(cfg, workdir, _MODE.value)
  except (InputError, TrainingDiverged) as error:
    return _leave(2, f"error: {error}")
  except OSError as error:
    if error.errno != errno.ENOSPC:
      raise
    return _leave(EXIT_DISK_FULL, f"error: {error.filename or 'the run'}: no space left; free some and run the same command again")
  except jax.errors.JaxRuntimeError as error:
    if jax.process_count() == 1:
      raise
    return _leave(
      distributed.EXIT_HUNG, f"error: lost another process of this run, whose own output says why ({str(error).splitlines()[0]})"
    )
  return 0


def _leave(status: int, message: str) -> int:
  """Says what is wrong; one of several processes goes at once, since at the usual exit it would wait for the others, and they for it."""
  print(message, file=sys.stderr, flush=True)
  if jax.process_count() > 1:
    os._exit(status)
  return status


if __name__ == "__main__":
  sys.exit(main(sys.argv))
