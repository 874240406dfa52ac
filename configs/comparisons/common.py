"""Comparisons: methods at equal data, batch, optimizer, width and number of steps, each with its own options, decoders and weak views."""

import importlib
import importlib.util

from configs import common
from ssl_jax.report.published import find
from ssl_jax.sweep import Sweep, Variant

# Beside its options: the decoder, and who turns and flips images, the pipeline or (`data.view` "none") the method's step.
OWN = (("network", "upsample"), ("data", "view"))


def compare(base, dataset, small, num_steps, names, title):
  """Returns the sweep.

  Args:
    base: name of the configuration that all share, such as "supervised_la_small".
    dataset: ending of the methods' configurations, such as "la".
    small: makes such a configuration small; one that is committed as `<method>_<dataset>_small.py` is taken as it is.
    num_steps: length of every run; phases and options that count steps keep their shares of it.
    names: of the methods.
    title: of the table.
  """
  shared = importlib.import_module(f"configs.{base}").get_config()
  known = {row.method: row.values for row in find(dataset, shared.data.num_labelled)}
  variants = tuple(Variant(name, _overrides(name, shared, dataset, small, num_steps), known.get(name, {})) for name in names)
  return Sweep(f"configs/{base}.py", variants, title=title)


def _overrides(name, shared, dataset, small, num_steps):
  committed = importlib.util.find_spec(f"configs.{name}_{dataset}_small")
  config = importlib.import_module(f"configs.{name}_{dataset}{'_small' if committed else ''}").get_config()
  config = common.shortened(config if committed else small(config), num_steps)
  own = {f"{part}.{key}": config[part][key] for part, key in OWN if config[part][key] != shared[part][key]}
  return {"method": config.method.to_dict(), "train.phases": config.train.phases, **own}
