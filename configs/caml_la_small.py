"""CAML on the Left Atrium at half resolution, for two CPU cores; compare with `supervised_la_small.py`, same steps.

    python -m ssl_jax.main --config=configs/caml_la_small.py --config.data.root=DIR

Results: docs/results/la_small.md.
"""

from configs import common


def get_config():
  """Returns the configuration."""
  config = common.left_atrium_small(common.base("caml"))
  config.method.ramp_unit_steps = 40  # [D] the published ramp-up covers a fifth of the run; so does this one
  config.method.rows = 1600  # [D] an eighth of the voxels, an eighth of the rows
  config.method.slots = 512  # [D]
  return config
