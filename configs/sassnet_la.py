"""SASSNet on the Left Atrium.

    python -m ssl_jax.main --config=configs/sassnet_la.py --config.data.root=DIR --config.data.num_labelled=8

Published (Dice / Jaccard / 95HD / ASD; CAML, Table 1): 85.71 / 75.35 / 14.74 / 4.00.
"""

from configs import common


def get_config():
  """Returns the configuration."""
  config = common.left_atrium(common.base("sassnet", weights={"adversarial": 0.015}))  # 16 labelled: 0.01 [C]
  config.train.phases = (("train", 15000),)  # [C of MC-Net] as all baselines; its own code: 6,000, the rate divided by 10 every 2,500
  return config
