"""V-Net on the labelled half of Pancreas-CT alone: the yardstick of every table.

python -m ssl_jax.main --config=configs/supervised_pancreas.py --config.data.root=DIR --config.data.num_labelled=12
"""

from configs import common


def get_config():
  """Returns the configuration."""
  config = common.pancreas(common.base("supervised"))
  config.train.phases = (("train", 15000),)  # [L]
  return config
