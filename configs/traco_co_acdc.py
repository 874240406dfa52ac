"""TraCoCo on ACDC, published settings.

python -m ssl_jax.main --config=configs/traco_co_acdc.py --config.data.root=DIR --config.data.num_labelled=136
"""

from configs import common


def get_config():
  """Returns the configuration."""
  weights = {"crc": 0.5, "dice": 0.5, "translation": 0.1, "entropy": 0.01}  # [C]
  config = common.acdc(common.base("traco_co", weights=weights, noise=0.05))  # [C]
  config.train.phases = (("train", 50000),)  # [C]
  config.optim.lr = 0.065  # [C]
  config.optim.schedule = "poly"  # [C]
  return config
