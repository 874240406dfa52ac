"""One program on one or many devices: the batch is split over the mesh axis `data`, the state is on all of them, or split too."""

import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ssl_jax.types import InputError, PyTree, TrainState


def data_mesh(batch_labelled: int, batch_unlabelled: int, batch_synthetic: int = 0) -> Mesh:
  """Returns a mesh with one axis, `data`, over as many devices as divide all batches.

  Args:
    batch_labelled, batch_unlabelled, batch_synthetic: global batch sizes.

  Raises:
    InputError: with several processes, where every device must take part, when a batch does not divide.
  """
  batches = math.gcd(batch_labelled, batch_unlabelled, batch_synthetic)
  count = math.gcd(batches, jax.device_count())
  if jax.process_count() > 1 and count != jax.device_count():
    raise InputError(
      f"config.train.batch_labelled, batch_unlabelled, batch_synthetic: {batch_labelled}, {batch_unlabelled} and {batch_synthetic} must be "
      f"multiples of the {jax.device_count()} devices"
    )
  return Mesh(np.asarray(jax.devices()[:count]), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of the state: a copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def of_state(mesh: Mesh, state: TrainState, split: bool) -> TrainState:
  """Returns the sharding of every leaf of a state.

  Args:
    mesh: from `data_mesh`.
    state: shapes suffice.
    split: divide the optimizer's state and the teacher among the devices, each leaf along its longest side that divides; XLA gathers what
      a step needs. A copy on every device otherwise.

  Source: Rajbhandari et al. 2020 (ZeRO), stage 1.
  """

  def share(leaf: jax.ShapeDtypeStruct) -> NamedSharding:
    sides = [side if side % mesh.size == 0 else 0 for side in leaf.shape]
    if not any(sides):
      return replicated(mesh)
    return NamedSharding(mesh, PartitionSpec(*[None] * sides.index(max(sides)), "data"))

  everywhere = jax.tree.map(lambda _: replicated(mesh), state)
  return everywhere.replace(opt=jax.tree.map(share, state.opt), teacher=jax.tree.map(share, state.teacher)) if split else everywhere


def on_one_device(tree: PyTree) -> PyTree:
  """Returns a copy of a state on the first device of this process, where it may be used without the other processes."""

  def local(leaf: jax.Array) -> jax.Array:
    if not leaf.is_fully_replicated:
      assert isinstance(leaf.sharding, NamedSharding)
      leaf = jax.jit(lambda a: a, out_shardings=NamedSharding(leaf.sharding.mesh, PartitionSpec()))(leaf)
    return leaf.addressable_data(0)

  return jax.tree.map(lambda leaf: local(leaf) if isinstance(leaf, jax.Array) else leaf, tree)


def over_data(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of a batch: its first axis is split."""
  return NamedSharding(mesh, PartitionSpec("data"))


def to_devices(batch: PyTree, sharding: NamedSharding) -> PyTree:
  """Returns global arrays made of every process's share of the batch."""
  return jax.tree.map(lambda a: jax.make_array_from_process_local_data(sharding, a), batch)
