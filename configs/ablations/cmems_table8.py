"""CMEMS, Table 8: another exemplar, the next best slices that hold every class. ACDC.

    python -m ssl_jax.sweep --sweep=configs/ablations/cmems_table8.py --seeds=1337,3407,10000 --config.data.root=DIR

3 variants of 30,000 steps. Not timed here at this size yet.
"""

from ssl_jax.sweep import Sweep, Variant

FULL = {"dice": 81.7, "hd95": 7.35}  # ACDC; the other rows' numbers are not at hand


def get_sweep():
  """Returns the sweep."""
  variants = tuple(Variant(f"exemplar={rank}", {"data.synthesis.exemplar_rank": rank}, {} if rank else FULL) for rank in range(3))
  return Sweep("configs/cmems_acdc.py", variants, title="CMEMS, Table 8: choice of the exemplar")
