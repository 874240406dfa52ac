"""CRLN, Table 7: how pseudo-labels and 𝓜(x) are combined; v1 fixed, v2 convolution, v3 one learned µ. Left Atrium, 8 labelled scans.

    python -m ssl_jax.sweep --sweep=configs/ablations/crln_table7.py --seeds=1337,3407,10000 --config.data.root=DIR

3 variants of 9,000 steps: about 5 hours a seed at the published 0.651 s a step (RTX 3090).
"""

from ssl_jax.sweep import Sweep, Variant

FULL = {"dice": 91.74, "jaccard": 84.79, "asd": 1.46, "hd95": 4.60}  # Left Atrium, 8 labelled; the other rows' numbers are not at hand


def get_sweep():
  """Returns the sweep."""
  return Sweep(
    "configs/crln_la.py",
    (
      Variant("fixed", {"method.mechanism": "fixed"}),
      Variant("conv", {"method.mechanism": "conv"}),
      Variant("learnable_mu", {"method.mechanism": "learnable_mu"}, FULL),
    ),
    title="CRLN, Table 7: rectification mechanism",
  )
