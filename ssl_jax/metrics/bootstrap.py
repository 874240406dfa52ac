"""Uncertainty of a mean over test cases, and the summary of a table of cases."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ssl_jax.metrics.case import METRICS

INTERVAL_RESAMPLES = 10_000


def bootstrap(values: Sequence[float] | np.ndarray, *, num_resamples: int = 100, seed: int = 0) -> tuple[float, float]:
  """Mean and standard deviation of the mean over resampled test cases.

  Draws `len(values)` cases with replacement `num_resamples` times.

  Args:
    values: one finite number per case, at least one.
    num_resamples: at least 1.
    seed: of the resampling.
  Returns: mean and standard deviation (population) of the resampled means, in the unit of `values`.
  Raises: ValueError on no values, a value that is not finite, or `num_resamples < 1`.
  Source: CRLN reports mean ± std over 100 resamples of the test cases [P].
  """
  means = _resampled_means(values, num_resamples, seed)
  return float(means.mean()), float(means.std())


def interval(
  values: Sequence[float] | np.ndarray, *, level: float = 0.95, num_resamples: int = INTERVAL_RESAMPLES, seed: int = 0
) -> tuple[float, float]:
  """Percentile bootstrap confidence interval of the mean over test cases.

  Args:
    values: one finite number per case, at least one.
    level: share of the resampled means inside, between 0 and 1.
    num_resamples, seed: see `bootstrap`; the ends of an interval need many more resamples than a standard deviation.
  Returns: lower and upper end, in the unit of `values`.
  Raises: ValueError as `bootstrap`, or on a level outside (0, 1).
  Source: Efron 1979.
  """
  if not 0 < level < 1:
    raise ValueError(f"level must lie between 0 and 1, got {level}")
  low, high = np.percentile(_resampled_means(values, num_resamples, seed), [50 * (1 - level), 50 * (1 + level)])
  return float(low), float(high)


def of_class(cases: Sequence[Mapping[str, Any]], name: str) -> list[dict[str, Any]]:
  """The metrics `<name>/<metric>` of every case, under `<metric>`; `case`, the case's name, stays."""
  start = f"{name}/"
  return [{key.removeprefix(start): value for key, value in case.items() if key.startswith(start) or key == "case"} for case in cases]


def summarise(cases: Sequence[Mapping[str, Any]], *, num_resamples: int = 100, seed: int = 0) -> dict[str, Any]:
  """Summary of a table of cases.

  Args:
    cases: what `case_metrics` returned for each case; further keys are ignored. At least one.
    num_resamples, seed: see `bootstrap`. All metrics use the same resamples.
  Returns: `{metric: {"mean", "std", "bootstrap_mean", "bootstrap_std", "interval"}}` for dice, jaccard, hd95, asd, and for hd95_mm,
    asd_mm when the cases have them; `num_cases`; and `num_empty`, the number of cases whose distances are the empty policy's. `std` is
    over cases (population), `interval` the 95 % one of `interval`. A NaN is left out; a metric that has nothing else is NaN throughout.
  Raises: ValueError on no cases.
  """
  if not cases:
    raise ValueError("a summary needs at least one case")
  summary: dict[str, Any] = {"num_cases": len(cases), "num_empty": sum(bool(case["empty"]) for case in cases)}
  in_mm = [f"{name}_mm" for name in METRICS if all(f"{name}_mm" in case for case in cases)]
  for name in [*METRICS, *in_mm]:
    values = np.array([case[name] for case in cases], np.float64)
    values = values[~np.isnan(values)]
    if values.size:
      resampled_mean, resampled_std = bootstrap(values, num_resamples=num_resamples, seed=seed)
      numbers, ends = (float(values.mean()), float(values.std()), resampled_mean, resampled_std), interval(values, seed=seed)
    else:
      numbers, ends = (math.nan,) * 4, (math.nan, math.nan)
    summary[name] = {**dict(zip(("mean", "std", "bootstrap_mean", "bootstrap_std"), numbers, strict=True)), "interval": list(ends)}
  return summary


def _resampled_means(values: Sequence[float] | np.ndarray, num_resamples: int, seed: int) -> np.ndarray:
  values = np.asarray(values, np.float64)
  if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
    raise ValueError("bootstrap needs a flat list of at least one finite value")
  if num_resamples < 1:
    raise ValueError(f"num_resamples must be at least 1, got {num_resamples}")
  drawn = np.random.default_rng(seed).integers(values.size, size=(num_resamples, values.size))
  return values[drawn].mean(axis=1)
