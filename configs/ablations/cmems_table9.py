"""CMEMS, Table 9: Gaussian blur (GB) and sharpness (AS) beside colour jitter in the strong view. ACDC.

    python -m ssl_jax.sweep --sweep=configs/ablations/cmems_table9.py --seeds=1337,3407,10000 --config.data.root=DIR

4 variants of 30,000 steps. Not timed here at this size yet.
"""

from ssl_jax.sweep import Sweep, Variant

FULL = {"dice": 81.7, "hd95": 7.35}  # ACDC; the other rows' numbers are not at hand


def get_sweep():
  """Returns the sweep."""
  variants = tuple(
    Variant(name, {"method.gaussian_blur": "GB" in name, "method.sharpness": "AS" in name}, FULL if name == "CJ" else {})
    for name in ("CJ", "CJ+GB", "CJ+AS", "CJ+GB+AS")
  )
  return Sweep("configs/cmems_acdc.py", variants, title="CMEMS, Table 9: strong augmentation")
