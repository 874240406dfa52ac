"""DAN on the Left Atrium.

    python -m ssl_jax.main --config=configs/dan_la.py --config.data.root=DIR --config.data.num_labelled=8

The four papers' tables have no Dice for it.
"""

from configs import common


def get_config():
  """Returns the configuration."""
  config = common.left_atrium(common.base("dan"))
  config.train.phases = (("train", 15000),)  # [C of MC-Net] as all baselines
  return config
