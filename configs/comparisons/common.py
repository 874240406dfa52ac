"""Rows of a comparison: methods at equal data, backbone, batch, optimizer and number of steps."""

import importlib
import importlib.util

from configs import common
from ssl_jax.sweep import Variant


def rows(dataset, small, num_steps, published):
  """Returns a variant for every method in `published`.

  Args:
    dataset: ending of the configurations' names, such as "la".
    small: makes such a configuration small; one that is committed as `<method>_<dataset>_small.py` is taken as it is.
    num_steps: length of every run; phases and options that count steps keep their shares of it.
    published: method -> metric -> the papers' number, {} where none is known.
  """
  return tuple(Variant(name, _overrides(name, dataset, small, num_steps), numbers) for name, numbers in published.items())


def _overrides(name, dataset, small, num_steps):
  committed = importlib.util.find_spec(f"configs.{name}_{dataset}_small")
  config = importlib.import_module(f"configs.{name}_{dataset}{'_small' if committed else ''}").get_config()
  config = common.shortened(config if committed else small(config), num_steps)
  return {"method": config.method.to_dict(), "train.phases": config.train.phases}
