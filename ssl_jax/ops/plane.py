"""Convolutions in two dimensions with a kernel of 3 as XLA:CPU is fast at them; `ops.conv` and `ops.winograd` are made of them."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array, lax

LAYOUT = ("NHWC", "HWIO", "NHWC")
WIDE = 32  # channels from which products of several small matrices at once are faster

_TOGETHER = {4: 96, 2: 384}  # columns -> input times output channels up to which so many at once are faster
_CACHED = 9 << 15  # elements whose shifted copies stay in the cache
_FEW = 4  # products at most at a time where they are more than six, or their copies leave the cache
_COPIED = 64  # channels from which XLA:CPU concatenates by copies, for which a stack has to be written before


def convolve(x: Array, w: Array, bordered: int = 0) -> Array:
  """Convolution with stride 1 and zero padding to the same size.

  Args:
    x: [B, H, W, in].
    w: [3, 3, in, out].
    bordered: the axis of x, 1 or 2, that has its border of zeros already; 0: neither.

  Returns:
    [B, H, W, out]. Where channels are few, two or four columns are one point with all their channels, or XLA:CPU mostly moves data.
  """
  rows, columns = ((0, 0) if axis == bordered else (1, 1) for axis in (1, 2))
  channels, width, out = x.shape[-1], x.shape[2] + sum(columns) - 2, w.shape[-1]
  together = max((n for n, most in _TOGETHER.items() if channels * out <= most and width % n == 0), default=1)
  kernel = jnp.concatenate([jnp.pad(w, ((0, 0), (i, together - 1 - i), (0, 0), (0, 0))) for i in range(together)], axis=-1)
  y = lax.conv_general_dilated(x, kernel, (1, together), (rows, columns), dimension_numbers=LAYOUT)
  return y.reshape(*y.shape[:2], width, out)


def turned(w: Array) -> Array:
  """The kernel that gives the gradient of an image: [..., in, out] -> [..., out, in], every other axis reversed."""
  return jnp.swapaxes(jnp.flip(w, range(w.ndim - 2)), -1, -2)


def kernel_grad(x: Array, grad: Array) -> Array:
  """The gradient of a kernel, of [B, H, W, in] and the result's gradient [B, H, W, out] -> [3, 3, in, out]."""
  return kernel_grads([x], [grad])[0]


def kernel_grads(images: Sequence[Array], grads: Sequence[Array]) -> Array:
  """Kernel gradients of n 2D convolutions, n × [B, H, W, in], n × [B, H, W, out] -> [n, 3, 3, in, out].

  Three column shifts of an image against three row shifts of the gradient; by slices, so that the copies stay in the cache. Images may
  have their border of rows or columns, gradients the other.
  """
  n, (batch, *_, channels), out = len(images), images[0].shape, grads[0].shape[-1]
  height, width = (min(images[0].shape[axis], grads[0].shape[axis]) for axis in (1, 2))
  parts = n if channels < WIDE else 1 if n <= 6 or channels >= _COPIED else -(-n // _FEW)
  if parts > 1:
    at_once = -(-n // parts)
    return jnp.concatenate([kernel_grads(images[i : i + at_once], grads[i : i + at_once]) for i in range(0, n, at_once)])
  slices = slices_in_cache(batch, n * height * width * channels, _CACHED)
  if channels >= _COPIED:
    images, grads = [jnp.stack(images)], [jnp.stack(grads)]

  def part(arrays: Sequence[Array], step: Array, rows: int, columns: int) -> Array:
    taken = [lax.dynamic_slice_in_dim(a, step * slices, slices, a.ndim - 4) for a in arrays]
    one = jnp.stack(taken) if len(taken) > 1 else taken[0].reshape(n, slices, *taken[0].shape[-3:])
    borders = (0, 0, (rows - one.shape[2]) // 2, (columns - one.shape[3]) // 2, 0)
    return lax.pad(one, jnp.zeros((), one.dtype), [(border, border, 0) for border in borders])  # below 0 takes a border away

  def add(step: Array, total: Array) -> Array:
    x_part, grad_part = part(images, step, height, width + 2), part(grads, step, height + 2, width)
    columns = jnp.concatenate([x_part[:, :, :, j : j + width] for j in range(3)], axis=-1).reshape(n, -1, 3 * channels)
    rows = jnp.concatenate([grad_part[:, :, 2 - i : 2 - i + height] for i in range(3)], axis=-1).reshape(n, -1, 3 * out)
    return total + jnp.einsum("nvi,nvo->nio", columns, rows, preferred_element_type=jnp.float32)

  total = lax.fori_loop(0, batch // slices, add, jnp.zeros((n, 3 * channels, 3 * out), jnp.float32))
  return jnp.transpose(total.reshape(n, 3, channels, 3, out), (0, 3, 1, 2, 4)).astype(images[0].dtype)


def slices_in_cache(slices: int, size: int, cached: int) -> int:
  """Returns how many slices of `size` elements to take at a time: a divisor of all of them, with at most `cached` elements or 1."""
  return max((n for n in range(1, slices + 1) if slices % n == 0 and n * size <= cached), default=1)
