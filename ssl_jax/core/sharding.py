"""One program on one or many devices: the batch is split over the mesh axis `data`, everything else is replicated."""

import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ssl_jax.types import InputError, PyTree


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


def over_data(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of a batch: its first axis is split."""
  return NamedSharding(mesh, PartitionSpec("data"))


def to_devices(batch: PyTree, sharding: NamedSharding) -> PyTree:
  """Returns global arrays made of every process's share of the batch."""
  return jax.tree.map(lambda a: jax.make_array_from_process_local_data(sharding, a), batch)
