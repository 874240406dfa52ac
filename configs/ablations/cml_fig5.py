"""CML, Fig. 5: λ1 of the pseudo-labels against λ2 of the discrepancy. Left Atrium, 8 labelled scans.

    python -m ssl_jax.sweep --sweep=configs/ablations/cml_fig5.py --seeds=1337,3407,10000 --config.data.root=DIR

16 variants of 2,000 and 15,000 steps. Not timed here at this size yet.
"""

from ssl_jax.sweep import Sweep, Variant

FULL = {"dice": 90.36, "hd95": 6.06, "asd": 1.68}  # Left Atrium, 8 labelled; the other rows' numbers are not at hand


def get_sweep():
  """Returns the sweep."""
  values = (0.1, 0.2, 0.5, 1.0)
  variants = tuple(
    Variant(
      f"lambda1={pseudo}_lambda2={discrepancy}",
      {"method.weights.pseudo": pseudo, "method.weights.discrepancy": discrepancy},
      FULL if (pseudo, discrepancy) == (1.0, 0.2) else {},
    )
    for pseudo in values
    for discrepancy in values
  )
  return Sweep("configs/cml_la.py", variants, title="CML, Fig. 5: weights of the terms")
