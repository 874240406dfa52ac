"""CML, Fig. 6: β, the side of the CutMix box; cross pseudo supervision alone (CPS) and with L_dis (CFL). Left Atrium, 8 labelled scans.

    python -m ssl_jax.sweep --sweep=configs/ablations/cml_fig6.py --seeds=1337,3407,10000 --config.data.root=DIR

6 variants of 2,000 and 15,000 steps. Not timed here at this size yet.
"""

from ssl_jax.sweep import Sweep, Variant

FULL = {"dice": 90.36, "hd95": 6.06, "asd": 1.68}  # Left Atrium, 8 labelled; the other rows' numbers are not at hand


def get_sweep():
  """Returns the sweep."""
  sizes = {"1of3": 1 / 3, "1of2": 1 / 2, "2of3": 2 / 3, "5of6": 5 / 6}
  return Sweep(
    "configs/cml_la.py",
    (
      Variant("cps", {"method.mode": "cps"}),
      Variant("cfl", {"method.mode": "cfl"}),
      *(
        Variant(f"cml_beta={name}", {"method.mode": "cml", "method.cutmix_size": size}, FULL if name == "2of3" else {})
        for name, size in sizes.items()
      ),
    ),
    title="CML, Fig. 6: size of the CutMix box, and the parts of cross-view mutual learning",
  )
