"""Convolutions, BatchNorm and interpolation: every formulation against XLA's plain one, values and gradients."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ssl_jax.ops import conv, norm, order, plane, resize, upconv, winograd

SPEC = {4: ("NHWC", "HWIO", "NHWC"), 5: ("NDHWC", "DHWIO", "NDHWC")}


def normal(seed, *shape, dtype=jnp.float32, mean=0.0, deviation=1.0):
  """NumPy draws: JAX would compile a program for each shape."""
  return jnp.asarray(np.random.default_rng(seed).normal(mean, deviation, shape).astype(dtype))


def plain_conv3(x, w):
  return lax.conv_general_dilated(x, w, (1,) * (x.ndim - 2), "SAME", dimension_numbers=SPEC[x.ndim])


def plain_down2(x, w):
  return lax.conv_general_dilated(x, w, (2,) * (x.ndim - 2), "VALID", dimension_numbers=SPEC[x.ndim])


def plain_up2(x, w):
  flipped = jnp.flip(w, range(x.ndim - 2))
  return lax.conv_transpose(x, flipped, (2,) * (x.ndim - 2), "VALID", dimension_numbers=SPEC[x.ndim])


def values_and_gradients(function, x, w):
  y, pull = jax.vjp(function, x, w)
  return y, *pull(normal(9, *y.shape, dtype=y.dtype))


def assert_same(function, plain, x, w, tolerance=2e-5):
  ours, theirs = (jax.jit(functools.partial(values_and_gradients, f))(x, w) for f in (function, plain))
  for name, a, b in zip(("value", "input gradient", "kernel gradient"), ours, theirs, strict=True):
    assert a.shape == b.shape and a.dtype == b.dtype, name
    a, b = np.float32(a), np.float32(b)
    assert np.abs(a - b).max() <= tolerance * np.abs(b).max(), name


@pytest.fixture
def always_fast(monkeypatch):
  """The CPU's formulations for arrays of any size."""
  monkeypatch.setattr(conv, "_SMALL", 0)


@pytest.fixture
def as_on_tpu(monkeypatch):
  """A TPU's formulations on this device."""
  monkeypatch.setattr(lax, "platform_dependent", lambda *args, default, tpu=None, **_: (tpu or default)(*args))
  jax.clear_caches()  # what has been traced has the device's own
  yield
  jax.clear_caches()


CASES = {
  "odd": ((2, 7, 9, 5), 3, 5),
  "a quarter of a Winograd group": ((1, 1, 4, 4), 2, 3),
  "large slices": ((1, 5, 23, 24), 4, 8),
  "wide channels": ((1, 4, 4, 5), 40, 36),
  "wide channels, groups of six": ((2, 12, 4, 5), 32, 36),
  "wide channels, groups of seven": ((2, 14, 4, 5), 40, 36),
  "wide channels, groups of eight": ((1, 16, 4, 5), 32, 32),
  "wider channels": ((1, 6, 4, 5), 64, 36),
  "two columns": ((1, 5, 4, 2), 8, 4),
  "one row": ((2, 4, 1, 6), 3, 4),
  "one channel": ((2, 6, 7, 8), 1, 4),
  "2D": ((2, 11, 9), 3, 4),
  "2D, large": ((2, 30, 31), 4, 6),
  "2D, four columns as one point": ((2, 7, 12), 8, 8),
  "2D, two columns as one point": ((2, 7, 10), 16, 20),
  "2D, a width that four do not divide": ((2, 7, 10), 3, 8),
  "four columns as one point": ((2, 6, 5, 8), 6, 8),
  "two columns as one point": ((1, 5, 4, 6), 12, 16),
  "one channel, four columns as one point": ((2, 5, 6, 8), 1, 16),
}


@pytest.mark.parametrize("case", CASES)
def test_conv3(case, always_fast):
  (batch, *spatial), channels, out = CASES[case]
  assert_same(conv.conv3, plain_conv3, normal(0, batch, *spatial, channels), normal(1, *(3,) * len(spatial), channels, out))


@pytest.fixture
def one_sample_after_the_other(always_fast, monkeypatch):
  """As of a large batch."""
  monkeypatch.setattr(order, "_LARGE", 1)
  jax.clear_caches()  # what has been traced takes all samples at once
  yield
  jax.clear_caches()


BY_SAMPLE = {name: CASES[name] for name in ("odd", "wide channels, groups of six")} | {"as many channels as before": ((3, 7, 4, 5), 4, 4)}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("case", BY_SAMPLE)
def test_conv3_of_one_sample_after_the_other(case, dtype, one_sample_after_the_other):
  (batch, *spatial), channels, out = BY_SAMPLE[case]
  x, w = normal(0, batch, *spatial, channels, dtype=dtype), normal(1, 3, 3, 3, channels, out, dtype=dtype)
  assert f"length={batch}" in str(jax.make_jaxpr(winograd.conv3)(x, w))
  assert_same(conv.conv3, plain_conv3, x, w, tolerance=2e-5 if dtype == jnp.float32 else 2e-2)


@pytest.mark.parametrize("case", BY_SAMPLE)
def test_upsample_conv3_of_one_sample_after_the_other(case, one_sample_after_the_other):
  (batch, *spatial), channels, out = BY_SAMPLE[case]
  ours = functools.partial(upconv.upsample_conv3, interpolate=resize.upsample_linear)
  plain = lambda x, w: plain_conv3(resize.upsample_linear(x), w)
  assert_same(ours, plain, normal(0, batch, *spatial, channels), normal(1, 3, 3, 3, channels, out))


@pytest.mark.parametrize("case", ["odd", "2D"])
def test_stride_2_and_1_of_a_large_batch(case, one_sample_after_the_other):
  (batch, *_), channels, out = CASES[case]
  spatial = (4, 6, 8)[: 3 if case == "odd" else 2]
  x, w = normal(0, batch, *spatial, channels), normal(1, *(2,) * len(spatial), channels, out)
  assert_same(conv.conv_down2, plain_down2, x, w)
  assert_same(conv.conv1, jnp.matmul, x, w.reshape(-1, channels, out)[0])


def test_samples_of_a_large_batch_share_memory(monkeypatch):
  x, w = normal(0, 8, 8, 16, 16, 16), normal(1, 3, 3, 3, 16, 16)
  needs = lambda: compiled(lambda x, w: jnp.sum(conv.conv3(jnp.tanh(x), w) ** 2), x, w).memory_analysis().temp_size_in_bytes
  jax.clear_caches()
  together = needs()
  monkeypatch.setattr(order, "_LARGE", 1)
  jax.clear_caches()
  one_by_one = needs()
  jax.clear_caches()
  assert one_by_one < 0.5 * together


def test_zero_waits_for_its_array():
  finite, infinite, nan = jnp.array([1.0, jnp.nan]), jnp.array([jnp.inf]), jnp.full((2, 3), jnp.nan, jnp.bfloat16)
  zero = jax.jit(order.zero_of)
  assert zero(finite) == 0 and zero(infinite) == 0 and jnp.isnan(zero(nan)) and zero(nan).dtype == nan.dtype
  assert "compare" in zero.lower(finite).compile().as_text()  # not known before the array is there


@pytest.mark.parametrize("case", ["odd", "wide channels", "one row", "one channel", "2D"])
def test_conv3_on_tpu(case, as_on_tpu):
  (batch, *spatial), channels, out = CASES[case]
  assert_same(conv.conv3, plain_conv3, normal(0, batch, *spatial, channels), normal(1, *(3,) * len(spatial), channels, out))


@pytest.mark.parametrize("spatial", [(4, 6, 8), (6, 8)], ids=["3D", "2D"])
@pytest.mark.parametrize(("ours", "plain"), [(conv.conv_down2, plain_down2), (conv.conv_up2, plain_up2)], ids=["down", "up"])
def test_stride_2_on_tpu(ours, plain, spatial, as_on_tpu):
  assert_same(ours, plain, normal(0, 2, *spatial, 3), normal(1, *(2,) * len(spatial), 3, 5))


@pytest.mark.parametrize("channels", [(3, 5), (5, 1)])
def test_conv1_on_tpu(channels, as_on_tpu):
  assert_same(conv.conv1, jnp.matmul, normal(0, 2, 4, 6, channels[0]), normal(1, *channels))


@pytest.mark.parametrize("corners_aligned", [True, False])
@pytest.mark.parametrize("spatial", [(4, 3, 5), (1, 6)], ids=["3D", "2D"])
def test_interpolation_on_tpu(spatial, corners_aligned, as_on_tpu):
  x = normal(0, 2, *spatial, 3)
  expected = resize.upsample_linear(np.asarray(x), corners_aligned)
  np.testing.assert_allclose(resize.upsample_linear(x, corners_aligned), expected, atol=1e-6)
  assert "dot_general" in str(jax.make_jaxpr(resize.upsample_linear)(x))


def test_a_tpu_gets_convolutions_in_two_dimensions_alone():
  """XLA:TPU takes a minute to compile one in three."""

  def layers(x, w, narrow):
    return conv.conv_up2(conv.conv_down2(conv.conv3(x, w), narrow), narrow)

  def everything(x, w, narrow):
    y, pull = jax.vjp(layers, x, w, narrow)
    return pull(y)

  arrays = normal(0, 1, 8, 8, 8, 4), normal(1, 3, 3, 3, 4, 4), normal(2, 2, 2, 2, 4, 4)
  program = jax.export.export(jax.jit(everything), platforms=["tpu"])(*arrays).mlir_module()
  ranks = {len(sides.split("x")) for sides in re.findall(r"stablehlo.convolution.*: \(tensor<([\dx]+)xf32>", program)}
  assert ranks == {4}


@pytest.mark.parametrize("slices", [1, 2, 4])
@pytest.mark.parametrize(("channels", "together"), [(5, 1), (plane.WIDE, 3)])
def test_kernel_gradients_by_slices(channels, together, slices, monkeypatch):
  """Three convolutions, one after the other or together, so many of their slices at a time."""
  x, grad = normal(0, 3, 4, 6, 5, channels), normal(1, 3, 4, 6, 5, 7)
  monkeypatch.setattr(plane, "_CACHED", slices * together * 6 * 5 * channels)
  loop = str(jax.make_jaxpr(lambda *a: plane.kernel_grads(*a))(x, grad))  # a new function: what was traced before had another constant
  assert f"{together},{slices},6,7,{channels}" in loop, "as many as asked for, padded by a column on either side"
  plain = lambda x, grad: jax.vjp(lambda w: plain_conv3(x, w), jnp.zeros((3, 3, channels, 7)))[1](grad)[0]
  np.testing.assert_allclose(jax.jit(lambda *a: plane.kernel_grads(*a))(x, grad), jax.jit(jax.vmap(plain))(x, grad), atol=1e-4)


def test_small_arrays_are_one_product():
  """A convolution of XLA's own takes up to several times as long, its kernel gradient within a loop twenty times."""
  x, w = normal(0, 2, 4, 6, 8, 3), normal(1, 3, 3, 3, 3, 4)
  program = jax.jit(conv.conv3).lower(x, w).compile().as_text()
  assert program.count(" dot(") == 1 and "convolution(" not in program
  gradient = jax.jit(jax.grad(lambda w: jnp.sum(conv.conv3(x, w) ** 2))).lower(w).compile().as_text()
  assert "convolution(" not in gradient
  assert_same(conv.conv3, plain_conv3, x, w, tolerance=1e-6)


@pytest.mark.parametrize("case", ["odd", "two columns", "one channel", "2D"])
def test_conv3_bfloat16(case, always_fast):
  """Against float32 on the same rounded numbers: nothing but the result is rounded."""
  (batch, *spatial), channels, out = CASES[case]
  x = normal(0, batch, *spatial, channels, dtype=jnp.bfloat16)
  w = normal(1, *(3,) * len(spatial), channels, out, dtype=jnp.bfloat16)
  exact = lambda x, w: plain_conv3(x.astype(jnp.float32), w.astype(jnp.float32)).astype(jnp.bfloat16)
  assert_same(conv.conv3, exact, x, w, tolerance=2**-7)


@pytest.mark.parametrize(("channels", "out", "together"), [(8, 8, 4), (16, 20, 2), (32, 16, 1)])
def test_few_channels_take_several_columns_at_once(channels, out, together):
  shapes = [(2, 40, 64, channels), (3, 3, channels, out)]
  program = jax.jit(conv.conv3).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).as_text()
  if jax.default_backend() == "cpu":
    assert f"{out * together}xf32>) -> tensor<2x40x{64 // together}x{out * together}xf32>" in program


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("channels", "out"), [(3, 5), (5, 3)])
def test_conv1(channels, out, dtype):
  x, w = normal(0, 2, 4, 6, channels, dtype=dtype), normal(1, channels, out, dtype=dtype)
  exact = lambda x, w: jnp.matmul(x.astype(jnp.float32), w.astype(jnp.float32)).astype(dtype)  # a bfloat16 sum may be less exact than ours
  assert_same(conv.conv1, exact, x, w, 2e-6 if dtype == jnp.float32 else 2**-7)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("spatial", [(4, 6, 8), (2, 2, 2), (6, 10)])
def test_stride_two(spatial, dtype):
  tolerance = 2e-6 if dtype == jnp.float32 else 2**-7
  x, w = normal(0, 2, *spatial, 3, dtype=dtype), normal(1, *(2,) * len(spatial), 3, 5, dtype=dtype)
  assert_same(conv.conv_down2, plain_down2, x, w, tolerance)
  assert_same(conv.conv_up2, plain_up2, x, w, tolerance)


def test_down_is_the_adjoint_of_up():
  x, y, w = normal(0, 1, 4, 6, 8, 3), normal(1, 1, 2, 3, 4, 5), normal(2, 2, 2, 2, 3, 5)
  np.testing.assert_allclose(jnp.vdot(conv.conv_down2(x, w), y), jnp.vdot(x, conv.conv_up2(y, jnp.swapaxes(w, -1, -2))), rtol=1e-5)


@pytest.mark.parametrize("function", [conv.conv3, conv.conv_down2, conv.conv_up2])
def test_vmap(function, always_fast):
  size = 3 if function is conv.conv3 else 2
  x, w = normal(0, 2, 1, 4, 6, 8, 3), normal(1, size, size, size, 3, 5)
  one, together = jax.jit(function), jax.jit(jax.vmap(function, (0, None)))
  np.testing.assert_allclose(together(x, w), jnp.stack([one(a, w) for a in x]), atol=1e-4)


UNALIGNED = functools.partial(resize.upsample_linear, corners_aligned=False)


@pytest.mark.parametrize("interpolate", [resize.upsample_linear, UNALIGNED, resize.upsample_nearest])
@pytest.mark.parametrize("case", ["odd", "a quarter of a Winograd group", "one row", "one channel", "2D"])
def test_upsample_conv3(case, interpolate, always_fast):
  (batch, *spatial), channels, out = CASES[case]
  x, w = normal(0, batch, *spatial, channels), normal(1, *(3,) * len(spatial), channels, out)
  assert_same(functools.partial(upconv.upsample_conv3, interpolate=interpolate), lambda x, w: plain_conv3(interpolate(x), w), x, w)


@pytest.fixture(params=[1, 4], ids=["one plane at a time", "four planes at a time"])
def by_planes(request, always_fast, monkeypatch):
  """Arrays [2, 6, 4, 5, 3], which have 16 planes with zeros around: so many steps."""
  monkeypatch.setattr(upconv, "_SHORT", 6)
  monkeypatch.setattr(upconv, "_CACHED", request.param * 6 * 7 * 3 * 27 // 2)
  jax.clear_caches()  # what has been traced has other constants
  yield 16 // request.param
  jax.clear_caches()


def test_upsample_conv3_by_planes(by_planes):
  x, w = normal(0, 2, 6, 4, 5, 3), normal(1, 3, 3, 3, 3, 4)
  ours = lambda x, w: upconv.upsample_conv3(x, w, resize.upsample_linear)
  assert f"length={by_planes}" in str(jax.make_jaxpr(lambda x, w: upconv._blend_products(resize.upsample_linear, x, w))(x, w))
  assert_same(ours, lambda x, w: plain_conv3(resize.upsample_linear(x), w), x, w)


def test_upsample_conv3_of_an_open_batch_by_planes(by_planes):
  x, w = normal(0, 2, 6, 4, 5, 3), normal(1, 3, 3, 3, 3, 4)
  ours = jax.jit(lambda x, w: upconv.upsample_conv3(x, w, resize.upsample_linear))
  batch = jax.export.symbolic_shape("batch")
  exported = jax.export.export(ours)(jax.ShapeDtypeStruct((*batch, *x.shape[1:]), x.dtype), jax.ShapeDtypeStruct(w.shape, w.dtype))
  np.testing.assert_allclose(exported.call(x, w), ours(x, w), atol=1e-6)


@pytest.mark.parametrize("spatial", [(4, 6, 8), (14, 14, 10)], ids=str)
def test_upsample_conv3_mixes_channels_before_it_interpolates(spatial, always_fast):
  x, w = normal(0, 2, *spatial, 8), normal(1, 3, 3, 3, 8, 4)
  program = jax.jit(lambda x, w: upconv.upsample_conv3(x, w, resize.upsample_linear))
  in_turn = jax.jit(lambda x, w: plain_conv3(resize.upsample_linear(x), w))
  flops = [f.lower(x, w).compile().cost_analysis()["flops"] for f in (program, in_turn)]
  assert flops[0] < 0.5 * flops[1]


def test_tracing_upsample_conv3_compiles_nothing(always_fast, caplog):
  upconv._blends.cache_clear()
  x, w = normal(0, 2, 4, 6, 8, 3), normal(1, 3, 3, 3, 3, 5)
  with jax.log_compiles():
    jax.eval_shape(jax.grad(lambda x, w: jnp.sum(upconv.upsample_conv3(x, w, resize.upsample_linear))), x, w)
  assert upconv._blends.cache_info().misses == 3
  assert not [r for r in caplog.records if "XLA compilation" in r.getMessage()]


def plain_batch_norm(x, scale, bias, relu, leak=0.0):
  axes = tuple(range(x.ndim - 1))
  mean, var = x.mean(axes), x.var(axes)
  y = scale * (x - mean) / jnp.sqrt(var + 1e-5) + bias
  return jnp.where(y > 0, y, leak * y) if relu else y


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize(("relu", "leak"), [(False, 0.0), (True, 0.0), (True, 0.2)])
@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("shape", [(2, 5, 6, 7, 3), (4, 9, 8, 4), (2, 8, 6, 7, 3), (4, 12, 8, 4)])
def test_batch_norm(shape, pairs, relu, leak, views):
  """Against the definition, every view a batch of its own."""
  x = normal(0, *shape, mean=1.0, deviation=2.0)
  scale, bias = normal(1, shape[-1], mean=1.0, deviation=0.3), normal(2, shape[-1], deviation=0.3)
  ours = lambda *a: norm.batch_norm(*a, relu, views, leak, pairs)
  y, mean, var = jax.jit(ours)(x, scale, bias)
  parts, axes = np.split(np.float64(x), views), tuple(range(len(shape) - 1))
  np.testing.assert_allclose(mean, [part.mean(axes) for part in parts], rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(var, [part.var(axes) for part in parts], rtol=1e-4)

  plain = lambda x, *a: jnp.concatenate([plain_batch_norm(part, *a, relu, leak) for part in jnp.split(x, views)])
  np.testing.assert_allclose(y, jax.jit(plain)(x, scale, bias), atol=2e-5)
  weight = normal(3, *shape)
  gradient = lambda f: jax.jit(jax.grad(lambda *a: jnp.sum(weight * f(*a) ** 2), (0, 1, 2)))(x, scale, bias)
  for found, expected in zip(gradient(lambda *a: ours(*a)[0]), gradient(plain), strict=True):
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())


def compiled(f, *args):
  """The program of a function's gradient."""
  if jax.default_backend() != "cpu":
    pytest.skip("what XLA:CPU keeps")
  return jax.jit(jax.grad(f, tuple(range(len(args))))).lower(*args).compile()


def test_sums_over_pairs_keep_no_copy_of_an_upsampled_image():
  x, up, w = normal(0, 1, 16, 16, 16, 8), normal(1, 2, 2, 2, 8, 16), normal(2, 3, 3, 3, 16, 16)

  def level(pairs):
    normed = lambda x, up: norm.batch_norm(conv.conv_up2(x, up), jnp.ones(16), jnp.zeros(16), True, pairs=pairs)[0]
    return lambda x, up, w: jnp.sum(conv.conv3(normed(x, up), w) ** 2)

  one, two = (compiled(level(pairs), x, up, w).memory_analysis().temp_size_in_bytes for pairs in (True, False))
  assert one < two - 0.8 * 4 * 16 * 32**3


def test_a_large_image_is_put_into_blocks_again_for_its_gradient(monkeypatch):
  x, w = normal(0, 2, 6, 4, 4, 3), normal(1, 2, 2, 2, 3, 5)
  loss = lambda x, w: jnp.sum(conv.conv_down2(jnp.tanh(x), w) ** 2)
  times = lambda: compiled(loss, x, w).as_text().count("dimensions={0,1,3,5,2,4,6,7}")  # space to depth
  gradient, before = jax.grad(loss, (0, 1))(x, w), times()
  monkeypatch.setattr(order, "_LARGE", 1)
  jax.clear_caches()
  assert times() == before + 1
  for found, expected in zip(jax.grad(loss, (0, 1))(x, w), gradient, strict=True):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_batch_norm_of_a_constant_channel_is_the_bias():
  """The variance of a large constant rounds to a negative number before it is clamped."""
  x = jnp.full((1, 9, 9, 9, 2), 3333.3)
  y, _, var = norm.batch_norm(x, jnp.ones(2), jnp.array([0.0, 0.5]), False)
  assert (var >= 0).all() and jnp.isfinite(y).all()


def test_batch_norm_bfloat16_keeps_statistics_in_float32():
  x = normal(0, 2, 16, 16, 16, 4, dtype=jnp.bfloat16) + jnp.bfloat16(0.5)
  y, mean, var = norm.batch_norm(x, jnp.ones(4), jnp.zeros(4), True)
  assert y.dtype == jnp.bfloat16 and mean.dtype == var.dtype == jnp.float32
  np.testing.assert_allclose(mean[0], np.mean(np.float32(x), (0, 1, 2, 3)), atol=1e-5)
  np.testing.assert_allclose(var[0], np.var(np.float32(x), (0, 1, 2, 3)), rtol=1e-4)
  assert jax.grad(lambda x: jnp.sum(norm.batch_norm(x, jnp.ones(4), jnp.zeros(4), True)[0].astype(jnp.float32)))(x).dtype == jnp.bfloat16


def linear_1d(n, corners_aligned):
  """The matrix [2n, n] of doubling by linear interpolation, from the definition of the sample positions."""
  i = np.arange(2 * n)
  position = i * (n - 1) / (2 * n - 1) if corners_aligned else np.clip((i + 0.5) / 2 - 0.5, 0, n - 1)
  low = np.minimum(np.floor(position).astype(int), n - 1)
  high, share = np.minimum(low + 1, n - 1), position - low
  matrix = np.zeros((2 * n, n))
  np.add.at(matrix, (i, low), 1 - share)
  np.add.at(matrix, (i, high), share)
  return matrix


@pytest.mark.parametrize("library", [np, jnp], ids=["NumPy", "JAX"])
@pytest.mark.parametrize("corners_aligned", [True, False])
@pytest.mark.parametrize("spatial", [(3, 4, 5), (1, 2, 1), (5, 6)])
def test_upsample_linear(spatial, corners_aligned, library):
  expected = x = library.asarray(normal(0, 2, *spatial, 3))
  for axis, n in enumerate(spatial, start=1):
    expected = np.moveaxis(np.tensordot(linear_1d(n, corners_aligned), expected, (1, axis)), 0, axis)
  upsample = resize.upsample_linear if library is np else jax.jit(resize.upsample_linear, static_argnums=1)
  found = upsample(x, corners_aligned)
  assert type(found) is type(x)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_upsample_linear_by_hand():
  """PyTorch: interpolate([0, 1, 2], scale_factor=2, mode="linear")."""
  x = jnp.array([0.0, 1.0, 2.0]).reshape(1, 3, 1)
  np.testing.assert_allclose(resize.upsample_linear(x)[0, :, 0], [0, 0.4, 0.8, 1.2, 1.6, 2.0], atol=1e-6)
  np.testing.assert_allclose(resize.upsample_linear(x, corners_aligned=False)[0, :, 0], [0, 0.25, 0.75, 1.25, 1.75, 2.0], atol=1e-6)


@pytest.mark.parametrize("spatial", [(2, 3, 4), (3, 2)])
def test_upsample_nearest(spatial):
  expected = x = normal(0, 2, *spatial, 3)
  for axis in range(1, x.ndim - 1):
    expected = np.repeat(expected, 2, axis)
  np.testing.assert_array_equal(resize.upsample_nearest(x), expected)
