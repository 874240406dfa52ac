"""BCP on the Left Atrium.

    python -m ssl_jax.main --config=configs/bcp_la.py --config.data.root=DIR --config.data.num_labelled=8

Published Dice, 8 labelled: 89.62. The published code picks both phases' checkpoints by their Dice on the test list; here both are the last
ones.
"""

from configs import common


def get_config():
  """Returns the configuration."""
  config = common.left_atrium(common.base("bcp"))
  config.train.phases = (("pretrain", 2000), ("selftrain", 15000))  # [P, C]
  config.train.batch_labelled = 4  # [P, C]
  config.train.batch_unlabelled = 4
  config.optim.schedule = "step"  # [P, C] × 0.1 every 2,500 steps of the second phase
  config.optim.step_from = 2000
  return config
