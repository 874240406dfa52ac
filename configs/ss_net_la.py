"""SS-Net on the Left Atrium, published settings.

    python -m ssl_jax.main --config=configs/ss_net_la.py --config.data.root=DIR --config.data.num_labelled=8

Published (Dice / Jaccard / 95HD / ASD), 8 labelled: 86.56 / 76.61 / 12.76 / 3.02 at the last step (CAML, Table 1). The authors' own
88.55 / 79.62 / 7.49 / 1.90 is of the checkpoint that is best on the test list: --config.eval.select=published.
"""

from configs import common


def get_config():
  """Returns the configuration."""
  config = common.left_atrium(common.base("ss_net"))
  config.train.phases = (("train", 15000),)  # [C]
  config.optim.schedule = "step"  # [C] × 0.1 every 2,500 steps
  return config
