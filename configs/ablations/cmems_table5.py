"""CMEMS, Table 5: whose view and labels the feature perturbation learns from. ACDC.

    python -m ssl_jax.sweep --sweep=configs/ablations/cmems_table5.py --seeds=1337,3407,10000 --config.data.root=DIR

2 variants of 30,000 steps. Not timed here at this size yet.
"""

from ssl_jax.sweep import Sweep, Variant

FULL = {"dice": 81.7, "hd95": 7.35}  # ACDC; the other rows' numbers are not at hand


def get_sweep():
  """Returns the sweep."""
  variants = tuple(
    Variant(kind, {"method.feature_perturbation": kind}, FULL if kind == "cross" else {}) for kind in ("cross", "individual")
  )
  return Sweep("configs/cmems_acdc.py", variants, title="CMEMS, Table 5: feature perturbation")
