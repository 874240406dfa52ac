"""CAML on the Left Atrium, published settings.

    python -m ssl_jax.main --config=configs/caml_la.py --config.data.root=DIR --config.data.num_labelled=8

Ramp-up: `--config.method.ramp=40` for 4 labelled scans, 20 for 8, 15 for 16 [C].
Published (Dice / Jaccard / 95HD / ASD, last checkpoint, three seeds): 4 labelled 87.34 / 77.65 / 9.76 / 2.49; 8 89.62 / 81.28 / 8.76 /
2.02; 16 90.78 / 83.19 / 6.11 / 1.68. The authors report 3.7 s a step for their bank alone (TITAN RTX), 15 hours for 15,000 steps.
"""

from configs import common


def get_config():
  """Returns the configuration."""
  config = common.left_atrium(common.base("caml"))
  config.train.phases = (("train", 15000),)  # [C]; constant rate 0.01
  return config
