"""Three methods on synthetic atria, at equal steps. Two CPU cores, two minutes to over ten, no data needed.

    make quickstart

Two of 24 phantom scans are labelled; the table shows 8 test scans. Settings are for 320 steps, not the papers'.
"""

from configs import common


def get_config():
  """Returns the configuration."""
  config = common.base("supervised")
  config.data.source = "phantom"
  config.data.split = "official"
  config.data.num_labelled = 2
  config.data.patch = (32, 32, 32)
  config.network.width = 8
  config.optim.lr = 0.02
  config.optim.schedule = "poly"
  config.train.phases = (("train", 320),)
  config.train.checkpoint_every_steps = 100
  config.eval.stride = (16, 16, 16)
  config.eval.window_batch = 4
  config.compare.supervised = common.method("supervised")
  config.compare.mean_teacher = common.method("mean_teacher", ramp_unit_steps=1, ramp=120.0)
  config.compare.crln = common.method(
    "crln", groups=4, rectify_from_step=100, unlabelled_ramp_steps=120, tau=0.9, anchors=64, negatives=128, weights={"cps": 0.1}
  )
  return config
