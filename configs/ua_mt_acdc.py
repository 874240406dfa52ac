"""UA-MT on ACDC.

    python -m ssl_jax.main --config=configs/ua_mt_acdc.py --config.data.root=DIR --config.data.num_labelled=136

Published, 7 patients (Dice / 95HD / ASD): 81.65 / 6.88 / 2.02 (CML, Table 2).
"""

from configs import common


def get_config():
  """Returns the configuration."""
  config = common.acdc(common.base("ua_mt", ramp=200.0))
  config.train.phases = (("train", 30000),)  # [L]
  config.optim.schedule = "poly"  # [L]
  return config
