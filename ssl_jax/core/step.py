"""Pieces that the training steps of all methods share."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ssl_jax.types import Array, Metrics, PyTree

Term = Callable[[], Array | tuple[Array, Metrics]]


def weighted_terms(
  weights: Mapping[str, float], terms: Mapping[str, Term], scale: Mapping[str, Array] | None = None
) -> tuple[Array, Metrics]:
  """Sums loss terms; a term whose static weight is 0 is never traced, so switching it off also saves its time.

  Args:
    weights: term name -> static weight.
    terms: term name -> thunk that computes the scalar loss, or the loss and further metrics.
    scale: term name -> traced factor, such as a ramp-up.

  Returns:
    The weighted sum and `{"loss": sum, "loss_<name>": unweighted value, **further metrics}`.

  Raises:
    ValueError: a weight names no term.
  """
  unknown = set(weights) - set(terms)
  if unknown:
    raise ValueError(f"config.method.weights.{sorted(unknown)[0]}: no such loss term; known: {', '.join(sorted(terms))}")
  total: Array = jnp.float32(0.0)
  metrics: dict[str, Array] = {}
  for name, weight in weights.items():
    if weight:
      result = terms[name]()
      value, further = result if isinstance(result, tuple) else (result, {})
      metrics |= {f"loss_{name}": value, **further}
      total += weight * (scale or {}).get(name, jnp.float32(1.0)) * value
  return total, {"loss": total, **metrics}


def forward(
  network: Any, params: PyTree, stats: PyTree, image: Array, *, key: Array | None, views: int = 1, **extra: Any
) -> tuple[Any, PyTree]:
  """Runs a network in training mode: batch statistics, and dropout when `key` is given.

  Args:
    network: Flax module called as `network(image, train=True, dropout=..., views=...)`.
    params, stats: its parameters and running averages.
    image: f32[B, *spatial, channels].
    key: dropout key; `None` turns dropout off (an EMA teacher).
    views: parts of the batch with BatchNorm statistics of their own; the first alone enters the running averages.
    extra: what only some networks take, such as `perturb`.

  Returns:
    The network's output and its updated running averages.
  """
  rngs = None if key is None else {"dropout": key}
  settings = {"train": True, "dropout": key is not None, "views": views, **extra}
  out, new = network.apply({"params": params, "batch_stats": stats}, image, **settings, rngs=rngs, mutable=["batch_stats"])
  return out, new.get("batch_stats", {})


def probabilities(network: Any, params: PyTree, stats: PyTree, image: Array) -> Array:
  """Returns softmax probabilities f32[B, *spatial, C] in inference mode: running averages, no dropout."""
  return jax.nn.softmax(network.apply({"params": params, "batch_stats": stats}, image, train=False).logits)


def init_network(network: Any, key: Array, image: Array) -> tuple[PyTree, PyTree]:
  """Returns `(params, batch_stats)` of a network for images of this shape."""
  variables = network.init(key, jnp.zeros(image.shape, image.dtype), train=False)
  return variables["params"], variables.get("batch_stats", {})
