"""Segmentation metrics on the host, in NumPy and SciPy."""

from ssl_jax.metrics.bootstrap import bootstrap, summarise
from ssl_jax.metrics.case import EMPTY_POLICIES, METRICS, case_metrics
from ssl_jax.metrics.overlap import dice, jaccard
from ssl_jax.metrics.surface import asd, assd, hd95, surface_distances

__all__ = [
  "EMPTY_POLICIES",
  "METRICS",
  "asd",
  "assd",
  "bootstrap",
  "case_metrics",
  "dice",
  "hd95",
  "jaccard",
  "summarise",
  "surface_distances",
]
