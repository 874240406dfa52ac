"""Scans in, batches out: one source per layout on disk, splits, weak augmentation and the two-stream pipeline."""

from ssl_jax.data.brats import import_brats
from ssl_jax.data.case import Case, Source
from ssl_jax.data.la import import_la
from ssl_jax.data.msd import open_images
from ssl_jax.data.pancreas import import_pancreas
from ssl_jax.data.pipeline import batches, fingerprint
from ssl_jax.data.sources import check_predictable, open_source, prepare
from ssl_jax.data.split import Split, make_split

__all__ = [
  "Case",
  "Source",
  "Split",
  "batches",
  "check_predictable",
  "fingerprint",
  "import_brats",
  "import_la",
  "import_pancreas",
  "make_split",
  "open_images",
  "open_source",
  "prepare",
]
