"""3D convolutions with a kernel of 3 on a CPU: Winograd F(n, 3) along depth over ordinary 2D convolutions.

Winograd 1980, Lavin and Gray 2016. n outputs of a 3-tap filter from n + 2 products: output = OUT · ((TAPS · input) ⊙ (KERNEL · filter)).
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ssl_jax.ops import order, plane

# Each n's points but infinity, 0 before pairs of opposites. Their powers stay near 1, as rounding errors grow with these, and so with n.
_POINTS = {
  4: (0, 2 / 3, -2 / 3, 3 / 2, -3 / 2),
  6: (0, 1 / 2, -1 / 2, 1, -1, 2, -2),
  7: (1 / 4, -1 / 4, 3 / 4, -3 / 4, 5 / 4, -5 / 4, 2, -2),
  8: (0, 3 / 8, -3 / 8, 7 / 8, -7 / 8, 5 / 4, -5 / 4, 9 / 4, -9 / 4),
}
_MANY = 64  # channels from which a larger n saves too little of the time for the longer program, whose loading takes longer at each start


def group(depth: int, channels: int) -> int:
  """Returns n for images of so many slices and channels; with few of either, too, a larger one's transforms cost what its products save."""
  return next((n for n in (7, 8, 6) if depth % n == 0 and depth > n and plane.WIDE <= channels < _MANY), 4)


class _Transform(NamedTuple):
  taps: np.ndarray  # f32[n + 2, n + 2]
  kernel: np.ndarray  # f32[n + 2, 3]
  out: np.ndarray  # f32[n, n + 2]


@functools.cache
def _cook_toom(n: int) -> _Transform:
  """The matrices of n's points and infinity (Winograd 1980; Lavin and Gray 2016)."""
  points = _POINTS[n]
  others = [np.delete(points, i) for i in range(len(points))]
  taps = np.array([np.append(np.poly(o)[::-1], 0) for o in others] + [np.poly(points)[::-1]])
  kernel = np.array([[a**k / np.prod(a - o) for k in range(3)] for a, o in zip(points, others, strict=True)] + [[0, 0, 1]])
  out = np.vander([*points, 0], len(points) - 1, increasing=True).T
  out[:, -1] = np.eye(len(out))[-1]
  rounded = lambda matrix: np.where(np.abs(matrix) < 1e-12, 0, matrix).astype(np.float32)
  return _Transform(rounded(taps), rounded(kernel), rounded(out))


def _matrices(like: Array) -> _Transform:
  return _cook_toom(group(like.shape[1], like.shape[-1]))


def _mixed(matrix: np.ndarray, arrays: Sequence[Array]) -> list[Array]:
  """Returns matrix · arrays."""
  return [_combine(row, arrays) for row in matrix]


def _mixed_pairs(matrix: np.ndarray, products: Sequence[Array]) -> list[Array]:
  """Returns matrix · products, one of each point, by sums and differences of opposite points: half of their factors are 0."""
  first = 1 - len(products) % 2  # after the point 0; infinity is the last
  pairs = list(zip(products[first:-1:2], products[first + 1 : -1 : 2], strict=True))
  one, other = matrix[:, first:-1:2], matrix[:, first + 1 : -1 : 2]
  factors = np.concatenate([matrix[:, :first], (one + other) / 2, (one - other) / 2, matrix[:, -1:]], axis=1)
  return _mixed(factors, [*products[:first], *(a + b for a, b in pairs), *(a - b for a, b in pairs), products[-1]])


def _combine(row: np.ndarray, arrays: Sequence[Array]) -> Array:
  return functools.reduce(lax.add, [x if a == 1 else float(a) * x for a, x in zip(row, arrays, strict=True) if a])


def _every_nth(x: Array, n: int, starts: int) -> list[Array]:
  """[B, depth, H, W, C] -> the slices 0, n, ..., the slices 1, n + 1, ..., and so on, each [B · groups, H, W, C]."""
  end = x.shape[1] - starts + 1
  return [lax.slice_in_dim(x, i, i + end, stride=n, axis=1).reshape(-1, *x.shape[2:]) for i in range(starts)]


def _stacked(slices: Sequence[Array], like: Array) -> Array:
  """Every n-th slice of an image again as one."""
  batch, depth, height, width, _ = like.shape
  stack = jnp.stack([part.reshape(batch, -1, height, width, part.shape[-1]) for part in slices], axis=2)
  stack = lax.optimization_barrier(stack)  # XLA:CPU would stack again in each reader, and keep the larger products until the last
  return stack.reshape(batch, -1, height, width, stack.shape[-1])[:, :depth].astype(like.dtype)


def _padded(x: Array, n: int, around: int, axis: int) -> Array:
  """With slices of zeros around, up to a multiple of n, and a border along an axis; f32: bfloat16 cannot spare the digit that is lost."""
  border = [(int(i == axis),) * 2 for i in range(x.ndim)]
  border[1] = (around, around + -x.shape[1] % n)
  return jnp.pad(x.astype(jnp.float32), border)


def _axes(channels: int) -> tuple[int, int]:
  """Returns along which axes images and gradients get their border before their products, as suits the loop of `plane.kernel_grads`."""
  return (3, 2) if channels >= plane.WIDE else (2, 3)


def _images(x: Array) -> list[Array]:
  """TAPS · input, with a border along the first of `_axes`."""
  taps = _matrices(x).taps
  n = len(taps) - 2
  return _mixed(taps, _every_nth(_padded(x, n, 1, _axes(x.shape[-1])[0]), n, n + 2))


def _kernels(w: Array, like: Array) -> list[Array]:
  """KERNEL · filter."""
  return _mixed(_matrices(like).kernel, tuple(w.astype(jnp.float32)))


def _grads(grad: Array, like: Array) -> list[Array]:
  """OUTᵀ · gradient, with a border along the second of `_axes`."""
  out = _matrices(like).out
  n = len(out)
  return _mixed(out.T, _every_nth(_padded(grad, n, 0, _axes(like.shape[-1])[1]), n, n))


def conv3(x: Array, w: Array) -> Array:
  """Convolution with zero padding to the same size, [B, depth, H, W, in], [3, 3, 3, in, out] -> [B, depth, H, W, out] in x's dtype."""
  if order.is_large(x.shape):
    return order.by_sample(functools.partial(conv3, w=w), x)
  bordered = _axes(x.shape[-1])[0] - 1
  products = [plane.convolve(*pair, bordered) for pair in zip(_images(x), _kernels(w, x), strict=True)]
  return _stacked(_mixed_pairs(_matrices(x).out, products), x)


def gradients(x: Array, w: Array, grad: Array) -> tuple[Array, Array]:
  """The gradients of x and w, of the result's: the same transforms backwards.

  As all but what comes from `grad` is as in the forward pass, XLA keeps it from there; not of a large batch, whose samples take turns.
  """
  if order.is_large(x.shape):
    return order.gradients_by_sample(gradients, x, w, grad)
  grads, bordered = _grads(grad, x), _axes(x.shape[-1])[1] - 1
  products = [plane.convolve(g, plane.turned(kernel), bordered) for g, kernel in zip(grads, _kernels(w, x), strict=True)]
  before, *taps, behind = (tap.reshape(x.shape[0], -1, *x.shape[2:]) for tap in _mixed_pairs(_matrices(x).taps.T, products))
  # The first and the last of a group's taps belong to the groups on either side.
  taps[0] += jnp.pad(behind[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0), (0, 0)))
  taps[-1] += jnp.pad(before[:, 1:], ((0, 0), (0, 1), (0, 0), (0, 0), (0, 0)))
  return _stacked(taps, x), _kernel_grad(x, grads)


def kernel_grad(x: Array, grad: Array) -> Array:
  """The gradient of w, [3, 3, 3, in, out], of x and the result's."""
  return _kernel_grad(x, _grads(grad, x))


def _kernel_grad(x: Array, grads: Sequence[Array]) -> Array:
  products = tuple(plane.kernel_grads(_images(x), grads))
  return jnp.stack(_mixed(_matrices(x).kernel.T, products)).astype(x.dtype)
