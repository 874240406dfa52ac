"""Several processes, one run: joining them, exchanging what each has found, stopping together, and noticing one that hangs."""

import faulthandler
import json
import os
import signal
import socket
import sys
import threading
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ssl_jax.types import InputError

EXIT_HUNG = 70  # EX_SOFTWARE: launchers start the run again
_NUMBERS = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}


def join() -> None:
  """Joins this process to the others of its run; to be called before anything else asks JAX for a device.

  SLURM, TPU pods and MPI are found by JAX. Elsewhere the environment says it: `JAX_COORDINATOR_ADDRESS` (host:port of process 0),
  `JAX_NUM_PROCESSES`, `JAX_PROCESS_ID`.

  Raises:
    InputError: neither says where the others are, or they did not come.
  """
  try:
    numbers: dict[str, Any] = {argument: int(os.environ[name]) for argument, name in _NUMBERS.items() if name in os.environ}
    if len(numbers) == len(_NUMBERS):
      numbers["cluster_detection_method"] = "deactivate"
    jax.distributed.initialize(**numbers)
  except (ValueError, RuntimeError) as error:
    raise InputError(
      f"--distributed: this process found no others ({str(error).splitlines()[0]}). Start it by one of the files in launch/, or set "
      f"JAX_COORDINATOR_ADDRESS, {' and '.join(_NUMBERS.values())}"
    ) from error


def gather(value: Any) -> list[Any]:
  """Returns every process's value, in their order; all must call it. Values are what JSON holds, NaN included."""
  if jax.process_count() == 1:
    return [value]
  content = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(content.size))
  padded = np.pad(content, (0, int(sizes.max()) - content.size))
  return [json.loads(row[:size].tobytes()) for row, size in zip(multihost_utils.process_allgather(padded), sizes, strict=True)]


class StopNotice:
  """SIGTERM to any process, as schedulers send it before they take a machine back, becomes one step after which all of them stop."""

  def __init__(self) -> None:
    self._received = False
    # With several processes JAX itself catches the signal and has them agree on a step.
    self._previous = signal.signal(signal.SIGTERM, self._on_signal) if jax.process_count() == 1 else None

  def after(self, step: int) -> bool:
    """Returns whether to save and leave after `step`; to be asked at every step."""
    return self._received if jax.process_count() == 1 else multihost_utils.reached_preemption_sync_point(step)

  def _on_signal(self, number: int, frame: FrameType | None) -> None:
    del number, frame
    self._received = True
    os.write(2, b"\nSIGTERM: saving a checkpoint, then leaving\n")

  def restore(self) -> None:
    """Puts the former handler back."""
    if self._previous is not None:
      signal.signal(signal.SIGTERM, self._previous)


class Watchdog:
  """Speaks up when nothing has been heard of the loop for a while, as when another host hangs in a collective.

  It then prints where every thread stands, and ends a run of several processes with `EXIT_HUNG`: their scheduler can start it again,
  while a collective that waits for a lost host would wait for ever.
  """

  def __init__(self, limit_s: float):
    self._limit_s, self._heard, self._closed = limit_s, threading.Event(), False
    self._what = "starting"
    if limit_s:
      threading.Thread(target=self._watch, daemon=True, name="watchdog").start()

  def heard(self, what: str) -> None:
    """Starts the time anew; `what` goes into the message."""
    self._what = what
    self._heard.set()

  def close(self) -> None:
    """Ends the watch."""
    self._closed = True
    self._heard.set()

  def _watch(self) -> None:
    while not self._closed:
      if self._heard.wait(self._limit_s):
        self._heard.clear()
        continue
      index, count, host = jax.process_index(), jax.process_count(), socket.gethostname()
      print(
        f"\nprocess {index} of {count} on {host}: nothing has happened for {self._limit_s:.0f} s (config.train.hang_s) since "
        f"{self._what}. It waits for data, or for another process: the one whose last line differs is at fault. Where it stands:",
        file=sys.stderr,
        flush=True,
      )
      faulthandler.dump_traceback(2)
      if count > 1:
        os._exit(EXIT_HUNG)


def raise_together(error: InputError | None) -> None:
  """Raises in all processes what was wrong in any, so that none waits for one that has left; all must call it.

  Raises:
    InputError: `error`, or the first that another process has.
  """
  found = [message for message in gather(None if error is None else str(error)) if message]
  if error is not None:
    raise error
  if found:
    raise InputError(found[0])
