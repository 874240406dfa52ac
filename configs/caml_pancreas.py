"""CAML on Pancreas-CT, settings of its Left Atrium experiments.

    python -m ssl_jax.main --config=configs/caml_pancreas.py --config.data.root=DIR --config.data.num_labelled=12

The paper shows no numbers on this data set.
"""

from configs import common


def get_config():
  """Returns the configuration."""
  config = common.pancreas(common.base("caml"))
  config.train.phases = (("train", 15000),)  # [D] as on the Left Atrium
  return config
