"""Pieces that the training steps of all methods share."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ssl_jax.core import ema
from ssl_jax.ops import initial, remat
from ssl_jax.ops.softmax import softmax
from ssl_jax.types import Array, Batch, Metrics, PyTree, TrainState

Term = Callable[[], Array | tuple[Array, Metrics]]


def weighted_terms(
  weights: Mapping[str, float], terms: Mapping[str, Term], scale: Mapping[str, Array] | None = None
) -> tuple[Array, Metrics]:
  """Sums loss terms; a term whose static weight is 0 is never traced, so switching it off also saves its time.

  Args:
    weights: term name -> static weight.
    terms: term name -> thunk that computes the scalar loss, or the loss and further metrics.
    scale: term name -> traced factor, such as a ramp-up.

  Returns:
    The weighted sum and `{"loss": sum, "loss_<name>": unweighted value, **further metrics}`.

  Raises:
    ValueError: a weight names no term.
  """
  require_known(weights, terms)
  total: Array = jnp.float32(0.0)
  metrics: dict[str, Array] = {}
  for name, weight in weights.items():
    if weight:
      result = terms[name]()
      value, further = result if isinstance(result, tuple) else (result, {})
      metrics |= {f"loss_{name}": value, **further}
      total += weight * (scale or {}).get(name, jnp.float32(1.0)) * value
  return total, {"loss": total, **metrics}


def require_known(weights: Iterable[str], terms: Iterable[str]) -> None:
  """Raises `ValueError` where a weight names no term."""
  unknown = set(weights) - set(terms)
  if unknown:
    raise ValueError(f"config.method.weights.{sorted(unknown)[0]}: no such loss term; known: {', '.join(sorted(terms))}")


def in_turn(
  loss_fn: Callable[[PyTree, PyTree, PyTree], tuple[Array, tuple[PyTree, Metrics]]],
  params: PyTree,
  carry: PyTree,
  parts: Sequence[PyTree],
) -> tuple[Array, tuple[PyTree, Metrics]]:
  """Sums a loss over parts of a batch, each with its gradient before the next begins: memory holds the activations of one part.

  Args:
    loss_fn: `(params, carry, part) -> (loss, (carry, metrics))`.
    params: what the gradient is of; none flows to `carry` and `parts`.
    carry: what one part leaves to the next, such as running averages.
    parts: of the batch. Those of the same shapes are one loop, so a program of one part to compile and to load; others XLA may reorder.

  Returns:
    The sum, and the last carry with the metrics of all parts, stacked.
  """
  stack = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
  shapes = [jax.tree.map(jnp.shape, part) for part in parts]

  def run(params: PyTree, of_part: Callable[..., tuple[Any, PyTree]], zero: PyTree) -> tuple[Any, PyTree]:
    def add(before: tuple[PyTree, PyTree], part: PyTree) -> tuple[tuple[PyTree, PyTree], Metrics]:
      found, (carry, metrics) = of_part(params, before[0], part)
      return (carry, jax.tree.map(jnp.add, before[1], found)), metrics

    if all(shape == shapes[0] for shape in shapes):
      (last, total), metrics = jax.lax.scan(add, (carry, zero), stack(parts))
      return total, (last, metrics)
    state, found = (carry, zero), []
    for part in parts:
      state, metrics = add(state, part)
      found.append(metrics)
    return state[1], (state[0], stack(found))

  def with_gradient(params: PyTree, carry: PyTree, part: PyTree) -> tuple[tuple[Array, PyTree], PyTree]:
    (loss, further), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, carry, part)
    return (loss, grads), further

  def forward(params: PyTree) -> tuple[tuple[Array, PyTree], PyTree]:
    (loss, grads), further = run(params, with_gradient, (jnp.float32(0.0), jax.tree.map(jnp.zeros_like, params)))
    return (loss, further), grads

  total = jax.custom_vjp(lambda params: run(params, loss_fn, jnp.float32(0.0)))
  total.defvjp(forward, lambda grads, cotangents: (jax.tree.map(lambda grad: cotangents[0] * grad, grads),))
  return total(params)


@functools.lru_cache(maxsize=256)
def applied(network: Any, **settings: Any) -> Callable[..., Any]:
  """Returns `network.apply` with these settings as a function of its own: a step that calls it three times traces and lowers it once."""
  apply = functools.partial(network.apply, **settings)
  return jax.jit(jax.checkpoint(apply, policy=remat.POLICY) if getattr(network, "remat", False) else apply)


def forward(
  network: Any, params: PyTree, stats: PyTree, image: Array, *, key: Array | None, views: int = 1, **extra: Any
) -> tuple[Any, PyTree]:
  """Runs a network in training mode: batch statistics, and dropout when `key` is given.

  Args:
    network: Flax module called as `network(image, train=True, dropout=..., views=...)`.
    params, stats: its parameters and running averages.
    image: f32[B, *spatial, channels].
    key: dropout key; `None` turns dropout off (an EMA teacher).
    views: parts of the batch with BatchNorm statistics of their own; the first alone enters the running averages.
    extra: arrays that only some networks take, such as `perturb`.

  Returns:
    The network's output and its updated running averages.
  """
  run = applied(network, train=True, dropout=key is not None, views=views, mutable=("batch_stats",))
  out, new = run({"params": params, "batch_stats": stats}, image, rngs=None if key is None else {"dropout": key}, **extra)
  return out, new.get("batch_stats", {})


def infer(network: Any, params: PyTree, stats: PyTree, image: Array) -> Any:
  """Returns a network's output in inference mode: running averages, no dropout."""
  return applied(network, train=False)({"params": params, "batch_stats": stats}, image)


def probabilities(network: Any, params: PyTree, stats: PyTree, image: Array) -> Array:
  """Returns softmax probabilities f32[B, *spatial, C] in inference mode."""
  return softmax(infer(network, params, stats, image).logits)


def init_network(network: Any, key: Array, image: Array) -> tuple[PyTree, PyTree]:
  """Returns `(params, batch_stats)` of a network for images of this shape."""
  variables = initial.init_module(network, key, jnp.zeros(image.shape, image.dtype), train=False)
  return variables["params"], variables.get("batch_stats", {})


def init_state(
  networks: Mapping[str, Any], optimizer: optax.GradientTransformation, key: Array, image: Array, *, teacher: bool = False
) -> TrainState:
  """Returns the state of a method whose students are whole networks.

  Args:
    networks: student -> its network. A lone one takes `key` itself, so that all methods of one network begin alike.
    optimizer: of all students together.
    key: PRNG key.
    image: f32[B, *spatial, channels]; its shape alone counts.
    teacher: whether the state also holds a copy of students and running averages, see `follow`.
  """
  key_of = lambda name: key if len(networks) == 1 else jax.random.fold_in(key, ord(name))
  made = {name: init_network(network, key_of(name), image) for name, network in networks.items()}
  students, stats = ({name: both[i] for name, both in made.items()} for i in (0, 1))
  follower = {"students": students, "stats": stats} if teacher else {}
  copied = jax.tree.map(jnp.copy, follower)  # own buffers, or donation would free them twice
  return TrainState(jnp.int32(0), students, (), stats, optimizer.init(students), copied, ())


def both_halves(batch: Batch) -> tuple[Array, Array]:
  """Returns the labelled images followed by the unlabelled ones, f32[B, *spatial, channels], and the labels of the former."""
  return jnp.concatenate([batch["labelled"]["image"], batch["unlabelled"]["image"]]), batch["labelled"]["label"]


def move(
  optimizer: optax.GradientTransformation, opt: PyTree, params: PyTree, loss_fn: Callable[[PyTree], tuple[Array, Any]]
) -> tuple[PyTree, PyTree, Any]:
  """Moves parameters down the gradient of a loss.

  Args:
    optimizer: the rule.
    opt: its state.
    params: what moves.
    loss_fn: `params -> (loss, further)`.

  Returns:
    The new parameters, the optimizer's new state, and `further`.
  """
  (_, further), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
  updates, opt = optimizer.update(grads, opt, params)
  return optax.apply_updates(params, updates), opt, further


def require_synthetic(weights: Mapping[str, float], batch: Batch) -> None:
  """Raises `ValueError` where the term `synthetic` has a weight but the batch no synthetic images."""
  if weights.get("synthetic") and "synthetic" not in batch:
    raise ValueError(
      "config.train.batch_synthetic: this method learns from synthetic images, so it must be positive (with "
      "data.synthesis.per_background); or switch them off by config.method.weights.synthetic=0"
    )


def descend(
  optimizer: optax.GradientTransformation,
  state: TrainState,
  loss_fn: Callable[[PyTree], tuple[Array, Metrics, Mapping[str, Any]]],
  of: str | None = None,
) -> tuple[TrainState, dict[str, Array]]:
  """Moves the students down the gradient of a loss and counts the step.

  Args:
    optimizer: of all students together.
    state: before the step.
    loss_fn: `students -> (loss, metrics, changes)`; `changes` are the state's other new fields, such as `stats`.
    of: the one student that moves, with `state.opt[of]`, and that `loss_fn` gets; the others stay.
  """

  def loss_and_rest(students: PyTree) -> tuple[Array, Any]:
    loss, *rest = loss_fn(students)
    return loss, rest

  students, opt = (state.students, state.opt) if of is None else (state.students[of], state.opt[of])
  students, opt, (metrics, changes) = move(optimizer, opt, students, loss_and_rest)
  if of is not None:
    students, opt = {**state.students, of: students}, {**state.opt, of: opt}
  return dataclasses.replace(state, step=state.step + 1, students=students, opt=opt, **changes), dict(metrics)


def follow(state: TrainState, stats: PyTree, decay: float) -> TrainState:
  """Returns the state after `descend` with the teacher moved towards the students, and the teacher's new running averages."""
  moved = ema.update(state.teacher["students"], state.students, state.step - 1, decay)
  return dataclasses.replace(state, teacher={"students": moved, "stats": stats})


def student(network: Any, name: str = "a") -> Callable[[TrainState, Array], Array]:
  """Returns the predictor of a student that is a whole network."""
  return lambda state, image: probabilities(network, state.students[name], state.stats[name], image)


def teacher(network: Any, name: str = "a") -> Callable[[TrainState, Array], Array]:
  """Returns the predictor of a student's moving average, see `follow`."""
  return lambda state, image: probabilities(network, state.teacher["students"][name], state.teacher["stats"][name], image)
