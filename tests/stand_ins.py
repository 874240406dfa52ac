"""A program of the library on networks that compile in seconds: `python -m tests.stand_ins MODULE ARGUMENTS`."""

import importlib
import sys

from ssl_jax import compiler, experiment
from tests.methods.common import slice_networks, small_networks


def use() -> None:
  """Has every experiment of this process built on stand-ins."""
  compiler.keep_programs = lambda: None  # a program is found by what is in files
  experiment.Networks = lambda cfg, classes: slice_networks(classes) if cfg.name == "unet2d" else small_networks(classes)


if __name__ == "__main__":
  use()
  del sys.argv[0]
  sys.exit(importlib.import_module(sys.argv[0]).main(sys.argv[1:]))
