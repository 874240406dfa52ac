"""Scans in, batches out: one source per layout on disk, splits, weak augmentation and the two-stream pipeline."""

from ssl_jax.data.acdc import prepare_acdc
from ssl_jax.data.brats import prepare_brats
from ssl_jax.data.case import Case, Source
from ssl_jax.data.la import prepare_la
from ssl_jax.data.msd import MsdSource, open_images
from ssl_jax.data.nifti import save_like
from ssl_jax.data.pancreas import prepare_pancreas
from ssl_jax.data.pipeline import batches, check_patch, fingerprint
from ssl_jax.data.preprocess import to_scan
from ssl_jax.data.sources import check_predictable, open_source, prepare_case
from ssl_jax.data.split import Split, make_split
from ssl_jax.data.synapse import prepare_synapse
from ssl_jax.data.synthesis import build_synthetic, with_exemplar

__all__ = [
  "Case",
  "MsdSource",
  "Source",
  "Split",
  "batches",
  "build_synthetic",
  "check_patch",
  "check_predictable",
  "fingerprint",
  "prepare_acdc",
  "prepare_brats",
  "prepare_la",
  "prepare_pancreas",
  "prepare_synapse",
  "make_split",
  "open_images",
  "open_source",
  "prepare_case",
  "save_like",
  "to_scan",
  "with_exemplar",
]
