"""One labelled slice of ACDC at 128², 1,200 steps, evaluated on val.list: the setting of CMEMS.

    python -m ssl_jax.sweep --sweep=configs/comparisons/acdc_exemplar_small.py --config.data.root=DIR

Published numbers: 224², 20 test patients.
"""

from configs import common
from configs.comparisons.common import compare

METHODS = (
  "supervised",
  "cps",
  "fixmatch",
  "els_net",
  "cmems",
)
TITLE = "One labelled slice of ACDC at 128²; published: 224²"


def get_sweep():
  """Returns the sweep."""
  return compare("cmems_acdc_small", "acdc", common.small_slices, 1200, METHODS, TITLE)
