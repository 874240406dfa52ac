"""CRLN's Dynamic Interaction Module and the ways to rectify a prediction with its output."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax.networks.blocks import Conv
from ssl_jax.ops.resize import upsample_linear
from ssl_jax.ops.softmax import softmax
from ssl_jax.types import Array


class DIM(nn.Module):
  """Turns class prototypes and two decoder features into one logit map per class (CRLN §3.2.1, eqs. 3–6).

  φ starts with variance 1/fan-in [D]. PyTorch's default, a third of it, loses the difference between classes in two attention layers, and
  𝓜(x) stays constant: on features of a trained V-Net ℓ_s(𝓜(x), y) remained at 0.63 for 400 steps instead of falling to 0.05 within 100.

  Attributes:
    spatial: a 3³ convolution over each class's R similarity maps ("conv3"), or none ("none"); Table 6.
    integrate: R maps become one by a 1³ convolution ("conv1") or by their sum ("sum"); Table 6.
    cross_class: one set of these convolutions for all classes, or one per class; Table 6.
    dtype: compute precision.
  """

  spatial: str = "conv3"
  integrate: str = "conv1"
  cross_class: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, prototypes: Array, f2: Array, f3: Array) -> Array:
    """Computes 𝓜(x).

    Args:
      prototypes: f32[C, R, F].
      f2: [B, *spatial/4, F] second decoder level.
      f3: [B, *spatial/2, F3] third decoder level.

    Returns:
      f32[B, *spatial, C] logits; gradient flows to prototypes, features and parameters.
    """
    num_classes, groups, width = prototypes.shape
    batch, half, width_3 = f3.shape[0], f3.shape[1:-1], f3.shape[-1]
    dense = lambda features, name: nn.Dense(features, use_bias=False, dtype=self.dtype, name=name)
    tokens = lambda f, name: Conv(f.shape[-1], size=1, dtype=self.dtype, name=name)(f).reshape(batch, -1, f.shape[-1])

    r2 = tokens(f2, "conv_f2")
    p = prototypes.reshape(num_classes * groups, width)  # softmax runs over tokens, so all R groups share one matmul
    m = jnp.einsum("qf,bnf->bqn", dense(width, "query_f2")(p), dense(width, "key_f2")(r2)) / jnp.sqrt(width)  # Eq. (3)
    p = jnp.einsum("bqn,bnf->bqf", _softmax(m), dense(width, "value_f2")(r2))  # Eq. (4)

    r3 = tokens(f3, "conv_f3")
    m = jnp.einsum(
      "bqf,bnf->bqn",
      dense(width_3, "query_f3")(p),
      dense(width_3, "key_f3")(r3),
    ) / jnp.sqrt(width_3)  # Eq. (5)

    m = m.reshape(batch, num_classes, groups, -1).swapaxes(2, 3).reshape(batch, num_classes, *half, groups)
    if self.cross_class:
      m = self._integrate(m.reshape(batch * num_classes, *half, groups), "").reshape(batch, num_classes, *half)
    else:
      m = jnp.stack([self._integrate(m[:, c], f"_class{c}")[..., 0] for c in range(num_classes)], axis=1)
    return upsample_linear(jnp.moveaxis(m, 1, -1)).astype(jnp.float32)  # Eq. (6)

  def _integrate(self, m: Array, suffix: str) -> Array:
    groups = m.shape[-1]
    if self.spatial == "conv3":
      m = Conv(groups, size=3, dtype=self.dtype, name=f"spatial{suffix}")(m)
    if self.integrate == "conv1":
      return Conv(1, size=1, dtype=self.dtype, name=f"integrate{suffix}")(m)
    return jnp.sum(m, axis=-1, keepdims=True)


class Rectifier(nn.Module):
  """Combines a prediction with 𝓜(x) into a better one (CRLN eq. 8 and Table 7).

  Attributes:
    mechanism: "learnable_mu" (v3: one learned µ), "fixed" (v1: µ stays at `mu_init`), "conv" (v2: concatenation and a 3³ convolution),
      or "none".
    space: "logits": softmax(ȳ + (1−µ)𝓜) on logits; "probs": p + (1−µ) softmax 𝓜, renormalised.
    mu_init: first value of µ.
  """

  mechanism: str = "learnable_mu"
  space: str = "logits"
  mu_init: float = 0.5

  @nn.compact
  def __call__(self, logits: Array, correction: Array) -> Array:
    """Returns the logits f32[B, *spatial, C] of the rectified prediction; both arguments have its shape."""
    if self.mechanism == "none":
      return logits
    if self.mechanism == "conv":
      return Conv(logits.shape[-1], size=3, name="conv")(jnp.concatenate([logits, correction], axis=-1))
    if self.mechanism == "fixed":
      share = jnp.float32(1.0 - self.mu_init)  # Eq. (17)
    elif self.mechanism == "learnable_mu":
      share = 1.0 - jnp.clip(self.param("mu", lambda _: jnp.float32(self.mu_init)), 0.0, 1.0)  # Eq. (8)
    else:
      raise ValueError(f"config.method.mechanism: {self.mechanism!r} is none of learnable_mu, fixed, conv, none")
    if self.space == "logits":
      return logits + share * correction
    mixed = softmax(logits) + share * softmax(correction)
    return jnp.log(mixed / (1.0 + share) + 1e-12)


class CPSHead(nn.Module):
  """Voxel features r = Conv1(Conv3(f4)) for collaborative positive supervision (CRLN §3.3).

  Conv1 is linear, so callers project only what they draw: `context` gives Conv3(f4), `project` applies Conv1 to gathered rows or to a
    mean of rows.

  Attributes:
    width: n, channels of f4.
    features: F, channels of r, the width of the prototypes.
    dtype: compute precision of Conv3.
  """

  width: int
  features: int
  dtype: Any = jnp.float32

  def setup(self) -> None:
    """Names the two convolutions."""
    self.conv3 = Conv(self.width, size=3, dtype=self.dtype)
    self.conv1 = Conv(self.features, size=1)

  def context(self, f4: Array) -> Array:
    """Returns Conv3(f4), f32[B, *spatial, n]."""
    return self.conv3(f4).astype(jnp.float32)

  def project(self, rows: Array) -> Array:
    """Returns Conv1 of rows f32[m, n] as f32[m, F]."""
    return self.conv1(rows)

  def __call__(self, f4: Array) -> Array:
    """Returns r, f32[B, *spatial, F]; used to create the parameters."""
    return self.conv1(self.context(f4))


def _softmax(m: Array) -> Array:
  return jax.nn.softmax(m.astype(jnp.float32)).astype(m.dtype)
