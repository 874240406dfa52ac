"""3D convolutions with a kernel of 3 on a CPU: Winograd F(4, 3) along depth over ordinary 2D convolutions.

Winograd 1980, Lavin and Gray 2016. Four outputs of a 3-tap filter from six products: output = OUT · ((TAPS · input) ⊙ (KERNEL · filter)).
"""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ssl_jax.ops import plane

# Points whose powers stay near 1 halve the rounding error of the usual 0, ±1, ±2, ∞.
_POINTS = (0, 2 / 3, -2 / 3, 3 / 2, -3 / 2)  # and ∞


def _cook_toom(points: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """TAPS f32[n, n], KERNEL f32[n, 3] and OUT f32[n − 2, n] of n − 1 points and infinity (Winograd 1980; Lavin and Gray 2016)."""
  others = [np.delete(points, i) for i in range(len(points))]
  taps = np.array([np.append(np.poly(o)[::-1], 0) for o in others] + [np.poly(points)[::-1]])
  kernel = np.array([[a**k / np.prod(a - o) for k in range(3)] for a, o in zip(points, others, strict=True)] + [[0, 0, 1]])
  out = np.vander([*points, 0], len(points) - 1, increasing=True).T
  out[:, -1] = np.eye(len(out))[-1]
  rounded = lambda matrix: np.where(np.abs(matrix) < 1e-12, 0, matrix).astype(np.float32)
  return rounded(taps), rounded(kernel), rounded(out)


_TAPS, _KERNEL, _OUT = _cook_toom(_POINTS)


def _combine(row: Sequence[float] | np.ndarray, arrays: Sequence[Array]) -> Array:
  return functools.reduce(lax.add, [x if a == 1 else float(a) * x for a, x in zip(row, arrays, strict=True) if a])


def _every_fourth(x: Array, starts: int) -> list[Array]:
  """[B, depth, H, W, C] -> the slices 0, 4, ..., the slices 1, 5, ..., and so on, each [B · groups, H, W, C]."""
  end = x.shape[1] - starts + 1
  return [lax.slice_in_dim(x, i, i + end, stride=4, axis=1).reshape(-1, *x.shape[2:]) for i in range(starts)]


def _stacked(slices: Sequence[Array], like: Array) -> Array:
  """Every fourth slice of an image again as one."""
  batch, depth, height, width, _ = like.shape
  stack = jnp.stack([part.reshape(batch, -1, height, width, part.shape[-1]) for part in slices], axis=2)
  stack = lax.optimization_barrier(stack)  # XLA:CPU would stack again in each reader, and keep the larger products until the last
  return stack.reshape(batch, -1, height, width, stack.shape[-1])[:, :depth].astype(like.dtype)


def _padded(x: Array, around: int, axis: int) -> Array:
  """With slices of zeros around, up to a multiple of 4, and a border along an axis; f32: bfloat16 cannot spare the digit that is lost."""
  border = [(int(i == axis),) * 2 for i in range(x.ndim)]
  border[1] = (around, around + -x.shape[1] % 4)
  return jnp.pad(x.astype(jnp.float32), border)


def _axes(channels: int) -> tuple[int, int]:
  """Returns along which axes images and gradients get their border before their products, as suits the loop of `plane.kernel_grads`."""
  return (3, 2) if channels >= plane.WIDE else (2, 3)


def _images(x: Array) -> list[Array]:
  """TAPS · input, with a border along the first of `_axes`."""
  taps = _every_fourth(_padded(x, 1, _axes(x.shape[-1])[0]), 6)
  return [_combine(row, taps) for row in _TAPS]


def _kernels(w: Array) -> list[Array]:
  """KERNEL · filter."""
  return [_combine(row, tuple(w.astype(jnp.float32))) for row in _KERNEL]


def _grads(grad: Array, channels: int) -> list[Array]:
  """OUTᵀ · gradient, with a border along the second of `_axes`."""
  parts = _every_fourth(_padded(grad, 0, _axes(channels)[1]), 4)
  return [_combine(row, parts) for row in _OUT.T]


def conv3(x: Array, w: Array) -> Array:
  """Convolution with zero padding to the same size, [B, depth, H, W, in], [3, 3, 3, in, out] -> [B, depth, H, W, out] in x's dtype."""
  bordered = _axes(x.shape[-1])[0] - 1
  products = [plane.convolve(*pair, bordered) for pair in zip(_images(x), _kernels(w), strict=True)]
  return _stacked([_combine(row, products) for row in _OUT], x)


def gradients(x: Array, w: Array, grad: Array) -> tuple[Array, Array]:
  """The gradients of x and w, of the result's: the same transforms backwards.

  As all but what comes from `grad` is as in the forward pass, XLA keeps it from there.
  """
  channels = x.shape[-1]
  grads, bordered = _grads(grad, channels), _axes(channels)[1] - 1
  products = [plane.convolve(g, plane.turned(kernel), bordered) for g, kernel in zip(grads, _kernels(w), strict=True)]
  before, *taps, behind = (_combine(row, products).reshape(x.shape[0], -1, *x.shape[2:]) for row in _TAPS.T)
  # The first and the last of six taps belong to the groups on either side.
  taps[0] += jnp.pad(behind[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0), (0, 0)))
  taps[3] += jnp.pad(before[:, 1:], ((0, 0), (0, 1), (0, 0), (0, 0), (0, 0)))
  return _stacked(taps, x), _kernel_grad(x, grads)


def kernel_grad(x: Array, grad: Array) -> Array:
  """The gradient of w, [3, 3, 3, in, out], of x and the result's."""
  return _kernel_grad(x, _grads(grad, x.shape[-1]))


def _kernel_grad(x: Array, grads: Sequence[Array]) -> Array:
  products = tuple(plane.kernel_grads(_images(x), grads))
  return jnp.stack([_combine(row, products) for row in _KERNEL.T]).astype(x.dtype)
