"""When XLA:CPU computes what, and so how much it holds at the same time.

It computes what it can as soon as it can, keeps what it has for whoever needs it last, and orders past barriers. So what shall come later
is made to need what comes before, and of a large batch one sample after the other has what it needs for a moment.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

_LARGE = 1 << 25  # elements, as three images of 112×112×80 with 16 channels have; with two a V-Net's step takes 1.06 of the time


def is_large(shape: Sequence[int]) -> bool:
  """Whether a CPU takes the samples of such a batch one after the other; never of one left open, in a program to be exported."""
  return isinstance(shape[0], int) and shape[0] > 1 and math.prod(shape) >= _LARGE


def zero_of(y: Array) -> Array:
  """Returns 0 of y's dtype, a floating one, that XLA cannot know before y is there; NaN where y's first value is."""
  some = y[(0,) * y.ndim]
  return jnp.where(some == some, 0, some).astype(y.dtype)


def again(x: Array, y: Array) -> Array:
  """Returns x; on a CPU, what a gradient computes of a large one is then computed once y is there, and not kept from the forward pass.

  XLA:CPU takes two x for one where a barrier alone tells them apart, so this adds `zero_of(y)`.
  """
  return x + zero_of(y).astype(x.dtype) if jax.default_backend() == "cpu" and x.size >= _LARGE else x


def by_sample(convolve: Callable[[Array], Array], x: Array) -> Array:
  """Returns what a function of a batch makes of it, one sample after the other. It has no gradient of its own."""
  one = jax.eval_shape(convolve, jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype))
  results = _room(x, (x.shape[0], *one.shape[1:]), one.dtype)
  return lax.fori_loop(0, x.shape[0], lambda i, results: _put(results, convolve(_take(x, i)), i), results)


def gradients_by_sample(
  gradients: Callable[[Array, Array, Array], tuple[Array, Array]], x: Array, w: Array, grad: Array
) -> tuple[Array, Array]:
  """Returns what `gradients` makes of a batch, a kernel and the result's gradient, one sample after the other: the gradients of both."""
  in_place = x.shape == grad.shape

  def add(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
    total, results = carry
    grad_x, grad_w = gradients(_take(x, i), w, _take(results if in_place else grad, i))
    return total + grad_w, _put(results, grad_x, i)

  first = jnp.zeros(w.shape, jnp.float32), grad if in_place else _room(grad, x.shape, x.dtype)
  total, grad_x = lax.fori_loop(0, x.shape[0], add, first)
  return grad_x, total.astype(w.dtype)


def _take(x: Array, i: Array) -> Array:
  return lax.dynamic_slice_in_dim(x, i, 1)


def _put(results: Array, result: Array, i: Array) -> Array:
  return lax.dynamic_update_slice_in_dim(results, result, i, 0)


def _room(y: Array, shape: Sequence[int], dtype: Any) -> Array:
  """Memory for results of a loop, taken once y is there. XLA:CPU takes that of `lax.scan` when the program begins."""
  return jnp.broadcast_to(zero_of(y).astype(dtype), shape)
