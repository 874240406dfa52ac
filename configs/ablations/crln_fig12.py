"""CRLN, Fig. 12: S, the step at which rectification starts. Left Atrium, 8 labelled scans.

    python -m ssl_jax.sweep --sweep=configs/ablations/crln_fig12.py --seeds=1337,3407,10000 --config.data.root=DIR

4 variants of 9,000 steps: about 7 hours a seed at the published 0.651 s a step (RTX 3090).
"""

from ssl_jax.sweep import Sweep, Variant

FULL = {"dice": 91.74, "jaccard": 84.79, "asd": 1.46, "hd95": 4.60}  # Left Atrium, 8 labelled; the other rows' numbers are not at hand


def get_sweep():
  """Returns the sweep."""
  variants = tuple(Variant(f"S={step}", {"method.rectify_from_step": step}, FULL if step == 800 else {}) for step in (400, 800, 1200, 1600))
  return Sweep("configs/crln_la.py", variants, title="CRLN, Fig. 12: first step with rectification")
