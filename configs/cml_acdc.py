"""CML on ACDC, published settings.

    python -m ssl_jax.main --config=configs/cml_acdc.py --config.data.root=DIR --config.data.num_labelled=136

Published (Dice / 95HD / ASD): 3 patients (68 slices) 88.53 / 1.87 / 0.57; 7 (136) 89.42 / 1.42 / 0.52. The published code passes one
network twice: --config.method.shared_weights=True.
"""

from configs import common


def get_config():
  """Returns the configuration."""
  config = common.acdc(common.base("cml", weights={"pseudo": 0.5, "discrepancy": 0.1}, cutmix_size=0.5))  # λ1, λ2, β [P, C]
  config.train.phases = (("pretrain", 10000), ("selftrain", 30000))  # [P, C]
  return config
