"""CML on the Left Atrium at half resolution, for two CPU cores; compare with `supervised_la_small.py`, same steps.

    python -m ssl_jax.main --config=configs/cml_la_small.py --config.data.root=DIR

Results: docs/results/la_small.md.
"""

from configs import common


def get_config():
  """Returns the configuration."""
  config = common.left_atrium_small(common.base("cml"))
  config.train.phases = (("pretrain", 800), ("selftrain", 3200))  # batch 2 + 2 as the other methods, half of the published one
  return config
