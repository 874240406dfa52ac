"""CAML, Table 2: cross-sample mutual attention (CMA) and omni-correlation consistency (OCC), on and off. Left Atrium, 8 labelled scans.

    python -m ssl_jax.sweep --sweep=configs/ablations/caml_table2.py --seeds=1337,3407,10000 --config.data.root=DIR

4 variants of 15,000 steps. Not timed here at this size yet.
"""

from ssl_jax.sweep import Sweep, Variant

FULL = {"dice": 89.62, "jaccard": 81.28, "hd95": 8.76, "asd": 2.02}  # Table 1; the other rows' numbers are not at hand


def get_sweep():
  """Returns the sweep."""
  return Sweep(
    "configs/caml_la.py",
    (
      Variant("baseline", {"method.cma": False, "method.weights.occ": 0.0}),
      Variant("cma", {"method.cma": True, "method.weights.occ": 0.0}),
      Variant("occ", {"method.cma": False}),
      Variant("cma_occ", {"method.cma": True}, FULL),
    ),
    title="CAML, Table 2: components",
  )
