"""Comparison of two sets of results on the same test cases."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ssl_jax.metrics.bootstrap import INTERVAL_RESAMPLES, interval


@dataclasses.dataclass(frozen=True)
class Paired:
  """What `compare_paired` found.

  Attributes:
    num_cases: pairs of finite values.
    mean_a, mean_b: over these pairs.
    difference: mean of a − b.
    interval: 95 % percentile bootstrap interval of that mean.
    p_value: of the two-sided Wilcoxon signed-rank test; 1 when no pair differs.
    num_higher: pairs in which a is greater than b.
    num_lower: pairs in which a is less than b.
  """

  num_cases: int
  mean_a: float
  mean_b: float
  difference: float
  interval: tuple[float, float]
  p_value: float
  num_higher: int
  num_lower: int


def compare_paired(
  a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, *, num_resamples: int = INTERVAL_RESAMPLES, seed: int = 0
) -> Paired:
  """Mean difference of one metric between two runs, with its uncertainty over test cases.

  Resamples pairs, so that what makes a case hard for both cancels. The test has the null hypothesis that the differences are symmetric
  about 0; SciPy takes the exact distribution for few cases without ties, else a normal approximation.

  Args:
    a, b: one value per case, in the same order. A pair with a NaN is left out.
    num_resamples, seed: of the bootstrap.
  Returns: see `Paired`.
  Raises: ValueError on different lengths, or fewer than two pairs without NaN.
  Source: Wilcoxon 1945; Efron 1979.
  """
  from scipy import stats  # here: half a second and 33 MiB, which training does without

  values_a, values_b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  if values_a.shape != values_b.shape or values_a.ndim != 1:
    raise ValueError(f"a paired comparison needs one value per case on both sides, got shapes {values_a.shape} and {values_b.shape}")
  known = ~(np.isnan(values_a) | np.isnan(values_b))
  if known.sum() < 2:
    raise ValueError(f"a paired comparison needs at least two cases with a value on both sides, got {known.sum()}")
  values_a, values_b = values_a[known], values_b[known]
  difference = values_a - values_b
  return Paired(
    num_cases=difference.size,
    mean_a=float(values_a.mean()),
    mean_b=float(values_b.mean()),
    difference=float(difference.mean()),
    interval=interval(difference, num_resamples=num_resamples, seed=seed),
    p_value=float(stats.wilcoxon(difference).pvalue) if difference.any() else 1.0,
    num_higher=int((difference > 0).sum()),
    num_lower=int((difference < 0).sum()),
  )
