"""UA-MT on the Left Atrium.

    python -m ssl_jax.main --config=configs/ua_mt_la.py --config.data.root=DIR --config.data.num_labelled=8

Published, 8 labelled (Dice / Jaccard / 95HD / ASD): 85.81 / 75.41 / 18.25 / 5.04 (CAML, Table 1). A step takes five passes of the teacher.
"""

from configs import common


def get_config():
  """Returns the configuration."""
  config = common.left_atrium(common.base("ua_mt"))
  config.train.phases = (("train", 15000),)  # [C] of MC-Net and CAML; UA-MT itself 6,000
  return config
