"""One labelled slice of ACDC at 128², 1,200 steps, evaluated on val.list: the setting of CMEMS.

    python -m ssl_jax.sweep --sweep=configs/comparisons/acdc_exemplar_small.py --config.data.root=DIR

Published numbers: 224², 20 test patients (CMEMS, Table 2). Results: docs/results/comparison.md.
"""

from configs import common
from configs.comparisons.common import compare

PUBLISHED = {
  "supervised": {"dice": 14.2},
  "cps": {"dice": 19.4},
  "fixmatch": {"dice": 52.9},
  "els_net": {"dice": 41.0},
  "cmems": {"dice": 81.7, "hd95": 7.35},
}


def get_sweep():
  """Returns the sweep."""
  return compare("cmems_acdc_small", "acdc", common.small_slices, 1200, PUBLISHED, "One labelled slice of ACDC at 128²; published: 224²")
