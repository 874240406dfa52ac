"""A discriminator that learns in turn with a network: it tells predictions on labelled scans from those on unlabelled ones."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ssl_jax.core.step import move
from ssl_jax.ops.initial import init_module
from ssl_jax.ops.segmentation import cross_entropy
from ssl_jax.types import Array, Metrics, PyTree, TrainState

NAME = "discriminator"
LABELLED = 1


@dataclasses.dataclass(frozen=True)
class Adversary:
  """The discriminator of a method, a student with an optimizer of its own.

  Attributes:
    network: called as `network(prediction, image, train=...)`, returns f32[B, 2].
    lr: learning rate of its Adam (β 0.9, 0.99) [C]; constant.
  """

  network: Any
  lr: float

  @property
  def optimizer(self) -> optax.GradientTransformation:
    """Adam without weight decay."""
    return optax.adam(self.lr, b1=0.9, b2=0.99)

  def join(self, state: TrainState, optimizer: optax.GradientTransformation, key: Array, image: Array, channels: int) -> TrainState:
    """Returns a method's first state with the discriminator in it, each student with an entry in `opt`.

    Args:
      state: from `init_state`.
      optimizer: of the other students.
      key: PRNG key.
      image: f32[B, *spatial, channels]; its shape alone counts.
      channels: of the predictions.
    """
    key = jax.random.fold_in(key, ord("d"))
    made = init_module(self.network, key, jnp.zeros((*image.shape[:-1], channels)), jnp.zeros(image.shape), train=False)
    params = made["params"]
    opt = {name: optimizer.init(student) for name, student in state.students.items()} | {NAME: self.optimizer.init(params)}
    return dataclasses.replace(state, students={**state.students, NAME: params}, opt=opt)

  def deceived(self, state: TrainState, prediction: Array, image: Array) -> Array:
    """Cross-entropy of the discriminator, without dropout, against "labelled": falls as the network deceives it.

    Args:
      state: its discriminator is as given; no gradient.
      prediction: f32[B, *spatial, K] of unlabelled images; gradient flows here.
      image: f32[B, *spatial, channels].
    """
    logits = self.network.apply({"params": state.students[NAME]}, prediction, image, train=False)
    return cross_entropy(logits, jnp.full(len(image), LABELLED))

  def learn(self, state: TrainState, prediction: Array, image: Array, num_labelled: int, key: Array) -> tuple[TrainState, Metrics]:
    """Moves the discriminator, and nothing else, towards telling the first `num_labelled` predictions from the others.

    Args:
      state: after the network's step.
      prediction: f32[B, *spatial, K] of all images; no gradient.
      image: f32[B, *spatial, channels].
      num_labelled: how many of the batch.
      key: dropout key.
    """
    target = (jnp.arange(len(image)) < num_labelled).astype(jnp.int32)

    def loss_fn(params: PyTree) -> tuple[Array, Metrics]:
      logits = self.network.apply({"params": params}, prediction, image, train=True, rngs={"dropout": key})
      loss = cross_entropy(logits, target)
      return loss, {"loss_discriminator": loss, "discriminator_right": jnp.mean(jnp.argmax(logits, axis=-1) == target)}

    params, opt, metrics = move(self.optimizer, state.opt[NAME], state.students[NAME], loss_fn)
    return dataclasses.replace(state, students={**state.students, NAME: params}, opt={**state.opt, NAME: opt}), metrics
