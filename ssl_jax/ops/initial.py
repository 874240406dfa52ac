"""First values of parameters, and how those of one network are drawn at once.

To XLA a draw and its key are two loops of a hundred instructions each, so the 120 draws of two V-Nets take longer to compile than the
rest of a first state. Parameters of about the same size are therefore one draw over their keys.
"""

import contextvars
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax.core import meta
from jax import Array
from jax.extend.random import define_prng_impl

Initializer = Callable[..., Any]

_SMALL = 4096  # values, below which parameters of all sizes are drawn together

_deferring = contextvars.ContextVar("_deferring", default=False)


@dataclasses.dataclass(eq=False)
class Deferred(meta.AxisMetadata):
  """Stands for a parameter that is still to be drawn from U(±bound); to its layer it is zeros."""

  key: Array
  shape: tuple[int, ...]
  dtype: Any
  bound: float

  def unbox(self) -> Array:
    """Returns what the layer computes with."""
    return jnp.zeros(self.shape, self.dtype)

  def replace_boxed(self, val: Any) -> Any:
    """Refuses layers that compute with what they have drawn before they keep it."""
    raise TypeError("a parameter that is drawn later cannot be changed before; draw it with jax.random.uniform")

  def add_axis(self, index: int, params: dict[Any, Any]) -> Any:
    """Refuses `nn.vmap` and `nn.scan`, which stack the parameters of layers."""
    raise TypeError("parameters that are drawn later cannot be stacked; draw them with jax.random.uniform")

  remove_axis = add_axis


def uniform(bound: float) -> Initializer:
  """Returns an initializer that draws from U(±bound), at once or, inside `init_module`, later."""

  def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Any:
    if _deferring.get():
      return Deferred(key, tuple(shape), dtype, bound)
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


def _refuse(*_: Any) -> Array:
  raise TypeError("the key of a parameter may only be drawn with: split in an initializer, it would give other values than on its own")


@functools.cache
def _unfolded(impl: Any, words: int) -> Any:
  """A kind of key: the words of one of kind `impl`, and what Flax folds in for each parameter, once, which only a draw does indeed."""
  folded = lambda key: jax.random.fold_in(jax.random.wrap_key_data(key[:-1], impl=impl), key[-1])
  return define_prng_impl(
    key_shape=(words + 1,),
    seed=_refuse,
    split=_refuse,
    random_bits=lambda key, bits, shape: jax.random.bits(folded(key), shape, jnp.dtype(f"uint{bits}")),
    fold_in=lambda key, data: jnp.append(key[:-1], data),
    name=f"unfolded_{impl}",
  )


def init_module(module: Any, key: Array, *args: Any, **settings: Any) -> Any:
  """Returns what `module.init(key, *args, **settings)` does, with parameters of about the same size drawn at once.

  With JAX's default generator every value is what a draw of its own would have given: one depends on its key and on how many are before
  it, not on how many follow.
  """
  impl, words = jax.random.key_impl(key), jax.random.key_data(key)
  unfolded = jax.random.wrap_key_data(jnp.append(words, jnp.uint32(0)), impl=_unfolded(impl, words.size))
  token = _deferring.set(True)
  try:
    variables = module.init(unfolded, *args, **settings)
  finally:
    _deferring.reset(token)
  leaves, structure = jax.tree.flatten(variables)
  waiting = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Deferred)]
  if not waiting:
    return variables
  folds = jax.random.key_data(jnp.stack([leaves[place].key for place in waiting]))
  keys = dict(zip(waiting, jax.vmap(jax.random.fold_in, (None, 0))(key, folds[:, -1]), strict=True))
  alike: dict[Any, list[int]] = {}
  for place in waiting:
    size_class = math.ceil(math.log(max(math.prod(leaves[place].shape), _SMALL), 4))
    alike.setdefault((size_class, leaves[place].dtype), []).append(place)
  for (_, dtype), places in alike.items():
    most = max(math.prod(leaves[place].shape) for place in places)
    draw = lambda key, bound, most=most, dtype=dtype: jax.random.uniform(key, (most,), dtype, -bound, bound)
    bounds = jnp.asarray([leaves[place].bound for place in places], dtype)
    for place, values in zip(places, jax.vmap(draw)(jnp.stack([keys[place] for place in places]), bounds), strict=True):
      shape = leaves[place].shape
      leaves[place] = values[: math.prod(shape)].reshape(shape)
  return jax.tree.unflatten(structure, leaves)
