"""URPC on the Left Atrium.

    python -m ssl_jax.main --config=configs/urpc_la.py --config.data.root=DIR --config.data.num_labelled=8

Published with 8 labelled (Dice / Jaccard / 95HD / ASD): 83.37 / 71.99 / 17.91 / 4.41 (CAML, Table 1).
"""

from configs import common


def get_config():
  """Returns the configuration."""
  config = common.left_atrium(common.base("urpc"))
  config.train.phases = (("train", 15000),)  # [L]
  return config
