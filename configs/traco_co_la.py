"""TraCoCo on the Left Atrium, published settings.

    python -m ssl_jax.main --config=configs/traco_co_la.py --config.data.root=DIR --config.data.num_labelled=8

Published (Dice / Jaccard / 95HD / ASD): 8 labelled 89.29 / 80.82 / 6.92 / 2.28; 16 90.94 / 83.47 / 5.49 / 1.79 (the authors' page).
The published code trains 9,000 steps with 16 labelled scans; the number with 8 is that of the other methods [L].
"""

from configs import common


def get_config():
  """Returns the configuration."""
  config = common.left_atrium(common.base("traco_co"))
  config.train.phases = (("train", 15000),)
  config.optim.lr = 0.05  # [C]
  config.optim.schedule = "poly"  # [C]
  return config
