"""Entropy minimisation on ACDC.

    python -m ssl_jax.main --config=configs/entropy_min_acdc.py --config.data.root=DIR --config.data.num_labelled=136

No numbers at these settings are in the four papers' tables.
"""

from configs import common


def get_config():
  """Returns the configuration."""
  config = common.acdc(common.base("entropy_min", ramp=200.0))
  config.train.phases = (("train", 30000),)  # [L]
  config.optim.schedule = "poly"  # [L]
  return config
