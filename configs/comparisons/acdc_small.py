"""All methods on ACDC at 128², the slices of 7 labelled patients, 1,500 steps, evaluated on val.list.

    python -m ssl_jax.sweep --sweep=configs/comparisons/acdc_small.py --config.data.root=DIR

Each with its own options, at the data, batch, optimizer, width and length of `supervised_acdc_small.py`. Published numbers: 256², the
official test patients.
"""

from configs import common
from configs.comparisons.common import compare

METHODS = (
  "supervised",
  "entropy_min",
  "ua_mt",
  "ict",
  "cps",
  "fixmatch",
  "dan",
  "sassnet",
  "dtc",
  "urpc",
  "mc_net",
  "mc_net_plus",
  "ss_net",
  "traco_co",
  "mcf",
  "bcp",
  "cml",
)
TITLE = "ACDC at 128², 7 patients; published: 256²"


def get_sweep():
  """Returns the sweep."""
  return compare("supervised_acdc_small", "acdc", common.small_slices, 1500, METHODS, TITLE)
