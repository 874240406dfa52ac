"""3D U-Net on the labelled part of BraTS 2019 alone: the yardstick of every table.

python -m ssl_jax.main --config=configs/supervised_brats.py --config.data.root=DIR --config.data.num_labelled=25
"""

from configs import common


def get_config():
  """Returns the configuration."""
  config = common.brats(common.base("supervised"))
  config.optim.schedule = "poly"  # [L] SSL4MIS
  config.train.phases = (("train", 30000),)  # [L]
  return config
