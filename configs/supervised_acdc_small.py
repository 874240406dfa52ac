"""2D U-Net on the labelled slices of ACDC alone at 128², for two CPU cores, evaluated on val.list.

    python -m ssl_jax.main --config=configs/supervised_acdc_small.py --config.data.root=DIR

Results: docs/results/acdc_small.md.
"""

from configs import common, supervised_acdc


def get_config():
  """Returns the configuration."""
  config = common.small_slices(supervised_acdc.get_config())
  config.data.test_list = "val.list"
  return config
