"""Training metrics to JSON lines, TensorBoard and a progress bar; silent on all processes but the first."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np
import tqdm


@contextlib.contextmanager
def _hidden(package: str) -> Iterator[None]:
  """Has imports of a package fail that has not been imported before."""
  if package in sys.modules:
    yield
    return
  sys.modules[package] = None  # type: ignore[assignment]  # so Python's import system has it
  try:
    yield
  finally:
    del sys.modules[package]


with _hidden("torch"):  # tensorboardX would import it wherever it is installed: seconds and half a GiB for the name of a type
  from tensorboardX import summary
  from tensorboardX.event_file_writer import EventsWriter
  from tensorboardX.proto.event_pb2 import Event, SessionLog


class Writer:
  """Writes `metrics.jsonl` and TensorBoard events under `folder`.

  Events are written at once: the thread of a `SummaryWriter` ends when the disk is full, and whoever then hands it more waits for ever.
  """

  def __init__(self, folder: Path, first_step: int, num_steps: int, title: str):
    self._on = jax.process_index() == 0
    if self._on:
      self._lines = _open_lines(folder / "metrics.jsonl")
      (folder / "tensorboard").mkdir(exist_ok=True)
      self._events = EventsWriter(str(folder / "tensorboard" / "events"))
      self._events.write_event(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))  # hides what came after it
      # a bar on a terminal, a line every 30 s in a log file
      interval = 0.5 if sys.stderr.isatty() else 30.0
      self._bar = tqdm.tqdm(
        total=num_steps, initial=first_step, desc=title, unit="step", mininterval=interval, maxinterval=interval, dynamic_ncols=True
      )

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Writes scalars of one step: numbers to TensorBoard, everything to the JSON lines.

    Raises:
      OSError: ENOSPC, the disk is full.
    """
    if not self._on:
      return
    self._lines.write(json.dumps({"step": step, **values}) + "\n")
    self._lines.flush()
    for name, value in values.items():
      if isinstance(value, int | float):
        self._event(step, summary.scalar(name, value))
    self._events.flush()

  def image(self, step: int, name: str, pixels: np.ndarray) -> None:
    """Writes a picture, u8[height, width, 3], to TensorBoard."""
    if self._on:
      self._event(step, summary.image(name, pixels, dataformats="HWC"))

  def _event(self, step: int, content: Any) -> None:
    self._events.write_event(Event(step=step, wall_time=time.time(), summary=content))

  def progress(self, step: int, loss: float) -> None:
    """Moves the progress bar to `step`."""
    if self._on:
      self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
      self._bar.update(step - self._bar.n)

  def close(self) -> None:
    """Closes all files."""
    if self._on:
      self._bar.close()
      self._events.close()
      self._lines.close()


def _open_lines(file: Path) -> TextIO:
  """Opens a file to append lines; one that was cut short, by a kill or a full disk, goes."""
  if file.exists():
    content = file.read_bytes()
    os.truncate(file, content.rfind(b"\n") + 1)
  return file.open("a")
