"""CMEMS on Synapse (8 abdominal organs) with one labelled slice, published settings.

    python -m ssl_jax.main --config=configs/cmems_synapse.py --config.data.root=DIR

Published: DSC 0.597, 95HD 55.02. DIR is TransUNet's release; with the original NIfTI files: --config.data.source=synapse_nifti.
"""

from configs import common


def get_config():
  """Returns the configuration."""
  config = common.one_exemplar(common.base("cmems", colour_jitter=0.2, weights={"image": 0.1}))  # α = 0.2, λ_cmip = 0.1 [P]
  config.data.source = "synapse_npz"
  config.data.root = "data/synapse"
  config.data.split = "official"
  config.data.synthesis.per_background = 10  # [P]
  return config
