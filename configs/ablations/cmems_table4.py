"""CMEMS, Table 4: one weak view for both networks, of the exemplar (e), synthetic (s) and unlabelled (u) images, or two. ACDC.

    python -m ssl_jax.sweep --sweep=configs/ablations/cmems_table4.py --seeds=1337,3407,10000 --config.data.root=DIR

8 variants of 30,000 steps. Not timed here at this size yet.
"""

import itertools

from ssl_jax.sweep import Sweep, Variant

FULL = {"dice": 81.7, "hd95": 7.35}  # ACDC; the other rows' numbers are not at hand


def get_sweep():
  """Returns the sweep."""
  streams = {"e": "labelled", "s": "synthetic", "u": "unlabelled"}
  subsets = [subset for size in range(4) for subset in itertools.combinations(streams, size)]
  variants = tuple(
    Variant("same_" + ("".join(s) or "none"), {"method.same_views": tuple(streams[k] for k in s)}, {} if s else FULL) for s in subsets
  )
  return Sweep("configs/cmems_acdc.py", variants, title="CMEMS, Table 4: independent or shared weak views")
