"""CRLN, Table 5: from consistency learning to the whole method, one part after the other. Left Atrium, 8 labelled scans.

    python -m ssl_jax.sweep --sweep=configs/ablations/crln_table5.py --seeds=1337,3407,10000 --config.data.root=DIR

6 variants of 9,000 steps: about 10 hours a seed at the published 0.651 s a step (RTX 3090).
"""

from ssl_jax.sweep import Sweep, Variant

FULL = {"dice": 91.74, "jaccard": 84.79, "asd": 1.46, "hd95": 4.60}  # Left Atrium, 8 labelled; the other rows' numbers are not at hand

NO_RECTIFICATION = {"method.mechanism": "none", "method.weights.dim": 0.0}
NO_CPS = {"method.weights.cps": 0.0}


def get_sweep():
  """Returns the sweep."""
  return Sweep(
    "configs/crln_la.py",
    (
      Variant("baseline", {**NO_RECTIFICATION, **NO_CPS, "method.strong_view": "centre_crop", "method.noise": 0.0}),
      Variant("cutmix_noise", {**NO_RECTIFICATION, **NO_CPS}),
      Variant("crln_dim", NO_CPS),
      Variant("cps_mr", {"method.positive": "mean"}),
      Variant("cps_lp", {"method.positive": "prototype"}),
      Variant("cps", {"method.positive": "unassertive"}, FULL),
    ),
    title="CRLN, Table 5: components",
  )
