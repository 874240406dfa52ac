"""CAML on the Left Atrium at half resolution, for two CPU cores; compare with `supervised_la_small.py`, same steps.

    python -m ssl_jax.main --config=configs/caml_la_small.py --config.data.root=DIR

Results: docs/results/la_small.md.
"""

from configs import caml_la, common


def get_config():
  """Returns the configuration."""
  config = common.left_atrium_small(caml_la.get_config())
  config.method.rows = 1600  # [D] an eighth of the voxels, an eighth of the rows
  config.method.slots = 512  # [D]
  return config
