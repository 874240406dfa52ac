"""MC-Net on the Left Atrium.

    python -m ssl_jax.main --config=configs/mc_net_la.py --config.data.root=DIR --config.data.num_labelled=8

Published with 8 labelled (Dice / Jaccard / 95HD / ASD): 86.87 / 78.49 / 11.17 / 2.18 (CAML, Table 1).
"""

from configs import common


def get_config():
  """Returns the configuration."""
  config = common.left_atrium(common.base("mc_net"))
  config.train.phases = (("train", 15000),)  # [C]
  return config
