"""CRLN on the Left Atrium, published settings.

    python -m ssl_jax.main --config=configs/crln_la.py --config.data.root=DIR --config.data.num_labelled=8

Published (Dice / Jaccard / ASD / 95HD, last checkpoint): 8 labelled 91.74 / 84.79 / 1.46 / 4.60; 16 labelled 91.88 / 85.05 / 1.46 / 4.51.
The paper has no 4 labelled. 9,000 steps: about 1.6 hours at the published 0.651 s a step (RTX 3090).
"""

from configs import common


def get_config():
  """Returns the configuration."""
  config = common.left_atrium(common.base("crln"))
  config.optim.lr = 2.5e-3  # [P]
  config.optim.weight_decay = 5e-4  # [P]
  config.optim.schedule = "poly"  # [P]
  config.train.phases = (("train", 9000),)  # [L]
  return config
