"""MC-Net on ACDC.

    python -m ssl_jax.main --config=configs/mc_net_acdc.py --config.data.root=DIR --config.data.num_labelled=136

Published with 7 patients (Dice / 95HD / ASD): 86.44 / 5.50 / 1.84 (CML, Table 2).
"""

from configs import common


def get_config():
  """Returns the configuration."""
  config = common.acdc(common.base("mc_net", weights={"consistency": 0.1}, ramp=200.0, further=("transpose",)))  # [C]
  config.network.upsample = "trilinear"  # the first decoder's [C]
  config.train.phases = (("train", 30000),)  # [C]
  return config
