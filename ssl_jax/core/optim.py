"""SGD and Adam with the semantics of PyTorch's, from Optax's parts."""

import optax

from ssl_jax.core.schedules import learning_rate
from ssl_jax.types import InputError, OptimConfig


def build(cfg: OptimConfig, num_steps: int) -> optax.GradientTransformation:
  """Returns the optimizer of a configuration for a run of `num_steps`; with `cfg.accumulate` > 1 only every so many steps update.

  Raises:
    InputError: `accumulate` is below 1.
  """
  if cfg.accumulate < 1:
    raise InputError(f"config.optim.accumulate: must be at least 1, got {cfg.accumulate}")
  optimizer = {"sgd": sgd, "adam": adam}[cfg.name](cfg, num_steps // cfg.accumulate)
  return optimizer if cfg.accumulate == 1 else optax.MultiSteps(optimizer, cfg.accumulate).gradient_transformation()


def sgd(cfg: OptimConfig, num_steps: int) -> optax.GradientTransformation:
  """Returns g ← g + wd·θ, buf ← momentum·buf + g, θ ← θ − lr(step)·buf, for all parameters, biases and BatchNorm included.

  Args:
    cfg: learning rate, its schedule, momentum and weight decay.
    num_steps: length of the run, for decaying schedules.

  Source: PyTorch's SGD, which made every published number [C].
  """
  return _with_decay_and_rate(cfg, num_steps, optax.trace(decay=cfg.momentum))


def adam(cfg: OptimConfig, num_steps: int) -> optax.GradientTransformation:
  """Returns Adam whose weight decay is part of the gradient and so of both moments (AdamW's is not), for all parameters.

  g ← g + wd·θ, m ← 0.9 m + 0.1 g, v ← 0.999 v + 0.001 g², θ ← θ − lr(step) · m̂ / (√v̂ + 1e-8), m̂ = m / (1 − 0.9ᵗ), v̂ = v / (1 − 0.999ᵗ).

  Args:
    cfg: learning rate, its schedule and weight decay; `momentum` has no part.
    num_steps: length of the run, for decaying schedules.

  Source: PyTorch's Adam with its `weight_decay`, which CMEMS names [P].
  """
  return _with_decay_and_rate(cfg, num_steps, optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8))


def _with_decay_and_rate(cfg: OptimConfig, num_steps: int, rule: optax.GradientTransformation) -> optax.GradientTransformation:
  return optax.chain(optax.add_decayed_weights(cfg.weight_decay), rule, optax.scale_by_learning_rate(learning_rate(cfg, num_steps)))
