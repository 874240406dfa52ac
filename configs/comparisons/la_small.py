"""All methods on the Left Atrium at half resolution, 8 labelled scans, 1,500 steps, evaluated on the 16 held-out scans.

    python -m ssl_jax.sweep --sweep=configs/comparisons/la_small.py --config.data.root=DIR

Each with its own options, at the data, batch of 2 + 2, optimizer, width and length of `supervised_la_small.py`. Published numbers:
112×112×80, the official test scans.
"""

from configs import common
from configs.comparisons.common import compare

METHODS = (
  "supervised",
  "entropy_min",
  "mean_teacher",
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
  "caml",
  "cml",
  "crln",
)
TITLE = "Left Atrium at half resolution, 8 labelled; published: 112×112×80"


def get_sweep():
  """Returns the sweep."""
  return compare("supervised_la_small", "la", common.left_atrium_small, 1500, METHODS, TITLE)
