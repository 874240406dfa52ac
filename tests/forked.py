"""The command line many times for one import: `python -m tests.forked < JOBS`, each job a fork from before JAX has a device.

A job is `{"argv": [...], "devices": 1, "env": {...}, "stand_ins": false, "stop_after": 0}`; JOBS is a JSON list of groups, one after the
other, whose jobs run side by side. Prints a JSON list of `[exit status, stderr]`, in order. `stand_ins`: networks that compile in seconds.
`stop_after`: as if SIGTERM came in that step.
"""

import gc
import json
import os
import sys
import tempfile
import warnings

import jax

from ssl_jax import main, train
from tests import stand_ins


def run(job):
  os.environ |= job.get("env", {})
  jax.config.update("jax_num_cpu_devices", job.get("devices", 1))
  if job.get("stand_ins"):
    stand_ins.use()
    main.compile_apart = lambda experiment, folder: None  # a child would compile whole networks
  if stop_after := job.get("stop_after"):
    train.StopNotice.after = lambda _, step: step == stop_after
  sys.argv = ["ssl_jax.main", *job["argv"]]  # where flags of a configuration look for overrides
  return main.main(sys.argv)


def fork(job):
  error = tempfile.TemporaryFile()  # noqa: SIM115  read when the process has ended
  pid = os.fork()
  if not pid:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(error.fileno(), 2)
    status = 1
    try:
      status = run(job)
    except SystemExit as left:
      status = left.code
    except BaseException:
      sys.excepthook(*sys.exc_info())
    finally:
      sys.stderr.flush()
      if job.get("env", {}).get("JAX_NUM_PROCESSES") and status in (0, 75):
        jax.distributed.shutdown()
      os._exit(status)
  return pid, error


def finish(pid, error):
  status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
  error.seek(0)
  return status, error.read().decode(errors="replace")


if __name__ == "__main__":
  warnings.filterwarnings("ignore", message=".*fork")
  gc.set_threshold(100_000, 50, 100)  # as in conftest.py
  print(json.dumps([finish(*started) for group in json.load(sys.stdin) for started in [fork(job) for job in group]]))
