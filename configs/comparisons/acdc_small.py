"""All methods on ACDC at 128², the slices of 7 labelled patients, 1,500 steps, evaluated on val.list.

    python -m ssl_jax.sweep --sweep=configs/comparisons/acdc_small.py --config.data.root=DIR

Each as in its own configuration, at the data, backbone, batch, optimizer and length of `supervised_acdc_small.py`. Published numbers: 256²,
7 patients, the official test patients (CML, Table 2; BCP: its own). Results: docs/results/comparison.md.
"""

from configs import common
from configs.comparisons.common import compare


def numbers(dice, hd95, asd):
  """Returns a row of a paper's table."""
  return {"dice": dice, "hd95": hd95, "asd": asd}


PUBLISHED = {
  "supervised": numbers(79.41, 9.35, 2.70),
  "entropy_min": {},
  "ua_mt": numbers(81.65, 6.88, 2.02),
  "ict": {},
  "cps": {},
  "fixmatch": {},
  "dan": {},
  "sassnet": {},
  "dtc": {},
  "urpc": {},
  "mc_net": numbers(86.44, 5.50, 1.84),
  "mc_net_plus": {},
  "ss_net": numbers(86.78, 6.07, 1.40),
  "traco_co": {},
  "mcf": numbers(87.67, 3.89, 1.14),
  "bcp": {"dice": 88.84},
  "cml": numbers(89.42, 1.42, 0.52),
}


def get_sweep():
  """Returns the sweep."""
  return compare("supervised_acdc_small", "acdc", common.small_slices, 1500, PUBLISHED, "ACDC at 128², 7 patients; published: 256²")
