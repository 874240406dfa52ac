"""URPC on ACDC: a U-Net that predicts at four scales.

python -m ssl_jax.main --config=configs/urpc_acdc.py --config.data.root=DIR --config.data.num_labelled=136
"""

from configs import common


def get_config():
  """Returns the configuration."""
  config = common.acdc(common.base("urpc", ramp=200.0))  # [C]
  config.train.phases = (("train", 30000),)  # [C]
  config.optim.schedule = "poly"  # [C]
  return config
