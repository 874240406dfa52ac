"""Uncertainty of a mean over test cases, and the summary of a table of cases."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ssl_jax.metrics.case import METRICS


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
  values = np.asarray(values, np.float64)
  if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
    raise ValueError("bootstrap needs a flat list of at least one finite value")
  if num_resamples < 1:
    raise ValueError(f"num_resamples must be at least 1, got {num_resamples}")
  drawn = np.random.default_rng(seed).integers(values.size, size=(num_resamples, values.size))
  means = values[drawn].mean(axis=1)
  return float(means.mean()), float(means.std())


def summarise(cases: Sequence[Mapping[str, Any]], *, num_resamples: int = 100, seed: int = 0) -> dict[str, Any]:
  """Summary of a table of cases.

  Args:
    cases: what `case_metrics` returned for each case; further keys are ignored. At least one.
    num_resamples, seed: see `bootstrap`. All metrics use the same resamples.
  Returns: `{metric: {"mean", "std", "bootstrap_mean", "bootstrap_std"}` for dice, jaccard, hd95, asd, and for hd95_mm, asd_mm when the
    cases have them}, `num_cases` and `num_empty`, the number of cases whose distances are the empty policy's. `std` is over cases
    (population).
  Raises: ValueError on no cases.
  """
  summary: dict[str, Any] = {"num_cases": len(cases), "num_empty": sum(bool(case["empty"]) for case in cases)}
  in_mm = [f"{name}_mm" for name in METRICS if all(f"{name}_mm" in case for case in cases)]
  for name in [*METRICS, *in_mm]:
    values = np.array([case[name] for case in cases], np.float64)
    resampled_mean, resampled_std = bootstrap(values, num_resamples=num_resamples, seed=seed)
    summary[name] = {
      "mean": float(values.mean()),
      "std": float(values.std()),
      "bootstrap_mean": resampled_mean,
      "bootstrap_std": resampled_std,
    }
  return summary
