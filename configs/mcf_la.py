"""MCF on the Left Atrium.

    python -m ssl_jax.main --config=configs/mcf_la.py --config.data.root=DIR --config.data.num_labelled=8

The four papers' tables have no numbers of it with 8 labelled.
"""

from configs import common


def get_config():
  """Returns the configuration."""
  config = common.left_atrium(common.base("mcf"))
  config.train.phases = (("train", 6000),)  # [C]
  config.optim.schedule = "step"  # × 0.1 every 2,500 steps [C]
  return config
