"""SGD with the semantics of PyTorch's, from Optax's parts."""

import optax

from ssl_jax.core.schedules import learning_rate
from ssl_jax.types import OptimConfig


def sgd(cfg: OptimConfig, num_steps: int) -> optax.GradientTransformation:
  """Returns g ← g + wd·θ, buf ← momentum·buf + g, θ ← θ − lr(step)·buf, for all parameters, biases and BatchNorm included.

  Args:
    cfg: learning rate, its schedule, momentum and weight decay.
    num_steps: length of the run, for decaying schedules.

  Source: PyTorch's SGD, which made every published number [C].
  """
  return optax.chain(
    optax.add_decayed_weights(cfg.weight_decay),
    optax.trace(decay=cfg.momentum),
    optax.scale_by_learning_rate(learning_rate(cfg, num_steps)),
  )
