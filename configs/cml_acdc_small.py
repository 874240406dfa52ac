"""CML on ACDC at 128², for two CPU cores, evaluated on val.list; compare with `supervised_acdc_small.py`, same steps.

    python -m ssl_jax.main --config=configs/cml_acdc_small.py --config.data.root=DIR

Results: docs/results/acdc_small.md.
"""

from configs import cml_acdc, common


def get_config():
  """Returns the configuration."""
  config = common.small_slices(cml_acdc.get_config())
  config.data.test_list = "val.list"
  config.train.phases = (("pretrain", 500), ("selftrain", 1000))
  return config
