"""The configuration that a run has recorded, as a configuration file: `--config=ssl_jax/recorded.py:RUN/config.json`."""

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from ssl_jax import config


def get_config(file: str) -> ConfigDict:
  """Returns what `config.to_json` has written to `file`; keys of later versions have their defaults."""
  return ConfigDict(dataclasses.asdict(config.from_json(Path(file))))
