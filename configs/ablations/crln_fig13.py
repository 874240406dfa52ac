"""CRLN, Fig. 13: ξ, the share of prototypes in the positive of eq. 13. Left Atrium, 8 labelled scans.

    python -m ssl_jax.sweep --sweep=configs/ablations/crln_fig13.py --seeds=1337,3407,10000 --config.data.root=DIR

6 variants of 9,000 steps: about 10 hours a seed at the published 0.651 s a step (RTX 3090).
"""

from ssl_jax.sweep import Sweep, Variant

FULL = {"dice": 91.74, "jaccard": 84.79, "asd": 1.46, "hd95": 4.60}  # Left Atrium, 8 labelled; the other rows' numbers are not at hand


def get_sweep():
  """Returns the sweep."""
  variants = tuple(Variant(f"xi={xi}", {"method.xi": xi}, FULL if xi == 0.6 else {}) for xi in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0))
  return Sweep("configs/crln_la.py", variants, title="CRLN, Fig. 13: weight of the prototypes in the unassertive positive")
