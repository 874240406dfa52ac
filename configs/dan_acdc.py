"""DAN on ACDC.

    python -m ssl_jax.main --config=configs/dan_acdc.py --config.data.root=DIR --config.data.num_labelled=136

The four papers' tables have no Dice for it.
"""

from configs import common


def get_config():
  """Returns the configuration."""
  config = common.acdc(common.base("dan", ramp=200.0))  # [L]
  config.train.phases = (("train", 30000),)  # [L]
  config.optim.schedule = "poly"  # [L]
  return config
