"""BCP on ACDC.

    python -m ssl_jax.main --config=configs/bcp_acdc.py --config.data.root=DIR --config.data.num_labelled=136

Published Dice, 7 patients: 88.84. The published code picks both phases' checkpoints by their Dice on its validation list; here both are
the last ones.
"""

from configs import common


def get_config():
  """Returns the configuration."""
  config = common.acdc(common.base("bcp"))
  config.train.phases = (("pretrain", 10000), ("selftrain", 30000))  # [P, C]
  return config
