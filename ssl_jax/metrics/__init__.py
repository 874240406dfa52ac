"""Segmentation metrics on the host, in NumPy and SciPy."""

from ssl_jax.metrics.bootstrap import bootstrap, interval, of_class, summarise
from ssl_jax.metrics.case import EMPTY_POLICIES, METRICS, case_metrics
from ssl_jax.metrics.overlap import dice, jaccard
from ssl_jax.metrics.paired import Paired, compare_paired
from ssl_jax.metrics.surface import asd, assd, hd95, surface_distances

__all__ = [
  "EMPTY_POLICIES",
  "METRICS",
  "Paired",
  "asd",
  "assd",
  "bootstrap",
  "case_metrics",
  "compare_paired",
  "dice",
  "hd95",
  "interval",
  "jaccard",
  "of_class",
  "summarise",
  "surface_distances",
]
