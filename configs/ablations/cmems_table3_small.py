"""CMEMS, Table 3, in the small setting of `cmems_acdc_small.py`: its rows, with the paper's numbers at full size beside ours.

    python -m ssl_jax.sweep --sweep=configs/ablations/cmems_table3_small.py --config.data.root=DIR

5 variants. Results: docs/results/acdc_small.md.
"""

import dataclasses

from configs.ablations import cmems_table3


def get_sweep():
  """Returns the sweep."""
  return dataclasses.replace(
    cmems_table3.get_sweep(), config="configs/cmems_acdc_small.py", title="CMEMS, Table 3 at 128²; published: 224², 30,000 steps"
  )
