"""Convolutions of the segmentation networks, channels last, in two and three dimensions.

GPUs get XLA's own convolution. XLA:CPU is several times slower than PyTorch at 3D convolutions and at all kernel gradients. There a 3³
convolution is one of `ops.winograd`, made of the 2D ones of `ops.plane`. XLA:TPU takes a minute to compile a 3D convolution and pads its
channels to many more, so there all are 2D ones in which neighbouring slices are channels. Stride-2 pairs are a rearrangement and matrix
products elsewhere.
"""

import functools
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from ssl_jax.ops import order, plane, winograd

Convolution = Callable[[Array, Array], Array]  # of an image and a kernel

_FEW = 4  # output channels of a network's last layer
_SMALL = 1 << 15  # elements of the larger of input and output below which the Winograd transforms cost more than they save


@jax.custom_vjp
def conv3(x: Array, w: Array) -> Array:
  """Convolution with a kernel of 3 along every axis, stride 1, zero padding to the same size.

  Args:
    x: [B, *spatial, in], two or three spatial axes; gradient flows here.
    w: [3, 3(, 3), in, out] of the same dtype; gradient flows here.

  Returns:
    [B, *spatial, out] in x's dtype.
  """
  return _forward(x, w)


@jax.jit  # for tracing alone: a network has few shapes and many layers
def _forward(x: Array, w: Array) -> Array:
  if x.ndim == 4:
    return lax.platform_dependent(x, w, cpu=plane.convolve, default=_xla)
  return lax.platform_dependent(x, w, cpu=_form(x, w), tpu=_by_triples, default=_xla)


def _form(x: Array, w: Array) -> Convolution:
  """Returns how a CPU convolves 3D images of x's shape with a kernel of w's, turned or not."""
  if is_small(x, w) or min(x.shape[2:4]) < 3:
    return _shifted_products
  return _by_triples if x.shape[-1] == 1 else winograd.conv3


def is_small(x: Array, w: Array) -> bool:
  """Whether a plain product does on a CPU; a batch that is left open, in a program to be exported, counts as one."""
  return math.prod(side for side in x.shape[:-1] if isinstance(side, int)) * max(w.shape[-2:]) < _SMALL


@jax.jit
def _backward(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
  x, w = saved
  by = lambda convolve, kernel_grad: lambda x, w, grad: (convolve(grad, plane.turned(w)), kernel_grad(x, grad))
  default = by(_xla, _transposed(_xla))
  if x.ndim == 4:
    return lax.platform_dependent(x, w, grad, cpu=by(plane.convolve, plane.kernel_grad), default=default)
  kernel_grads = {"cpu": winograd.kernel_grad, "tpu": _transposed(_by_triples)}
  if x.shape[-1] == 1:
    kernel_grads = dict.fromkeys(kernel_grads, _first_layer_kernel_grad)
  cpu = winograd.gradients if _form(x, w) is winograd.conv3 else by(_form(grad, w), kernel_grads["cpu"])
  return lax.platform_dependent(x, w, grad, cpu=cpu, tpu=by(_by_triples, kernel_grads["tpu"]), default=default)


conv3.defvjp(lambda x, w: (_forward(x, w), (x, w)), _backward)


@jax.custom_vjp
def conv1(x: Array, w: Array) -> Array:
  """Convolution with a kernel of 1: mixes channels.

  Args:
    x: [..., in]; gradient flows here.
    w: [in, out] of the same dtype; gradient flows here.

  Returns:
    [..., out] in x's dtype.
  """
  return x @ w


def _mixed_gradients(x: Array, w: Array, grad: Array) -> tuple[Array, Array]:
  grad_x = _sum_of_channels(grad, w) if w.shape[1] <= _FEW else grad @ w.T
  x = order.again(x, grad)
  rows, grads = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
  if x.shape[-1] <= grad.shape[-1]:
    return grad_x, _dot(rows.T, grads).astype(w.dtype)
  # XLA:CPU's product takes half the time with the fewer channels in front; the barrier keeps XLA from turning it around again.
  return grad_x, lax.optimization_barrier(_dot(grads.T, rows)).T.astype(w.dtype)


def _sum_of_channels(grad: Array, w: Array) -> Array:
  """Returns grad · wᵀ, which XLA:CPU computes where it is needed; a product it would write out."""
  terms = [(grad[..., i, None] * w[:, i]).astype(jnp.float32) for i in range(w.shape[1])]
  return functools.reduce(lax.add, terms).astype(grad.dtype)


conv1.defvjp(  # XLA:TPU takes more than a minute to compile the CPU's form for a single output
  lambda x, w: (x @ w, (x, w)),
  lambda saved, grad: lax.platform_dependent(*saved, grad, cpu=_mixed_gradients, default=_gradients(jnp.matmul)),
)


@jax.custom_vjp
def conv_down2(x: Array, w: Array) -> Array:
  """Convolution with kernel and stride 2: space to depth and one matrix product.

  Args:
    x: [B, *spatial, in], even sides; gradient flows here.
    w: [2, 2(, 2), in, out] of the same dtype; gradient flows here.

  Returns:
    [B, *(spatial / 2), out].
  """
  return lax.platform_dependent(x, w, tpu=_down_by_pairs, default=_down_by_blocks)


def _down_by_blocks(x: Array, w: Array) -> Array:
  blocks = _blocks(x)
  return conv1(blocks, w.reshape(blocks.shape[-1], -1))


def _down_by_pairs(x: Array, w: Array) -> Array:
  """Two neighbouring slices become the channels of a 2D convolution."""
  if x.ndim == 5:
    pairs, kernel = jnp.concatenate([x[:, 0::2], x[:, 1::2]], axis=-1), jnp.moveaxis(w, 0, 2).reshape(2, 2, 2 * x.shape[-1], -1)
    return _down_by_pairs(_merged(pairs), kernel).reshape(*pairs.shape[:2], *(side // 2 for side in x.shape[2:4]), -1)
  return lax.conv_general_dilated(x, w, (2, 2), "VALID", dimension_numbers=plane.LAYOUT)


conv_down2.defvjp(
  lambda x, w: (conv_down2(x, w), (x, w)),
  lambda saved, grad: lax.platform_dependent(*saved, grad, tpu=_gradients(_down_by_pairs), default=_down_gradients),
)


def _down_gradients(x: Array, w: Array, grad: Array) -> tuple[Array, Array]:
  gradients = _gradients(_down_by_blocks)
  grad_x, grad_w = gradients(x, w, grad)
  again = order.again(x, grad_x)  # 1 to 2 % of a V-Net's time for 8 % of its memory
  return grad_x, grad_w if again is x else gradients(again, w, grad)[1]


def _gradients(convolve: Convolution) -> Callable[[Array, Array, Array], tuple[Array, Array]]:
  return lambda x, w, grad: jax.vjp(convolve, x, w)[1](grad)


def _merged(x: Array) -> Array:
  """[B, depth, height, width, C] -> [B · depth, height, width, C]."""
  return x.reshape(-1, *x.shape[2:])


def _blocks(x: Array) -> Array:
  """Space to depth: [B, *spatial, C] -> [B, *(spatial / 2), 2^rank · C]."""
  rank, channels = x.ndim - 2, x.shape[-1]
  half = tuple(s // 2 for s in x.shape[1:-1])
  blocks = x.reshape(x.shape[0], *(n for h in half for n in (h, 2)), channels)
  order = (0, *range(1, 2 * rank + 1, 2), *range(2, 2 * rank + 1, 2), 2 * rank + 1)
  return jnp.transpose(blocks, order).reshape(x.shape[0], *half, 2**rank * channels)


def conv4_down2(x: Array, w: Array) -> Array:
  """Convolution with a kernel of 4 along every axis, stride 2 and one voxel of zeros around: halves every side.

  A kernel of 4 is two of 2 in every axis, so this is a sum of shifted matrix products. XLA:CPU's own takes minutes for its gradient.

  Args:
    x: [B, *spatial, in], even sides; gradient flows here.
    w: [4, 4(, 4), in, out] of the same dtype; gradient flows here.

  Returns:
    [B, *(spatial / 2), out].
  """
  rank, half = x.ndim - 2, tuple(side // 2 for side in x.shape[1:-1])
  blocks = _blocks(jnp.pad(x, [(0, 0), *[(1, 1)] * rank, (0, 0)]))

  def shifted(by: tuple[int, ...]) -> Array:
    part = blocks[(slice(None), *(slice(s, s + side) for s, side in zip(by, half, strict=True)))]
    kernel = w[tuple(slice(2 * s, 2 * s + 2) for s in by)].reshape(blocks.shape[-1], -1)
    return conv1(part, kernel)

  first, *others = (shifted(by) for by in itertools.product((0, 1), repeat=rank))
  return sum(others, start=first)


@jax.custom_vjp
def conv_up2(x: Array, w: Array) -> Array:
  """Transposed convolution with kernel and stride 2, in PyTorch's orientation (`lax.conv_transpose` flips).

  A matrix product and depth to space for either parity of the first axis.

  Args:
    x: [B, *spatial, in]; gradient flows here.
    w: [2, 2(, 2), in, out] of the same dtype; gradient flows here.

  Returns:
    [B, *(2 · spatial), out].
  """
  return lax.platform_dependent(x, w, tpu=_up_by_pairs, default=_up_by_slices)


def _up_by_slices(x: Array, w: Array) -> Array:
  rank, out = x.ndim - 2, w.shape[-1]
  order = (0, 1, *(axis for a in range(2, rank + 1) for axis in (a, a + rank - 1)), 2 * rank)

  def slices(kernel: Array) -> Array:
    blocks = (x @ as_columns(kernel)).reshape(*x.shape[:-1], *(2,) * (rank - 1), out)
    return jnp.transpose(blocks, order).reshape(*x.shape[:2], *(2 * side for side in x.shape[2:-1]), out)

  # A stack is written once; depth to space alone XLA:CPU would repeat in each reader, which took 1 % of a V-Net's step.
  return jnp.stack([slices(w[0]), slices(w[1])], axis=2).reshape(x.shape[0], *(2 * side for side in x.shape[1:-1]), out)


def _up_gradients(x: Array, w: Array, grad: Array) -> tuple[Array, Array]:
  grad_x, columns = _mixed_gradients(x, as_columns(w), _blocks(grad))
  return grad_x, jnp.moveaxis(columns.reshape(-1, *w.shape[:-2], w.shape[-1]), 0, -2)


def _up_by_pairs(x: Array, w: Array) -> Array:
  """The channels of a transposed 2D convolution become two neighbouring slices."""
  if x.ndim == 5:
    batch, depth, height, width, _ = x.shape
    pairs = _up_by_pairs(_merged(x), jnp.moveaxis(w, 0, 3).reshape(2, 2, x.shape[-1], -1))
    split = pairs.reshape(batch, depth, 2 * height, 2 * width, 2, -1)
    return jnp.moveaxis(split, 4, 2).reshape(batch, 2 * depth, 2 * height, 2 * width, -1)
  back = jnp.flip(w, (0, 1))
  return lax.conv_general_dilated(x, back, (1, 1), ((1, 1), (1, 1)), lhs_dilation=(2, 2), dimension_numbers=plane.LAYOUT)


conv_up2.defvjp(
  lambda x, w: (conv_up2(x, w), (x, w)),
  lambda saved, grad: lax.platform_dependent(*saved, grad, tpu=_gradients(_up_by_pairs), default=_up_gradients),
)


def as_columns(w: Array) -> Array:
  """Returns a kernel [taps, ..., in, out] as a matrix [in, taps · ... · out]."""
  return jnp.moveaxis(w, -2, 0).reshape(w.shape[-2], -1)


def _xla(x: Array, w: Array) -> Array:
  spec = plane.LAYOUT if x.ndim == 4 else ("NDHWC", "DHWIO", "NDHWC")
  return lax.conv_general_dilated(x, w, (1,) * (x.ndim - 2), "SAME", dimension_numbers=spec)


def _transposed(convolve: Convolution) -> Convolution:
  """Returns the kernel gradient, of image and gradient, that XLA makes of a convolution with a kernel of 3."""

  def kernel_grad(x: Array, grad: Array) -> Array:
    w = jnp.zeros((3,) * (x.ndim - 2) + (x.shape[-1], grad.shape[-1]), x.dtype)
    return jax.linear_transpose(lambda w: convolve(x, w), w)(grad)[0]

  return kernel_grad


def _shifted_products(x: Array, w: Array) -> Array:
  """Small arrays, and fewer than 3 rows or columns, where XLA:CPU's convolutions fall off a cliff: one product to 9 shifted outputs."""
  batch, depth, height, width, channels = x.shape
  out = w.shape[-1]
  padded = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (1, 1), (0, 0)))
  columns = jnp.concatenate([padded[:, :, :, k : k + width] for k in range(3)], axis=-1).reshape(-1, 3 * channels)
  y = _dot(columns, jnp.transpose(w, (2, 3, 0, 1, 4)).reshape(3 * channels, 9 * out)).reshape(batch, depth, height, width, 9, out)
  y = jnp.pad(y, ((0, 0), (1, 1), (1, 1), (0, 0), (0, 0), (0, 0)))
  shifted = [y[:, i : i + depth, j : j + height, :, 3 * i + j] for i in range(3) for j in range(3)]
  return jnp.sum(jnp.stack(shifted), axis=0).astype(x.dtype)


def _by_triples(x: Array, w: Array) -> Array:
  """Three neighbouring slices become the channels of a 2D convolution."""
  batch, depth, height, width, channels = x.shape
  padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
  triples = jnp.concatenate([padded[:, i : i + depth] for i in range(3)], axis=-1)
  kernel = jnp.moveaxis(w, 0, 2).reshape(3, 3, 3 * channels, -1)
  return plane.convolve(_merged(triples), kernel).reshape(batch, depth, height, width, -1)


def _first_layer_kernel_grad(x: Array, grad: Array) -> Array:
  """27 shifted copies of a slice against the gradient's slice, summed over slices by a scan so that the copies stay in cache."""
  batch, depth, height, width, _ = x.shape
  padded = jnp.pad(x[..., 0], ((0, 0), (1, 1), (1, 1), (1, 1)))
  triples = jnp.stack([padded[:, i : i + depth] for i in range(3)], axis=2).reshape(batch * depth, 3, height + 2, width + 2)

  def add(total, pair):
    triple, g = pair
    copies = jnp.stack([triple[:, j : j + height, k : k + width] for j in range(3) for k in range(3)], axis=1).reshape(27, -1)
    return total + _dot(copies, g.reshape(-1, g.shape[-1])), None

  total, _ = lax.scan(add, jnp.zeros((27, grad.shape[-1]), jnp.float32), (triples, grad.reshape(batch * depth, height, width, -1)))
  return total.reshape(3, 3, 3, 1, -1).astype(x.dtype)


def _dot(a: Array, b: Array) -> Array:
  return jnp.matmul(a, b, preferred_element_type=jnp.float32)
