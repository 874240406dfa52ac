"""Strong views of unlabelled images, with their pseudo-labels moved along."""

import jax
import jax.numpy as jnp
from jax import Array

from ssl_jax.ops.views import uniform_noise


def box_in_plane(key: Array, batch: int, spatial: tuple[int, ...], alpha: float) -> Array:
  """Draws one box per sample in the first two axes, over the whole of the others.

  λ ~ Beta(α, α); the sides are √(1 − λ) of the image's; the box is uniform among the places where it fits.

  Args:
    key: PRNG key.
    batch: number of samples.
    spatial: voxels along each axis.
    alpha: both parameters of the Beta distribution.

  Returns:
    bool[batch, *spatial], True inside the box.

  Source: CutMix (Yun et al. 2019) as TraCoCo draws it [L].
  """
  key_size, key_place = jax.random.split(key)
  fraction = jnp.sqrt(1.0 - jax.random.beta(key_size, alpha, alpha, (batch,)))
  place = jax.random.uniform(key_place, (2, batch))
  mask = jnp.ones((batch,) + (1,) * len(spatial), bool)
  for axis in range(2):
    size = jnp.round(fraction * spatial[axis])
    start = jnp.floor(place[axis] * (spatial[axis] - size + 1))
    grid = jnp.arange(spatial[axis])
    inside = (grid >= start[:, None]) & (grid < (start + size)[:, None])
    mask = mask & inside.reshape((batch,) + tuple(spatial[axis] if a == axis else 1 for a in range(len(spatial))))
  return jnp.broadcast_to(mask, (batch, *spatial))


def box_anywhere(key: Array, spatial: tuple[int, ...], fraction: float) -> Array:
  """Draws one box of side ⌊fraction · size⌋ along every axis, uniform among the places where it fits.

  Returns:
    bool[*spatial], True inside the box.

  Source: CML, eq. 5; BCP.
  """
  mask = jnp.ones(spatial, bool)
  for axis, (size, axis_key) in enumerate(zip(spatial, jax.random.split(key, len(spatial)), strict=True)):
    side = int(fraction * size)
    start = jax.random.randint(axis_key, (), 0, size - side + 1)
    grid = jnp.arange(size)
    inside = (grid >= start) & (grid < start + side)
    mask = mask & inside.reshape(tuple(size if a == axis else 1 for a in range(len(spatial))))
  return mask


def paste(box: Array, outside: Array, inside: Array) -> Array:
  """Returns `inside` within the box, else `outside`.

  Args:
    box: bool[*spatial].
    outside, inside: [B, *spatial] or [B, *spatial, channels].

  Source: CML, eqs. 5, 6, 8; BCP.
  """
  return jnp.where(box if outside.ndim == box.ndim + 1 else box[..., None], inside, outside)


def mix(mask: Array, value: Array, partner: Array) -> Array:
  """Returns `value` outside `mask` and `value[partner]` inside.

  Args:
    mask: bool[B, *spatial].
    value: [B, *spatial] or [B, *spatial, channels].
    partner: i32[B], a permutation of the batch.
  """
  return jnp.where(mask.reshape(mask.shape + (1,) * (value.ndim - mask.ndim)), value[partner], value)


def centre_box(spatial: tuple[int, ...], fraction: float) -> Array:
  """Returns bool[*spatial], True in the central box whose sides are `fraction` of the image's."""
  mask = jnp.ones(spatial, bool)
  for axis, size in enumerate(spatial):
    margin = round(size * (1.0 - fraction) / 2)
    grid = jnp.arange(size)
    inside = (grid >= margin) & (grid < size - margin)
    mask = mask & inside.reshape(tuple(size if a == axis else 1 for a in range(len(spatial))))
  return mask


def strong_view(key: Array, image: Array, prob: Array, *, kind: str, alpha: float, crop: float, noise: float) -> tuple[Array, Array, Array]:
  """Perturbs images and takes their pseudo-labels along.

  Args:
    key: PRNG key.
    image: f32[B, *spatial, channels], weak views.
    prob: f32[B, *spatial, C], pseudo-label probabilities of the weak views.
    kind: "cutmix": boxes are swapped within the batch; "centre_crop": the surroundings are blanked; "none".
    alpha: of the CutMix box, see `box_in_plane`.
    crop: side of the centre crop, as a fraction.
    noise: U(−noise, noise) is added to every voxel.

  Returns:
    Strong view, its pseudo-label, and where it shows the image, bool[B, *spatial].
  """
  key_box, key_partner, key_noise = jax.random.split(key, 3)
  shown = jnp.ones(image.shape[:-1], bool)
  if kind == "cutmix":
    box = box_in_plane(key_box, image.shape[0], image.shape[1:-1], alpha)
    partner = jax.random.permutation(key_partner, image.shape[0])
    image, prob = mix(box, image, partner), mix(box, prob, partner)
  elif kind == "centre_crop":
    shown = shown & centre_box(image.shape[1:-1], crop)
    image = jnp.where(shown[..., None], image, 0.0)
  elif kind != "none":
    raise ValueError(f"config.method.strong_view: {kind!r} is none of cutmix, centre_crop, none")
  return uniform_noise(key_noise, image, noise), prob, shown
