"""Any method on your own scans: a folder with imagesTr, labelsTr and dataset.json, the layout of nnU-Net and the Medical Decathlon.

    python -m ssl_jax.data check DIR                                                        # what is there, and the flags that suit it
    python -m ssl_jax.main --config=configs/own_data.py:crln --config.data.root=DIR         # 3D crops of 112×112×80
    python -m ssl_jax.main --config=configs/own_data.py:crln,small --config.data.root=DIR   # half resolution, for two CPU cores
    python -m ssl_jax.main --config=configs/own_data.py:cml,2d --config.data.root=DIR       # slices of thick-sliced volumes, or 2D images

After the colon: a method (crln, caml, cml, ua_mt, bcp, ...: any file in ssl_jax/methods, yours too), then `2d`, `small` or both. Settings
of the method are those of its configuration for the Left Atrium or ACDC. Channels and classes come from dataset.json. Cases without a label
file are unlabelled. A fifth of the labelled cases, at least one, is held out for evaluation; all others are trained on.
"""

import importlib
import importlib.util

from configs import common
from ssl_jax import methods
from ssl_jax.types import InputError, nearest

OPTIONS = ("2d", "small")


def get_config(choice="crln"):
  """Returns the configuration of a method, such as "crln", "crln,small" or "cml,2d"."""
  method, *options = choice.split(",")
  if method not in methods.names():
    raise InputError(f"configs/own_data.py:{choice}: no method {method!r}; {nearest(method, methods.names())}")
  for option in options:
    if option not in OPTIONS:
      raise InputError(f"configs/own_data.py:{choice}: no option {option!r}; {nearest(option, OPTIONS)}")
  flat, small = "2d" in options or common.learns_from_synthetic(method), "small" in options
  config = _start(method, flat, small)
  config.data.source = "msd"
  config.data.root = ""
  config.data.test_list = "test.list"
  config.data.split = "dev"
  config.data.num_holdout = -1
  config.data.num_labelled = -1
  config.data.normalise = "zscore"
  if not flat:  # slices keep the axis along which they were taken
    config.data.canonical = True
    config.eval.stride = tuple(side // 2 for side in config.data.patch)
    config.eval.window_batch = 4
  return config


def _start(method, flat, small):
  """The method's configuration for a benchmark of that kind and size or, where it has none, the nearest one."""
  kind = "acdc" if flat else "la"
  if small and (config := _committed(f"{method}_{kind}_small")):
    return config
  config = _committed(f"{method}_{kind}")
  if not config:
    config = _committed(f"{method}_la") or common.left_atrium(common.base(method))
    config = _on_slices(config) if flat else config
  if small:
    return common.small_slices(config) if flat else common.left_atrium_small(config)
  return config


def _committed(name):
  """The configuration of a file in configs/, or None."""
  return importlib.import_module(f"configs.{name}").get_config() if importlib.util.find_spec(f"configs.{name}") else None


def _on_slices(config):
  """What the configurations for ACDC have, with the V-Net, which every method can use."""
  network = config.network.name
  config = common.acdc(config)
  config.network.name = network
  return config
