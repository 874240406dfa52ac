"""Cross pseudo supervision on the Left Atrium.

    python -m ssl_jax.main --config=configs/cps_la.py --config.data.root=DIR --config.data.num_labelled=8

No numbers at these settings are in the four papers' tables.
"""

from configs import common


def get_config():
  """Returns the configuration."""
  config = common.left_atrium(common.base("cps"))
  config.train.phases = (("train", 15000),)  # [L]
  return config
