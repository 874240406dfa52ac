"""CMEMS on ACDC at 128², for two CPU cores, evaluated on val.list.

    python -m ssl_jax.main --config=configs/cmems_acdc_small.py --config.data.root=DIR

Results: docs/results/acdc_small.md.
"""

from configs import cmems_acdc, common


def get_config():
  """Returns the configuration."""
  config = common.small_slices(cmems_acdc.get_config())
  config.data.test_list = "val.list"
  config.data.synthesis.per_background = 4
  config.train.phases = (("train", 1200),)
  return config
