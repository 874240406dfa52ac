"""All methods on the Left Atrium at half resolution, 8 labelled scans, 4,000 steps, evaluated on the 16 held-out scans.

    python -m ssl_jax.sweep --sweep=configs/comparisons/la_small.py --config.data.root=DIR

Each as in its own configuration, at the data, backbone, batch of 2 + 2, optimizer and length of `supervised_la_small.py`. Published:
112×112×80, 8 labelled, the official test scans (CAML, Table 1; CRLN, CML, BCP: their own tables). Results: docs/results/comparison.md.
"""

from configs import common
from configs.comparisons.common import compare


def numbers(dice, jaccard, hd95, asd):
  """Returns a row of a paper's table."""
  return {"dice": dice, "jaccard": jaccard, "hd95": hd95, "asd": asd}


PUBLISHED = {
  "supervised": numbers(79.87, 67.60, 26.65, 7.94),
  "entropy_min": {},
  "mean_teacher": {},
  "ua_mt": numbers(85.81, 75.41, 18.25, 5.04),
  "ict": {},
  "cps": {},
  "fixmatch": {},
  "dan": {},
  "sassnet": numbers(85.71, 75.35, 14.74, 4.00),
  "dtc": numbers(84.55, 73.91, 13.80, 3.69),
  "urpc": numbers(83.37, 71.99, 17.91, 4.41),
  "mc_net": numbers(86.87, 78.49, 11.17, 2.18),
  "mc_net_plus": numbers(87.68, 78.27, 10.35, 1.85),
  "ss_net": numbers(86.56, 76.61, 12.76, 3.02),
  "traco_co": {},
  "mcf": {},
  "bcp": {"dice": 89.62},
  "caml": numbers(89.62, 81.28, 8.76, 2.02),
  "cml": {"dice": 90.36, "hd95": 6.06, "asd": 1.68},
  "crln": {"dice": 91.74, "jaccard": 84.79, "hd95": 4.60, "asd": 1.46},
}


def get_sweep():
  """Returns the sweep."""
  return compare(
    "supervised_la_small",
    "la",
    common.left_atrium_small,
    4000,
    PUBLISHED,
    "Left Atrium at half resolution, 8 labelled; published: 112×112×80",
  )
