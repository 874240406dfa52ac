"""Small heads on the features of drawn voxels, trained beside the network that they serve."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ssl_jax.ops import select
from ssl_jax.ops.initial import init_module
from ssl_jax.types import Array, PyTree, TrainState


def feature_width(network: Any, params: PyTree, stats: PyTree, image: Array) -> int:
  """Returns n, the channels of a network's features f4 of images of this shape."""
  variables = {"params": params, "batch_stats": stats}
  return int(jax.eval_shape(lambda v, x: network.apply(v, x, train=False), variables, image).f4.shape[-1])


def init_chain(head: Any, keys: Iterable[Array], width: int, names: Iterable[str]) -> dict[str, PyTree]:
  """Returns name -> variables of heads that follow one another, the first on features of this width."""
  made = {}
  for name, key in zip(names, keys, strict=True):
    made[name] = init_module(head, key, jnp.zeros((2, width)), train=False)
    width = head.features
  return made


def with_heads(state: TrainState, optimizer: optax.GradientTransformation, made: Mapping[str, PyTree]) -> TrainState:
  """Returns the first state with heads, name -> variables, among students and running averages; the teacher has none."""
  students = {**state.students, **{name: variables["params"] for name, variables in made.items()}}
  stats = {**state.stats, **{name: variables["batch_stats"] for name, variables in made.items()}}
  return dataclasses.replace(state, students=students, stats=stats, opt=optimizer.init(students))


def embed(
  head: Any, params: Mapping[str, PyTree], stats: Mapping[str, PyTree], names: Sequence[str], rows: Array, counted: Array
) -> tuple[Array, dict[str, PyTree]]:
  """Passes voxels through heads that follow one another, in training mode.

  Args:
    head: module of all of them.
    params, stats: name -> parameters and running averages.
    names: of the heads, in order.
    rows: f32[m, width]; gradient flows here.
    counted: bool[m], the rows that BatchNorm's statistics see.

  Returns:
    f32[m, features] and the heads' new running averages.
  """
  new = {}
  for name in names:
    rows, updated = head.apply({"params": params[name], "batch_stats": stats[name]}, rows, counted, train=True, mutable=["batch_stats"])
    new[name] = updated["batch_stats"]
  return rows, new


def embed_classes(
  head: Any,
  params: Mapping[str, PyTree],
  stats: Mapping[str, PyTree],
  names: Sequence[str],
  features: Array,
  label: Array,
  key: Array,
  *,
  classes: range,
  count: int,
) -> tuple[Array, Array, dict[str, PyTree]]:
  """Draws voxels of every class, with replacement, and embeds them, see `embed`.

  Args:
    head, params, stats, names: the heads.
    features: [B, *spatial, n]; gradient flows here.
    label: i32[B, *spatial].
    key: PRNG key.
    classes: those to draw from.
    count: draws a class.

  Returns:
    f32[classes, count, features], which classes have voxels bool[classes] (the embeddings of others are arbitrary), and the heads' new
    running averages.
  """
  by_sample, keys = label.reshape(len(label), -1), jax.random.split(key, len(classes))
  index, has = jax.vmap(lambda c, k: select.draw(k, by_sample == c, count))(jnp.array(classes), keys)
  rows = select.take(features.reshape(label.size, -1), index.reshape(-1)).astype(jnp.float32)
  rows, new = embed(head, params, stats, names, rows, jnp.repeat(has, count))
  return rows.reshape(len(classes), count, -1), has, new
