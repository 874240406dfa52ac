"""The training loop. It knows phases, steps and metrics; what a step does is the method's affair."""

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ssl_jax import compiler, data
from ssl_jax.core import heap, sharding
from ssl_jax.core.checkpoint import Checkpoints
from ssl_jax.core.distributed import StopNotice, Watchdog
from ssl_jax.core.writer import Writer
from ssl_jax.evaluate import evaluate, pseudo_label_quality
from ssl_jax.experiment import Experiment, record, run_key
from ssl_jax.report.figures import overlay_pixels
from ssl_jax.types import InputError, Metrics, PyTree, TrainState

EXIT_PREEMPTED = 75  # EX_TEMPFAIL: launchers start the run again
_LARGE_STEP = 1 << 28  # bytes; smaller ones are so short that waiting costs more


class TrainingDiverged(RuntimeError):
  """A loss became NaN or infinite."""


def train(experiment: Experiment, workdir: Path) -> TrainState:
  """Trains to the end of the last phase, from the last checkpoint in `workdir` if there is one.

  Args:
    experiment: from `open_experiment`.
    workdir: folder of checkpoints, logs and the resolved configuration; made if missing.

  Returns:
    The final state.

  Raises:
    InputError: the folder holds another run.
    TrainingDiverged: a loss is no longer finite; the message names step and term, the last checkpoint is sound.
    SystemExit: `EXIT_PREEMPTED`, after SIGTERM and a checkpoint.
  """
  record(experiment, workdir)
  cfg = experiment.cfg
  checkpoints = Checkpoints(workdir / "checkpoints", cfg.train.keep_checkpoints)
  state, done = _start(experiment, checkpoints)
  if done >= experiment.num_steps:
    checkpoints.close()
    return state
  first = 0
  with contextlib.ExitStack() as closing:  # each, even where another fails, as on a full disk
    closing.callback(checkpoints.close)
    writer = Writer(workdir, done, experiment.num_steps, cfg.method["name"])
    closing.callback(writer.close)
    watchdog, stop = Watchdog(cfg.train.hang_s), StopNotice()
    closing.callback(watchdog.close)
    closing.callback(stop.restore)
    for phase, length in cfg.train.phases:
      begin, end = max(first, done), first + length
      if begin < end:
        state = _run_phase(experiment, phase, state, begin, end, writer, checkpoints, stop, watchdog)
      first = end
  return state


def _start(experiment: Experiment, checkpoints: Checkpoints) -> tuple[TrainState, int]:
  if checkpoints.steps():
    state = checkpoints.restore(experiment.abstract_state, experiment.state_sharding, set_aside=True)
    return state, int(state.step)
  return experiment.first_state(), 0


def is_compiled(experiment: Experiment, phase: str) -> bool:
  """Whether `compile_step` has compiled this step before, so that it or JAX keeps the program."""
  file = _program_file(experiment, phase)
  return file is not None and file.exists()


def _program_file(experiment: Experiment, phase: str) -> Path | None:
  shapes = jax.tree_util.tree_leaves_with_path((experiment.abstract_state, experiment.batch_spec))
  return compiler.program_file(phase, experiment.made_of, shapes) if experiment.made_of else None


def compile_step(experiment: Experiment, phase: str) -> tuple[Callable[..., tuple[TrainState, Metrics]], dict[str, float]]:
  """Compiles one phase's step ahead of time, with donated state and sharded batch, or loads what an earlier command has kept.

  Returns:
    The executable, called as `(state, batch, key)`, and `{"compile_s", "step_peak_bytes"}`. The heap has room for it, see `core.heap`.
  """
  begin = time.perf_counter()
  arguments = experiment.abstract_state, experiment.batch_spec, jax.eval_shape(lambda: run_key(experiment.cfg))
  file = _program_file(experiment, phase)
  compiled = None
  with heap.Room() as room:
    if file and (kept := compiler.kept(file)):
      if kept.block_bytes > _LARGE_STEP:
        room.take(kept.block_bytes)
      compiled = kept.load(*arguments)
    if compiled is None:
      lowered = _lowered(experiment, phase, arguments)
      compiled = compiler.compile_and_keep(lowered, file) if file else lowered.compile()
    memory = compiled.memory_analysis()
    peak = (
      memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
      if memory
      else math.nan
    )
    facts = {"compile_s": time.perf_counter() - begin, "step_peak_bytes": float(peak)}
    if memory and runs_alone(facts):
      room.take(memory.temp_size_in_bytes)
  return compiled, facts


def _lowered(experiment: Experiment, phase: str, arguments: tuple[PyTree, ...]) -> jax.stages.Lowered:
  replicated, over_data = sharding.replicated(experiment.mesh), sharding.over_data(experiment.mesh)
  state = experiment.state_sharding
  step = jax.jit(
    experiment.method.steps[phase],
    donate_argnums=0,
    in_shardings=(state, over_data, replicated),
    out_shardings=(state, replicated),
    compiler_options=compiler.for_convolutions(),
  )
  try:
    with compiler.tracing():
      return step.lower(*arguments)
  except ValueError as error:  # options that only a step can judge, such as an unknown loss term
    raise InputError(str(error)) from error


def runs_alone(compile_facts: Mapping[str, float]) -> bool:
  """Whether a step's memory is so large that `wait_out` comes before the next step."""
  return jax.default_backend() == "cpu" and compile_facts["step_peak_bytes"] > _LARGE_STEP


def wait_out(results: PyTree, sent: float) -> None:
  """Waits until a step is over and its memory free.

  XLA:CPU frees it up to 2 ms after the results are there, and says nothing. A step that begins before takes as much again from the heap,
  which keeps it.

  Args:
    results: of the step.
    sent: `time.perf_counter()` when it was sent.
  """
  jax.block_until_ready(results)
  time.sleep(min(max(0.003, 0.01 * (time.perf_counter() - sent)), 0.02))


def _run_phase(
  experiment: Experiment,
  phase: str,
  state: TrainState,
  begin: int,
  end: int,
  writer: Writer,
  checkpoints: Checkpoints,
  stop: StopNotice,
  watchdog: Watchdog,
) -> TrainState:
  cfg = experiment.cfg
  watchdog.heard(f"step {begin}, before compiling phase {phase}")
  step_fn, compile_facts = compile_step(experiment, phase)
  writer.write(begin, {"phase": phase, **compile_facts})
  batches = data.batches(
    cfg.data,
    experiment.source,
    experiment.split,
    seed=cfg.seed,
    batch_labelled=cfg.train.batch_labelled,
    batch_unlabelled=cfg.train.batch_unlabelled,
    start_step=begin,
    num_steps=end - begin,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    synthetic=experiment.synthetic,
    batch_synthetic=cfg.train.batch_synthetic,
  )
  over_data = sharding.over_data(experiment.mesh)
  key = jax.jit(lambda: run_key(cfg), out_shardings=sharding.replicated(experiment.mesh))()
  one_by_one = runs_alone(compile_facts)
  pending: list[tuple[Metrics, list[str]]] = []
  since = time.perf_counter()
  for step in range(begin + 1, end + 1):
    on_host = next(batches)
    batch = sharding.to_devices(on_host, over_data)
    sent = time.perf_counter()
    with jax.transfer_guard("disallow"):  # a step that talks to the host is a bug
      state, metrics = step_fn(state, batch, key)
    if one_by_one:
      wait_out(metrics, sent)
    pending.append((metrics, _cases(experiment.split, on_host)))
    stops = stop.after(step)
    saves = step % cfg.train.checkpoint_every_steps == 0 or step == end or stops
    evaluates = cfg.train.eval_every_steps > 0 and step % cfg.train.eval_every_steps == 0
    if step % cfg.train.log_every_steps == 0 or saves or evaluates:
      values = _fetch(pending, step)
      watchdog.heard(f"step {step}")
      step_s = (time.perf_counter() - since) / len(pending)
      writer.write(step, {**values, "step_s": step_s})
      writer.progress(step, values["loss"])
      pending = []
      if evaluates:
        values = _validate(experiment, state, step, writer)
        watchdog.heard(f"the evaluation after step {step}")
      if saves or evaluates:
        checkpoints.save(step, state, {k: v for k, v in values.items() if k == "dice"})
      since = time.perf_counter()
    if stops:
      raise SystemExit(EXIT_PREEMPTED)
  return state


def _cases(split: data.Split, batch: Mapping[str, Mapping[str, np.ndarray]]) -> list[str]:
  names = split.labelled + split.unlabelled
  return [names[i] for stream in ("labelled", "unlabelled") for i in batch[stream]["index"]]


def _fetch(pending: list[tuple[Metrics, list[str]]], last_step: int) -> dict[str, float]:
  """Brings the metrics of the last steps to the host, checks each, and returns the latest."""
  fetched = jax.device_get([metrics for metrics, _ in pending])
  for offset, metrics in enumerate(fetched):
    for name, value in sorted(metrics.items(), key=lambda item: item[0] == "loss"):  # the sum last: its terms say more
      if not math.isfinite(value):
        step = last_step - len(fetched) + offset + 1
        raise TrainingDiverged(
          f"step {step}: {name} is {float(value)}; the last checkpoint is sound. Lower config.optim.lr, or look for extreme intensities "
          f"in the batch's scans: {', '.join(pending[offset][1])}"
        )
  return {name: float(value) for name, value in fetched[-1].items()}


def _validate(experiment: Experiment, state: TrainState, step: int, writer: Writer) -> dict[str, Any]:
  """Evaluates during training, with a picture of the first scan; returns the headline predictor's mean metrics."""

  def watch(case: data.Case, prediction: np.ndarray) -> None:
    writer.image(step, f"evaluation/{case.name}", overlay_pixels(case.image, case.label, prediction))

  results = evaluate(experiment, state, watch)
  headline, *others = results.values()
  means_of = lambda r: {k: v["mean"] for k, v in r["summary"].items() if isinstance(v, Mapping) and math.isfinite(v["mean"])}
  means = means_of(headline)
  beside = {f"{r['predictor']}/{k}": mean for r in others for k, mean in means_of(r).items()}
  writer.write(step, {**{f"{headline['predictor']}/{k}": v for k, v in means.items()}, **beside, **pseudo_label_quality(experiment, state)})
  return means
