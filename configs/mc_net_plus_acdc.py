"""MC-Net+ on ACDC.

python -m ssl_jax.main --config=configs/mc_net_plus_acdc.py --config.data.root=DIR --config.data.num_labelled=136
"""

from configs import common


def get_config():
  """Returns the configuration."""
  config = common.acdc(common.base("mc_net_plus", weights={"consistency": 0.1}, ramp=200.0, further=("transpose", "nearest")))  # [C]
  config.network.upsample = "trilinear"  # the first decoder's [C]
  config.train.phases = (("train", 30000),)  # [C]
  return config
