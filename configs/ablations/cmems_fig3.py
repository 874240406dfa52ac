"""CMEMS, Fig. 3: weights of the two mutual terms, one at a time. ACDC. The values tried are ours [D].

    python -m ssl_jax.sweep --sweep=configs/ablations/cmems_fig3.py --seeds=1337,3407,10000 --config.data.root=DIR

9 variants of 30,000 steps. Not timed here at this size yet.
"""

from ssl_jax.sweep import Sweep, Variant

FULL = {"dice": 81.7, "hd95": 7.35}  # ACDC; the other rows' numbers are not at hand


def get_sweep():
  """Returns the sweep."""
  others = {"image": (0.01, 0.1, 0.5, 2.0), "feature": (0.01, 0.05, 0.5, 1.0)}
  published = Variant("published", published=FULL)
  variants = tuple(Variant(f"{term}={value}", {f"method.weights.{term}": value}) for term, tried in others.items() for value in tried)
  return Sweep("configs/cmems_acdc.py", (published, *variants), title="CMEMS, Fig. 3: weights of the terms")
