"""CMEMS on ACDC with one labelled slice, published settings.

    python -m ssl_jax.main --config=configs/cmems_acdc.py --config.data.root=DIR

Published: DSC 0.817 (RV .759, MYO .793, LV .900), 95HD 7.35, on 20 test patients. Without a test.list, evaluate on the validation
patients: --config.data.test_list=val.list.
"""

from configs import common


def get_config():
  """Returns the configuration."""
  config = common.one_exemplar(common.acdc(common.base("cmems", colour_jitter=1.0)))  # α = 1.0 [P]
  config.data.synthesis.per_background = 15  # [P]
  return config
