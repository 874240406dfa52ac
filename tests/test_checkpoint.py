"""Checkpoints: what is damaged is noticed and passed over, never used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.core import sharding
from ssl_jax.core.checkpoint import Checkpoints, checksums
from ssl_jax.types import InputError

STATE = {"kernel": jnp.arange(40_000, dtype=jnp.float32).reshape(200, 200), "step": jnp.int32(0), "seen": jnp.zeros(3, bool)}
ABSTRACT = jax.eval_shape(lambda: STATE)
HERE = sharding.replicated(sharding.data_mesh(1, 1))


@pytest.fixture
def saved(tmp_path):
  """Three checkpoints of states that differ."""
  folder = tmp_path / "checkpoints"
  checkpoints = Checkpoints(folder, 3)
  for step in (1, 2, 3):
    checkpoints.save(step, {**STATE, "step": jnp.int32(step)})
  checkpoints.close()
  return folder


def largest_file(folder):
  return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip(file):
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 4
  file.write_bytes(content)


def truncate(file):
  file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flip, truncate, lambda file: file.unlink()], ids=["flipped", "truncated", "missing"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(saved, damage, capsys):
  damage(largest_file(saved / "3" / "state"))
  checkpoints = Checkpoints(saved, 3)
  assert checkpoints.restore(ABSTRACT, HERE)["step"] == 2
  assert f"{saved / '3'}: this checkpoint is damaged" in capsys.readouterr().err
  assert checkpoints.steps() == [1, 2, 3]  # who only reads moves nothing
  assert checkpoints.restore(ABSTRACT, HERE, set_aside=True)["step"] == 2
  assert checkpoints.steps() == [1, 2] and [path.name for path in saved.with_name("checkpoints_damaged").iterdir()] == ["3_0"]
  checkpoints.save(3, {**STATE, "step": jnp.int32(3)})
  checkpoints.close()
  assert Checkpoints(saved, 3).restore(ABSTRACT, HERE)["step"] == 3


def test_without_a_sound_one_the_last_is_named(saved):
  for step in (1, 2, 3):
    flip(largest_file(saved / str(step) / "state"))
  with pytest.raises(InputError, match=rf"{saved / '3'}: this checkpoint is damaged"):
    Checkpoints(saved, 3).restore(ABSTRACT, HERE, set_aside=True)
  assert Checkpoints(saved, 3).steps() == [1, 2, 3]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32, bool])
def test_every_bit_and_every_place_counts(dtype):
  array = np.arange(60).reshape(3, 20).astype(dtype)
  before = checksums({"a": array})["a"]
  for place in ((0, 0), (1, 7), (2, 19)):
    changed = array.copy()
    bits = changed.view(np.uint8).reshape(3, -1)
    bits[place[0], place[1] * array.itemsize] ^= 1
    assert checksums({"a": changed})["a"] != before
  assert checksums({"a": array[::-1]})["a"] != before


def test_checksums_do_not_depend_on_the_sharding():
  mesh = sharding.data_mesh(8, 8)
  assert mesh.size == 8
  split = jax.device_put(STATE["kernel"], sharding.over_data(mesh))
  assert checksums({"a": split})["a"] == checksums({"a": STATE["kernel"]})["a"]
