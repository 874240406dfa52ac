"""Trains one run in N processes of M pretended CPU devices each on this machine, as N hosts would: for tests and for learning.

`python launch/local_multiprocess.py --processes=2 --devices=2 -- --config=FILE [--config.key=value ...]`, from the repository's root;
what follows `--` goes to `ssl_jax.main --distributed`. A line of output begins with the number of its process; signals go to all.
"""

import argparse
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from subprocess import DEVNULL, PIPE, STDOUT, Popen
from typing import IO

GRACE_S = 30.0


def launch(
  arguments: Sequence[str],
  processes: int,
  devices: int,
  env: Mapping[str, str] | None = None,
  command: Sequence[str] = (sys.executable, "-m", "ssl_jax.main", "--distributed"),
  grace: float = GRACE_S,
) -> int:
  """Runs `command` with `arguments` in several processes until all have ended; call it from the main thread.

  Args:
    arguments: the same for every process.
    processes: how many; number 0 is the coordinator.
    devices: pretended CPU devices of each.
    env: variables that differ from this process's environment.
    command: the program and its first arguments.
    grace: seconds that the others have to end by themselves after one has failed; then they are killed.

  Returns:
    The exit status of the first process that failed, 128 + n for signal n; 0 if none did.
  """
  children: list[Popen[str]] = []
  copiers: list[threading.Thread] = []

  def forward(number: int, frame: object) -> None:
    for child in children:
      child.send_signal(number)  # none to one that has ended

  previous = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
  with socket.socket() as probe:  # a port that nothing listens on now
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
  try:
    for number in range(processes):
      children.append(_start([*command, *arguments], {**os.environ, **environment(number, processes, devices, port), **(env or {})}))
      copiers.append(threading.Thread(target=_copy, args=(children[-1].stdout, number), daemon=True))
      copiers[-1].start()
    return _wait(children, grace)
  finally:
    _kill(children)
    for copier in copiers:
      copier.join(timeout=1)
    for number, handler in previous.items():
      signal.signal(number, handler)


def environment(number: int, processes: int, devices: int, port: int) -> dict[str, str]:
  """Returns what tells JAX in process `number` about the others."""
  return {
    "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
    "JAX_NUM_PROCESSES": str(processes),
    "JAX_PROCESS_ID": str(number),
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": str(devices),
    "PYTHONUNBUFFERED": "1",
    **({"TQDM_DISABLE": "1"} if number else {}),
  }


def _start(command: Sequence[str], env: Mapping[str, str]) -> Popen[str]:
  return Popen(command, env=env, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, text=True, errors="replace", start_new_session=True)


def _copy(lines: IO[str], number: int) -> None:
  for line in filter(str.strip, lines):  # a progress bar's carriage return ends a line too
    print(f"[{number}] {line.rstrip()}\n", end="", flush=True)  # one write: lines of two processes do not mix


def _wait(children: Sequence[Popen[str]], grace: float) -> int:
  first, deadline, running = 0, float("inf"), True
  while running:
    time.sleep(0.05)
    running = any([child.poll() is None for child in children])  # a list: every child is asked
    if not first:
      first = next((child.returncode for child in children if child.returncode), 0)
      deadline = time.monotonic() + grace if first else deadline
    if running and time.monotonic() > deadline:
      _kill(children)
  return first if first >= 0 else 128 - first


def _kill(children: Sequence[Popen[str]]) -> None:
  for child in filter(lambda child: child.poll() is None, children):
    os.killpg(child.pid, signal.SIGKILL)  # with what it has started
    child.wait()


def main(argv: Sequence[str]) -> int:
  """Parses the command line and runs; returns the exit status."""
  parser = argparse.ArgumentParser(prog="python launch/local_multiprocess.py", description="Several processes of one run on one CPU.")
  parser.add_argument("--processes", type=int, default=2)
  parser.add_argument("--devices", type=int, default=1, help="pretended CPU devices of each process")
  parser.add_argument("--grace", type=float, default=GRACE_S, help="seconds that the others have after one has failed")
  parser.add_argument("arguments", nargs="*", help="after --: for ssl_jax.main")
  return launch(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
