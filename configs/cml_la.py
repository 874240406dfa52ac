"""CML on the Left Atrium, published settings.

    python -m ssl_jax.main --config=configs/cml_la.py --config.data.root=DIR --config.data.num_labelled=8

Published (Dice / 95HD / ASD): 4 labelled 87.63 / 8.92 / 2.23; 8 90.36 / 6.06 / 1.68. The published code picks both stages' checkpoints by
their Dice on the test list; here both are the last ones.
"""

from configs import common


def get_config():
  """Returns the configuration."""
  config = common.left_atrium(common.base("cml"))
  config.train.phases = (("pretrain", 2000), ("selftrain", 15000))  # [P, C]
  config.train.batch_labelled = 4  # [P, C]
  config.train.batch_unlabelled = 4
  config.optim.schedule = "step"  # [C] × 0.1 every 2,500 steps of the second stage; not in [P]: --config.optim.schedule=constant
  config.optim.step_from = 2000
  return config
