"""CRLN, Fig. 10: R, the number of prototypes per class. Left Atrium, 8 labelled scans.

    python -m ssl_jax.sweep --sweep=configs/ablations/crln_fig10.py --seeds=1337,3407,10000 --config.data.root=DIR

5 variants of 9,000 steps: about 8 hours a seed at the published 0.651 s a step (RTX 3090).
"""

from ssl_jax.sweep import Sweep, Variant

FULL = {"dice": 91.74, "jaccard": 84.79, "asd": 1.46, "hd95": 4.60}  # Left Atrium, 8 labelled; the other rows' numbers are not at hand


def get_sweep():
  """Returns the sweep."""
  variants = tuple(Variant(f"R={groups}", {"method.groups": groups}, FULL if groups == 16 else {}) for groups in (1, 4, 8, 16, 32))
  return Sweep("configs/crln_la.py", variants, title="CRLN, Fig. 10: prototypes per class")
