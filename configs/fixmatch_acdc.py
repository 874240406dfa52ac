"""FixMatch on ACDC.

    python -m ssl_jax.main --config=configs/fixmatch_acdc.py --config.data.root=DIR --config.data.num_labelled=136

No numbers at these settings are in the four papers' tables. With one labelled slice it has a DSC of 0.529 in CMEMS's Table 2,
where the threshold is 0.8: --config.method.threshold=0.8.
"""

from configs import common


def get_config():
  """Returns the configuration."""
  config = common.acdc(common.base("fixmatch"))
  config.train.phases = (("train", 30000),)  # [L]
  config.optim.schedule = "poly"  # [L]
  return config
