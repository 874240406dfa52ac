"""mean_teacher on the Left Atrium at half resolution, for two CPU cores; compare with `crln_la_small.py`, same steps.

    python -m ssl_jax.main --config=configs/mean_teacher_la_small.py --config.data.root=DIR

Results: docs/results/la_small.md.
"""

from configs import common, mean_teacher_la


def get_config():
  """Returns the configuration."""
  return common.left_atrium_small(mean_teacher_la.get_config())
