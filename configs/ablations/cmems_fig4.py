"""CMEMS, Fig. 4: confidence threshold τ and intensity α of the colour jitter, one at a time. ACDC. The values tried are ours [D].

    python -m ssl_jax.sweep --sweep=configs/ablations/cmems_fig4.py --seeds=1337,3407,10000 --config.data.root=DIR

8 variants of 30,000 steps. Not timed here at this size yet.
"""

from ssl_jax.sweep import Sweep, Variant

FULL = {"dice": 81.7, "hd95": 7.35}  # ACDC; the other rows' numbers are not at hand


def get_sweep():
  """Returns the sweep."""
  others = {"threshold": (0.5, 0.7, 0.9, 0.95), "colour_jitter": (0.2, 0.5, 0.8)}
  published = Variant("published", published=FULL)
  variants = tuple(Variant(f"{key}={value}", {f"method.{key}": value}) for key, tried in others.items() for value in tried)
  return Sweep("configs/cmems_acdc.py", (published, *variants), title="CMEMS, Fig. 4: threshold and colour jitter")
