"""One process of a small run; `test_distributed.py` starts several: `python -m tests.distributed_child METHOD WORKDIR [STOP_AFTER]`.

The networks are stand-ins, so that a step compiles in seconds; everything else is the library's own loop. With JAX_NUM_PROCESSES it
joins the others. It stops after step STOP_AFTER as after SIGTERM.
"""

import os
import sys
from pathlib import Path


def main(method: str, workdir: str, stop_after: str = "0") -> int:
  from ssl_jax.core import distributed

  if "JAX_NUM_PROCESSES" in os.environ:
    distributed.join()
  import jax

  from ssl_jax import experiment, train
  from tests.helpers import phases, tiny_config, with_train
  from tests.methods.common import slice_networks, small_networks

  names = phases(method)
  steps = int(os.environ.get("STEPS", "20"))
  cfg = with_train(
    tiny_config(method),
    phases=tuple((name, steps // len(names)) for name in names),
    batch_labelled=4,
    batch_unlabelled=4,
    batch_synthetic=4 if method == "cmems" else 0,
    log_every_steps=1,
    checkpoint_every_steps=5,
    shard_state="SHARD_STATE" in os.environ,
  )
  experiment.Networks = lambda _, classes: slice_networks(classes) if method == "cmems" else small_networks(classes)
  if int(stop_after):
    train.StopNotice.after = lambda _, step: step == int(stop_after)
  opened = experiment.with_synthetic(experiment.open_experiment(cfg), Path(workdir) / "synthetic", lambda *_: None)
  assert opened.mesh.size == jax.device_count()
  train.train(opened, Path(workdir))
  return 0


if __name__ == "__main__":
  sys.exit(main(*sys.argv[1:]))
