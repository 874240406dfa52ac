"""CRLN on Pancreas-CT, published settings.

    python -m ssl_jax.main --config=configs/crln_pancreas.py --config.data.root=DIR --config.data.num_labelled=12

Published (Dice / Jaccard / ASD / 95HD, last checkpoint): 6 labelled 79.17 / 66.32 / 1.94 / 7.27; 12 labelled 82.76 / 70.90 / 1.35 / 4.81.
"""

from configs import common


def get_config():
  """Returns the configuration."""
  config = common.pancreas(common.base("crln"))
  config.optim.lr = 2.5e-3  # [P]
  config.optim.weight_decay = 5e-4  # [P]
  config.optim.schedule = "poly"  # [P]
  config.train.phases = (("train", 10000),)  # [L]
  return config
