"""MCF on ACDC: a U-Net and a residual U-Net.

    python -m ssl_jax.main --config=configs/mcf_acdc.py --config.data.root=DIR --config.data.num_labelled=136

Published with 7 patients (Dice / 95HD / ASD): 87.67 / 3.89 / 1.14 (CML, Table 2); the settings behind it are not.
"""

from configs import common


def get_config():
  """Returns the configuration."""
  config = common.acdc(common.base("mcf", ramp=200.0))  # [L]
  config.train.phases = (("train", 30000),)  # [L]
  config.optim.schedule = "poly"  # [L]
  return config
