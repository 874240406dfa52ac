"""CRLN, Table 6: how DIM turns similarity maps into one map per class. Left Atrium, 8 labelled scans.

    python -m ssl_jax.sweep --sweep=configs/ablations/crln_table6.py --seeds=1337,3407,10000 --config.data.root=DIR

4 variants of 9,000 steps: about 7 hours a seed at the published 0.651 s a step (RTX 3090).
"""

from ssl_jax.sweep import Sweep, Variant

FULL = {"dice": 91.74, "jaccard": 84.79, "asd": 1.46, "hd95": 4.60}  # Left Atrium, 8 labelled; the other rows' numbers are not at hand


def get_sweep():
  """Returns the sweep."""
  return Sweep(
    "configs/crln_la.py",
    (
      Variant("no_spatial", {"method.spatial": "none"}),
      Variant("no_integrate", {"method.integrate": "sum"}),
      Variant("no_cross_class", {"method.cross_class": False}),
      Variant("all", {}, FULL),
    ),
    title="CRLN, Table 6: aggregation in the Dynamic Interaction Module",
  )
