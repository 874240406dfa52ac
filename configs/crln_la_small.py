"""CRLN on the Left Atrium at half resolution, for two CPU cores; same steps as `supervised_la_small.py` and `mean_teacher_la_small.py`.

    python -m ssl_jax.main --config=configs/crln_la_small.py --config.data.root=DIR

Results: docs/results/la_small.md.
"""

from configs import common


def get_config():
  """Returns the configuration."""
  config = common.left_atrium_small(common.base("crln"))
  config.method.student_views = "apart"  # [D] running averages of strong views spoil those of whole scans
  config.method.rectify_from_step = 800  # [D] as at full length
  config.method.unlabelled_ramp_steps = 1600  # [D] 40 % of the steps; without it early mistakes are learned by heart
  config.method.tau = 0.9  # [D]
  config.method.weights.cps = 0.1  # [D] ln 513 against losses of 0.1 drowns the segmentation in a short run
  return config
