"""V-Net on the labelled half of the Left Atrium alone: the yardstick of every table.

    python -m ssl_jax.main --config=configs/supervised_la.py --config.data.root=DIR --config.data.num_labelled=8

Published Dice (CAML, Table 1): 4 labelled 43.32, 8 79.87, 16 85.94, 80 90.98.
"""

from configs import common


def get_config():
  """Returns the configuration."""
  config = common.left_atrium(common.base("supervised"))
  config.train.phases = (("train", 15000),)  # [C] CAML's; constant rate 0.01
  return config
