"""ELSNet on ACDC with one labelled slice, in the setting of CMEMS.

    python -m ssl_jax.main --config=configs/els_net_acdc.py --config.data.root=DIR

Published: DSC 0.410 on 20 test patients (CMEMS, Table 2). Without a test.list: --config.data.test_list=val.list.
"""

from configs import common


def get_config():
  """Returns the configuration."""
  config = common.one_exemplar(common.acdc(common.base("els_net")))
  config.data.synthesis.per_background = 15  # as CMEMS has it
  config.train.phases = (("pretrain", 15000), ("selftrain", 15000))  # [D]
  return config
