"""CRLN on BraTS 2019, published settings.

    python -m ssl_jax.main --config=configs/crln_brats.py --config.data.root=DIR --config.data.num_labelled=25

Published (Dice / Jaccard / ASD / 95HD, last checkpoint): 25 labelled 86.73 / 77.85 / 1.67 / 7.15; 50 labelled 87.17 / 78.19 / 1.62 / 6.79.
"""

from configs import common


def get_config():
  """Returns the configuration."""
  config = common.brats(common.base("crln"))
  config.optim.lr = 2.5e-3  # [P]
  config.optim.weight_decay = 5e-4  # [P]
  config.optim.schedule = "poly"  # [P]
  config.train.phases = (("train", 30000),)  # [L]
  return config
