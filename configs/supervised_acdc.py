"""2D U-Net on the labelled slices of ACDC alone: the yardstick.

python -m ssl_jax.main --config=configs/supervised_acdc.py --config.data.root=DIR --config.data.num_labelled=136
"""

from configs import common


def get_config():
  """Returns the configuration."""
  config = common.acdc(common.base("supervised"))
  config.train.phases = (("train", 30000),)  # [C]
  config.optim.schedule = "poly"  # [C]
  return config
