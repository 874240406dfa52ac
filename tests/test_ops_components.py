"""The largest component against SciPy's labelling and a published implementation's output, for both ways of spreading roots."""

import functools
from pathlib import Path

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from scipy import ndimage

from ssl_jax.ops import components
from ssl_jax.ops.components import largest_component

ORACLE = Path(__file__).parent / "data" / "largest_component.npz"
WAYS = {
  "hooking": jax.jit(functools.partial(components._of_each, spread=components._hook)),
  "sweeps": jax.jit(functools.partial(components._of_each, spread=components._sweep)),
}
BATCH = 10  # masks per call
SHAPES = {2: (13, 18), 3: (7, 9, 10)}  # odd and even sides


def reference(masks):
  """SciPy numbers components in raster order and argmax takes the first of several largest."""

  def one(mask):
    labels, _ = ndimage.label(mask, np.ones((3,) * mask.ndim))
    sizes = np.bincount(labels.ravel(), minlength=2)
    return labels == 1 + np.argmax(sizes[1:])

  return np.stack([one(mask) for mask in masks])


@pytest.fixture(params=WAYS)
def largest(request):
  return lambda masks: np.asarray(WAYS[request.param](np.asarray(masks)))


def spiral(side):
  """A path of width 1 from the corner to the middle, between walls of width 1."""
  mask = np.zeros((side + 4, side + 4), bool)  # a border of free voxels and one of taken ones: the path keeps one voxel from what is taken
  mask[[0, -1]] = mask[:, [0, -1]] = True
  at, ahead = np.array((2, 2)), np.array((0, 1))
  mask[2, 2] = True
  for _ in range(2 * side):  # legs
    while not mask[tuple(at + ahead)] and not mask[tuple(at + 2 * ahead)]:
      at = at + ahead
      mask[tuple(at)] = True
    ahead = np.array((ahead[1], -ahead[0]))
  return mask[2:-2, 2:-2]


def serpentine(shape):
  """One path of width 1 that fills the volume: to and fro along the last axis, row after row, slice after slice."""
  mask = np.zeros(shape, bool)
  mask[::2, ::2] = True
  rows = range(0, shape[1], 2)
  for z in range(0, shape[0], 2):
    for y in rows[:-1]:
      mask[z, y + 1, -1 if y // 2 % 2 == 0 else 0] = True
    if z + 2 < shape[0]:
      y = rows[-1] if z // 2 % 2 == 0 else 0
      mask[z + 1, y, 0] = True
  return mask


def checkerboard(shape, period):
  return np.indices(shape).sum(axis=0) % period == 0


def grid_of_points(shape):
  return np.all(np.indices(shape) % 2 == 0, axis=0)


def boxes(shape, *corners, side=2):
  mask = np.zeros(shape, bool)
  for corner in corners:
    mask[tuple(slice(c, c + side) for c in corner)] = True
  return mask


def point(shape, *where):
  mask = np.zeros(shape, bool)
  mask[where] = True
  return mask


def cross_of_diagonals(side):
  return np.eye(side, dtype=bool) | np.eye(side, dtype=bool)[::-1]


FLAT, SOLID = (17, 16), (13, 15, 16)  # as few shapes as possible: each is compiled twice
CASES = {
  "2D empty": np.zeros(FLAT, bool),
  "2D full": np.ones(FLAT, bool),
  "2D point": point(FLAT, 16, 15),
  "2D spiral": spiral(41),
  "2D spiral, turned": spiral(41)[::-1, ::-1],
  "2D spiral's walls": ~spiral(41),
  "2D serpentine": serpentine((1, *FLAT))[0],
  "2D checkerboard": checkerboard(FLAT, 2),
  "2D points": grid_of_points(FLAT),
  "2D diagonals": cross_of_diagonals(41),
  "2D first of two": boxes(FLAT, (0, 6), (1, 0)),  # the second holds the block of smaller number
  "2D first of three, turned": boxes(FLAT, (0, 6), (1, 0), (5, 5))[::-1, ::-1],
  "2D one row": np.arange(40)[None] % 7 != 3,
  "2D one column": np.arange(40)[:, None] % 11 > 2,
  "2D one voxel": np.ones((1, 1), bool),
  "3D empty": np.zeros(SOLID, bool),
  "3D full": np.ones(SOLID, bool),
  "3D point": point(SOLID, 12, 14, 15),
  "3D serpentine": serpentine(SOLID),
  "3D serpentine, turned": serpentine(SOLID)[::-1, ::-1, ::-1],
  "3D serpentine across": np.transpose(serpentine((16, 15, 13)), (2, 1, 0)),
  "3D serpentine's walls": ~serpentine(SOLID),
  "3D checkerboard": checkerboard(SOLID, 2),
  "3D points": grid_of_points(SOLID),
  "3D planes across": checkerboard(SOLID, 9),
  "3D first of three": boxes(SOLID, (0, 0, 5), (0, 1, 0), (5, 1, 1)),
  "3D flat": serpentine((1, 12, 13)),
  "3D column": (np.arange(50) % 9 != 4)[:, None, None],
}


@pytest.mark.parametrize("name", CASES)
def test_worst_cases_equal_scipys(largest, name):
  mask = CASES[name][None]
  np.testing.assert_array_equal(largest(mask), reference(mask))


def test_the_worst_cases_are_what_they_claim():
  parts = lambda name: ndimage.label(CASES[name], np.ones((3,) * CASES[name].ndim))[1]
  for name in ("2D spiral", "2D serpentine", "3D serpentine", "3D flat"):
    mask = CASES[name]
    touching = sum(np.sum(np.moveaxis(mask, a, 0)[1:] & np.moveaxis(mask, a, 0)[:-1]) for a in range(mask.ndim))
    assert parts(name) == 1 and touching == mask.sum() - 1, f"{name}: a path"
  assert CASES["2D spiral"].mean() > 0.5 and CASES["3D serpentine"].mean() > 0.25
  assert parts("2D checkerboard") == parts("3D checkerboard") == parts("2D diagonals") == 1
  assert parts("2D points") == 9 * 8 and parts("3D points") == 7 * 8 * 8
  assert parts("2D first of two") == 2 and parts("2D first of three, turned") == parts("3D first of three") == 3
  assert reference(CASES["2D first of two"][None])[0, 0, 6] and reference(CASES["3D first of three"][None])[0, 0, 0, 5]


@pytest.mark.parametrize("rank", (2, 3))
def test_a_published_implementation_agrees(largest, rank):
  with np.load(ORACLE) as saved:
    np.testing.assert_array_equal(largest(saved[f"mask{rank}d"]), saved[f"largest{rank}d"])


@st.composite
def batches(draw, rank):
  """Ten masks of densities on both sides of where one component takes over; coarse ones have blobs."""
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  shape = SHAPES[rank]
  masks = []
  for _ in range(BATCH):
    coarse = rng.integers(1, 4)
    values = rng.random([-(-s // coarse) for s in shape])
    for axis in range(rank):
      values = values.repeat(coarse, axis)
    masks.append(values[tuple(slice(0, s) for s in shape)] < rng.uniform(0, 0.6 if rank == 2 else 0.3))
  return np.stack(masks)


@pytest.mark.parametrize("rank", (2, 3))
def test_five_hundred_random_masks_equal_scipys(rank):
  several = []

  @hypothesis.settings(max_examples=50, deadline=None, derandomize=True, database=None)
  @hypothesis.given(batches(rank))
  def check(masks):
    expected = reference(masks)
    several.append((expected != masks).any(axis=(1, *range(2, rank + 1))).mean())
    for name, way in WAYS.items():
      np.testing.assert_array_equal(np.asarray(way(masks)), expected, err_msg=name)

  check()
  assert len(several) >= 50 and np.mean(several) > 0.5  # most masks have more than one component


def random_masks(seed, *shape, density=0.25):
  return np.random.default_rng(seed).random(shape) < density


def test_jitted_equals_not_jitted_and_scipys():
  masks = random_masks(0, BATCH, *SHAPES[3], density=0.1)
  expected = reference(masks)
  np.testing.assert_array_equal(largest_component(jnp.asarray(masks)), expected)
  np.testing.assert_array_equal(jax.jit(largest_component)(masks), expected)


def test_samples_are_independent_and_in_order():
  masks = random_masks(1, BATCH, *SHAPES[3], density=0.1)
  masks[3] = False
  together = WAYS["hooking"](masks)
  np.testing.assert_array_equal(WAYS["hooking"](masks[::-1])[::-1], together)
  assert not together[3].any() and together[4].any()


def test_every_device_deals_with_its_own_samples():
  count = jax.device_count()
  if count == 1:
    pytest.skip("needs several devices")
  mesh = Mesh(np.asarray(jax.devices()), ("data",), axis_types=(AxisType.Auto,))
  over_data = NamedSharding(mesh, PartitionSpec("data"))
  masks = random_masks(2, 2 * count, *SHAPES[3], density=0.1)
  masks[5] = serpentine(SHAPES[3])  # one device needs more rounds than the others
  placed = jax.device_put(masks, over_data)
  compiled = jax.jit(largest_component).lower(placed).compile()
  with jax.transfer_guard("disallow"):
    out = compiled(placed)
  np.testing.assert_array_equal(out, reference(masks))
  assert out.sharding.is_equivalent_to(over_data, out.ndim)
  moved = [name for name in ("all-gather", "all-to-all", "collective-permute") if name in compiled.as_text()]
  assert not moved, "voxels travel between devices"


def test_inside_a_donating_step_with_a_gradient():
  def loss(prob):
    return jnp.sum(prob**2 * largest_component(prob > 0.9))

  prob = np.random.default_rng(3).random((2, *SHAPES[3]), np.float32)
  placed = jax.device_put(prob)
  step = jax.jit(lambda p: p - 0.5 * jax.grad(loss)(p), donate_argnums=0)
  with jax.transfer_guard("disallow"):
    out = step(placed)
  np.testing.assert_allclose(out, np.where(reference(prob > 0.9), 0, prob), atol=1e-6)
