"""What is asked of XLA beside the program, and how programs are traced."""

import contextlib
import functools
import gc
import hashlib
import os
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path

import jax
import jax.numpy as jnp

Options = dict[str, str | int]

_CHANNELS_LAST: Options = {"xla_gpu_force_conv_nhwc": True}
_IN_ORDER = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
_SHORT_LOOPS_STAY = "--xla_backend_extra_options=-unroll-full-max-count=2"
_HAS_OPTIONS = metadata.version("jaxlib").startswith("0.10.")  # elsewhere one that is unknown ends XLA


def for_convolutions() -> Options | None:
  """Returns the options of a program that runs networks.

  By default XLA:CPU hands convolutions to its YNN library, too. The 2D ones that `ops.conv` is made of take up to a third less time
  without it, and loading a compiled program looks for each call of the library in a list of all instructions. And it has LLVM prefer
  vectors of 256 bits where there are wider ones.

  By default XLA:GPU turns every 3D image around, to have channels first, for cuDNN's convolution, and its result back. A choice of layout
  in XLA_FLAGS is left as it is.
  """
  if jax.default_backend() == "gpu":
    chosen = "xla_gpu_force_conv" in os.environ.get("XLA_FLAGS", "")
    return _CHANNELS_LAST if not chosen and _convolves_channels_last() else None
  library_calls = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
  options: Options = {"xla_cpu_experimental_ynn_fusion_type": library_calls, "xla_cpu_prefer_vector_width": 512}
  return options if _HAS_OPTIONS and jax.default_backend() == "cpu" else None


@functools.cache
def _convolves_channels_last() -> bool:
  """Whether this GPU's libraries know 3D convolutions with channels last, and their gradients, of few channels and of many."""

  def gradients(image: jax.Array) -> tuple[jax.Array, ...]:
    kernel = jnp.ones((3, 3, 3, image.shape[-1], 16), image.dtype)
    convolve = lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1, 1), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC"))
    result, pull = jax.vjp(convolve, image, kernel)
    return pull(result)

  images = [jax.ShapeDtypeStruct((1, 16, 16, 16, channels), dtype) for channels in (1, 3, 16) for dtype in (jnp.float32, jnp.bfloat16)]
  try:
    jax.jit(lambda images: [gradients(image) for image in images], compiler_options=_CHANNELS_LAST).lower(images).compile()
  except jax.errors.JaxRuntimeError:
    return False
  return True


def for_one_run() -> Options | None:
  """Returns the options of a program that runs once: LLVM takes longer to optimize draws of first values than that saves."""
  return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None


def order_for_memory() -> None:
  """Has XLA:CPU order programs for memory instead of concurrency, or keeping less saves nothing there; before JAX is first used.

  A flag of the process: as an option of one program XLA accepts it and does not heed it.
  """
  _add_flag(_IN_ORDER)


def vectorize_channels() -> None:
  """Has XLA:CPU compute several channels at once where there are few; before JAX is first used.

  LLVM unrolls a loop over sixteen channels or fewer before it looks for loops to vectorize, and what is left computes value by value. A
  flag of the process, which a GPU's programs would heed, too; so nothing happens where JAX might find another device than CPUs.
  """
  chosen = jax.config.jax_platforms  # type: ignore[attr-defined]
  others = metadata.entry_points(group="jax_plugins") or util.find_spec("jax_plugins") or util.find_spec("libtpu")
  if chosen == "cpu" or not (chosen or others):
    _add_flag(_SHORT_LOOPS_STAY)


def _add_flag(flag: str) -> None:
  flags = os.environ.get("XLA_FLAGS", "")
  if _HAS_OPTIONS and flag.split("=")[0] not in flags:
    os.environ["XLA_FLAGS"] = f"{flags} {flag}".strip()


def record_of(*what: object) -> Path | None:
  """Names a file in JAX's cache that stands for a compiled program in it.

  JAX itself finds a program by its trace alone, and compiles what it does not find. It still does where a record is wrong, as when someone
  deletes the program and not the record, so a record may save work and not choose a program.

  Args:
    what: by its `repr` tells the program from others of the same source code, versions and flags.

  Returns: the file, or `None` where no programs are kept, or not in a folder of this machine.
  """
  folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
  if not folder or "://" in folder or not jax.config.jax_enable_compilation_cache:  # type: ignore[attr-defined]
    return None
  digest = hashlib.sha256(_installation())
  digest.update(repr((what, os.environ.get("XLA_FLAGS"), jax.devices())).encode())
  return Path(folder) / "ssl_jax" / digest.hexdigest()


@functools.cache
def _installation() -> bytes:
  versions = [f"{name} {metadata.version(name)}" for name in ("jax", "jaxlib", "flax", "optax")]
  files = sorted(Path(__file__).parent.rglob("*.py"))
  return "".join(versions).encode() + b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)


@contextlib.contextmanager
def tracing() -> Iterator[None]:
  """Traces sooner. For everything that traces the same networks, as what one has traced the next then finds.

  Python's garbage collector, a quarter of tracing, rests: it walks again and again through what the trace still needs. And the mesh in
  use is named, also where it is none: JAX names it inside what it differentiates, and to its caches that differs from naming none.
  """
  enabled = gc.isenabled()
  gc.disable()
  try:
    with jax.sharding.use_abstract_mesh(jax.sharding.get_abstract_mesh()):
      yield
  finally:
    if enabled:
      gc.enable()
