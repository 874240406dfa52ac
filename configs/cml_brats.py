"""CML on BraTS 2019, published settings.

    python -m ssl_jax.main --config=configs/cml_brats.py --config.data.root=DIR --config.data.num_labelled=25

Published (Dice / 95HD / ASD): 25 labelled 85.26 / 9.08 / 1.83; 50 labelled 86.63 / 7.83 / 1.45.
"""

from configs import common


def get_config():
  """Returns the configuration."""
  config = common.brats(common.base("cml"))
  config.train.phases = (("pretrain", 10000), ("selftrain", 30000))  # [P]
  config.train.batch_labelled = 4  # [D] as on the Left Atrium
  config.train.batch_unlabelled = 4
  return config
