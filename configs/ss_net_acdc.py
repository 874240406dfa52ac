"""SS-Net on ACDC, published settings.

    python -m ssl_jax.main --config=configs/ss_net_acdc.py --config.data.root=DIR --config.data.num_labelled=136

Published (Dice / 95HD / ASD), 7 patients (136 slices): 86.78 / 6.07 / 1.40 (CML, Table 2).
"""

from configs import common


def get_config():
  """Returns the configuration."""
  weights = {"smooth": 0.1, "separate": 0.01}  # [C]
  config = common.acdc(common.base("ss_net", weights=weights, ramp=200.0, epsilon=6.0, dice="squared"))  # [C]
  config.train.phases = (("train", 30000),)  # [C]
  return config
