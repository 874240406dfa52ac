"""CML, Table 4: pseudo-labels (L_sup^u) and conflict-based feature learning (L_dis), on and off. Left Atrium, 8 labelled scans.

    python -m ssl_jax.sweep --sweep=configs/ablations/cml_table4.py --seeds=1337,3407,10000 --config.data.root=DIR

4 variants of 2,000 and 15,000 steps. Not timed here at this size yet.
"""

from ssl_jax.sweep import Sweep, Variant

FULL = {"dice": 90.36, "hd95": 6.06, "asd": 1.68}  # Left Atrium, 8 labelled; the other rows' numbers are not at hand


def get_sweep():
  """Returns the sweep."""
  return Sweep(
    "configs/cml_la.py",
    (
      Variant("baseline", {"method.weights.pseudo": 0.0, "method.weights.discrepancy": 0.0}),
      Variant("sup_u", {"method.weights.discrepancy": 0.0}),
      Variant("dis", {"method.weights.pseudo": 0.0}),
      Variant("sup_u_dis", {}, FULL),
    ),
    title="CML, Table 4: components",
  )
