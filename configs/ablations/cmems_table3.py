"""CMEMS, Table 3: from one labelled slice to the whole method. ACDC.

    python -m ssl_jax.sweep --sweep=configs/ablations/cmems_table3.py --seeds=1337,3407,10000 --config.data.root=DIR

5 variants of 30,000 steps. Not timed here at this size yet.
"""

from ssl_jax.sweep import Sweep, Variant

FULL = {"dice": 81.7, "hd95": 7.35}  # ACDC; the other rows' numbers are not at hand

NO_SYNTHETIC = {"method.weights.synthetic": 0.0}
NO_CM = {"method.weights.image": 0.0}
NO_IP = {"method.colour_jitter": 0.0}
NO_FP = {"method.weights.feature": 0.0}


def get_sweep():
  """Returns the sweep."""
  variants = (
    Variant("D_E", {**NO_SYNTHETIC, **NO_CM, **NO_FP}),
    Variant("D_E+D_S", {**NO_CM, **NO_FP}),
    Variant("CM", {**NO_IP, **NO_FP}),
    Variant("CM+IP", NO_FP),
    Variant("CM+IP+FP", {}, FULL),
  )
  return Sweep("configs/cmems_acdc.py", variants, title="CMEMS, Table 3: components")
