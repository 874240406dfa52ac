"""Synthetic atrium-like scans: deterministic, made in memory, hard enough that labels matter.

A scan shows a body with lungs and five bright blood pools of similar intensity. Only one is labelled: the "atrium", a deformed ellipsoid
with tubular veins. A neighbouring chamber touches it through a thin wall, a ventricle has a thick dark wall, two vessels run past. They
keep one arrangement, but pose, size, shape, contrast, gain, offset, bias field and noise change from scan to scan.
"""

import dataclasses
import functools
import math
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from ssl_jax.data.case import Case
from ssl_jax.types import InputError, PhantomConfig

_MOST_VOXELS, _MOST_SCANS = 2**24, 10_000


@dataclasses.dataclass(frozen=True)
class PhantomSource:
  """`phantom_000`, ... for training and `phantom_test_000`, ... for evaluation; a scan depends on seed, name and shape alone."""

  cfg: PhantomConfig
  channels: int = 1
  num_classes: int = 2
  class_names: tuple[str, ...] = ("background", "atrium")

  def __post_init__(self) -> None:
    """Raises `InputError` when the configuration makes no sense."""
    if len(self.cfg.shape) not in (2, 3) or min(self.cfg.shape) < 16:
      raise InputError(f"data.phantom.shape={self.cfg.shape} must have 2 or 3 sides of at least 16 voxels")
    if math.prod(self.cfg.shape) > _MOST_VOXELS:
      raise InputError(f"data.phantom.shape={self.cfg.shape} has more than {_MOST_VOXELS} voxels")
    if not (1 <= self.cfg.num_train <= _MOST_SCANS and 0 <= self.cfg.num_test <= _MOST_SCANS and self.cfg.seed >= 0):
      raise InputError(f"data.phantom needs 1 <= num_train <= {_MOST_SCANS}, 0 <= num_test <= {_MOST_SCANS} and seed >= 0")

  @property
  def train_names(self) -> tuple[str, ...]:
    """Names of the training scans."""
    return tuple(f"phantom_{i:03d}" for i in range(self.cfg.num_train))

  @property
  def test_names(self) -> tuple[str, ...]:
    """Names of the test scans."""
    return tuple(f"phantom_test_{i:03d}" for i in range(self.cfg.num_test))

  @property
  def names(self) -> tuple[str, ...]:
    """All scans."""
    return self.train_names + self.test_names

  def has_label(self, name: str) -> bool:
    """Every phantom has a label."""
    return name in self.names

  def files(self, name: str) -> tuple[Path, ...]:
    """A phantom has no files."""
    return ()

  def load(self, name: str) -> Case:
    """Makes one scan, 1 mm isotropic."""
    rng = np.random.default_rng([self.cfg.seed, "test" in name, int(name.rsplit("_", 1)[1])])
    image, label = make_phantom(tuple(self.cfg.shape), rng)
    return Case(name, image[..., None], label, (1.0,) * label.ndim, np.eye(4))


def make_phantom(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
  """Draws one scan.

  Args:
    shape: voxels along the 2 or 3 axes.
    rng: the only source of randomness.

  Returns: f32[*shape] intensities, u8[*shape] with 1 = atrium.
  """
  rank = len(shape)
  grid = _grid(shape)
  pose = _small_rotation(rank, 0.3, rng)
  scale = rng.uniform(0.85, 1.15)
  centre = rng.uniform(-0.2, 0.2, rank)
  # Coordinates of the heart: the arrangement below is fixed in them. A smooth warp keeps outlines from being ellipsoids.
  warp = np.stack([_smooth(shape, 0.12, rng) for _ in range(rank)])
  heart = np.tensordot(pose, grid - centre.reshape(-1, *[1] * rank), axes=1) / scale + 0.07 * warp

  def at(*position: float) -> np.ndarray:
    return np.array(position[:rank]) + rng.normal(0, 0.05, rank)

  def blob(middle: np.ndarray, *radii: float) -> np.ndarray:
    sides = np.array(radii[:rank]) * rng.uniform(0.8, 1.25, rank)
    turned = np.tensordot(_small_rotation(rank, 0.4, rng), heart - middle.reshape(-1, *[1] * rank), axes=1)
    return np.sqrt(((turned / sides.reshape(-1, *[1] * rank)) ** 2).sum(axis=0))  # < 1 inside

  def tube(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    return _distance_to_segment(heart, start, end)

  middle = at(0.0, 0.0, 0.0)
  body = blob(middle, 0.44, 0.36, 0.44)
  veins, stumps = np.full(shape, np.inf), np.zeros(shape, bool)
  for side in ((0.8, 0.75, 0.35), (-0.8, 0.75, 0.3), (0.85, 0.5, -0.45), (-0.85, 0.5, -0.4)):
    far = middle + at(*side)
    vein = tube(middle, far) / rng.uniform(0.07, 0.12)
    veins = np.minimum(veins, vein)
    stumps |= (vein < 1) & (body < rng.uniform(1.25, 1.6))  # the label follows a vein only so far
  atrium = (body < 1) | stumps

  chamber = blob(at(0.72, -0.35, 0.05), 0.36, 0.34, 0.42)
  ventricle = blob(at(-0.35, -0.78, -0.1), 0.36, 0.38, 0.45)
  vessels = np.minimum(
    tube(at(0.12, 0.62, -1.6), at(-0.05, 0.68, 1.6)) / rng.uniform(0.13, 0.19),
    tube(at(0.35, -0.62, 1.7), at(0.1, -0.45, 0.45)) / rng.uniform(0.13, 0.2),
  )

  muscle, fat, blood = rng.uniform(0.25, 0.45), rng.uniform(0.0, 0.3), rng.uniform(1.0, 1.2)
  pools = blood + np.array([0.0, -0.15, -0.15, 0.2]) + rng.normal(0, 0.06, 4)  # atrium, chamber, ventricle, vessels
  image = fat + 0.15 * _smooth(shape, 0.06, rng)
  lungs = np.minimum(blob(at(1.35, 0.55, 0.0), 0.6, 0.8, 1.3), blob(at(-1.35, 0.45, 0.0), 0.6, 0.8, 1.3))
  image[lungs < 1] = rng.uniform(-0.6, -0.3)
  image[ventricle < rng.uniform(1.3, 1.6)] = muscle
  image[chamber < 1.12] = muscle
  image[body < rng.uniform(1.12, 1.22)] = muscle + rng.uniform(0.0, 0.15)  # the atrium's wall may enhance
  image[vessels < 1.25] = muscle
  coarse = _smooth(shape, 0.05, rng)
  image = np.where(vessels < 1, pools[3], image)
  image = np.where(ventricle < 1, pools[2] + 0.3 * coarse, image)
  image = np.where((chamber < 1) & (body > 1.1), pools[1] + 0.22 * coarse, image)
  image = np.where((veins < 1) | (body < 1), pools[0] + 0.03 * coarse, image)

  image = gaussian_filter(image, 0.7)  # partial volume
  bias = np.exp(0.15 * _smooth(shape, 0.45, rng))
  noise = rng.uniform(0.06, 0.13) * rng.standard_normal(shape)
  image = rng.uniform(0.7, 1.4) * (image * bias + noise) + rng.uniform(-0.3, 0.3)
  return image.astype(np.float32), atrium.astype(np.uint8)


@functools.lru_cache(maxsize=4)
def _grid(shape: tuple[int, ...]) -> np.ndarray:
  """f64[rank, *shape]: voxel centres in units of half a side, each axis in (-1, 1)."""
  axes = [(np.arange(side) + 0.5) * 2 / side - 1 for side in shape]
  return np.stack(np.meshgrid(*axes, indexing="ij"))


def _smooth(shape: tuple[int, ...], width: float, rng: np.random.Generator) -> np.ndarray:
  """Noise of zero mean and unit variance, smooth over `width` of each side."""
  field = gaussian_filter(rng.standard_normal(shape), [width * side for side in shape], mode="wrap", truncate=2.5)
  return (field - field.mean()) / field.std()


def _small_rotation(rank: int, angle: float, rng: np.random.Generator) -> np.ndarray:
  """A rotation by about `angle` radians around a random axis (Cayley transform of a random antisymmetric matrix)."""
  spin = np.triu(rng.normal(0, angle / 2, (rank, rank)), 1)
  spin = spin - spin.T
  return np.linalg.solve(np.eye(rank) + spin, np.eye(rank) - spin)


def _distance_to_segment(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
  along = end - start
  offset = points - start.reshape(-1, *[1] * (points.ndim - 1))
  position = np.clip(np.tensordot(along, offset, axes=1) / (along @ along), 0, 1)
  return np.linalg.norm(offset - np.multiply.outer(along, position), axis=0)
