"""What is asked of XLA beside the program, how programs are traced, and which are kept."""

import contextlib
import functools
import gc
import hashlib
import json
import os
import platform
import stat
import sys
import time
import zlib
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import serialize_executable

Options = dict[str, str | int]

_CHANNELS_LAST: Options = {"xla_gpu_force_conv_nhwc": True}
_IN_ORDER = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
_SHORT_LOOPS_STAY = "--xla_backend_extra_options=-unroll-full-max-count=2"
_HAS_OPTIONS = metadata.version("jaxlib").startswith(("0.10.", "0.11."))  # elsewhere one that is unknown ends XLA
_IMPORTED = time.time()
_DIGEST = hashlib.sha256().digest_size
_keeping = False


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
  chosen = jax.config.values["jax_platforms"]
  others = metadata.entry_points(group="jax_plugins") or util.find_spec("jax_plugins") or util.find_spec("libtpu")
  if chosen == "cpu" or not (chosen or others):
    _add_flag(_SHORT_LOOPS_STAY)


def _add_flag(flag: str) -> None:
  flags = os.environ.get("XLA_FLAGS", "")
  if _HAS_OPTIONS and flag.split("=")[0] not in flags:
    os.environ["XLA_FLAGS"] = f"{flags} {flag}".strip()


def keep_programs() -> None:
  """Has `program_file` name files, so that a step that this user has compiled before is loaded without being traced.

  For commands alone: what a notebook or a test puts in the place of a function no file shows.
  """
  global _keeping
  _keeping = True


def program_file(*what: object) -> Path | None:
  """Names the file for a compiled step in JAX's cache.

  JAX itself finds a program by its trace, of which CML's takes longer than the loading. A file here is found by all that a trace follows
  from: this package's source, versions, settings, flags, the processor and `what`.

  Args:
    what: by its `repr` tells the step from others of the same source.

  Returns: the file, or `None`: none are kept, there are other devices than one CPU, or the source has changed since it was imported.
  """
  options = jax.config.values
  folder = options["jax_compilation_cache_dir"]
  if not (_keeping and folder) or "://" in folder or not options["jax_enable_compilation_cache"]:
    return None
  if jax.default_backend() != "cpu" or jax.device_count() > 1 or (source := _source()) is None:
    return None
  settings = sorted(options.items()), os.environ.get("XLA_FLAGS"), jax.devices()
  digest = hashlib.sha256(repr((source, sys.version, _versions(), _processor(), settings, what)).encode())
  return Path(folder) / "ssl_jax" / digest.hexdigest()


def compile_and_keep(lowered: jax.stages.Lowered, file: Path) -> jax.stages.Compiled:
  """Compiles a step `(state, ...) -> (state, metrics)` and writes it for `kept`.

  Args:
    lowered: the step.
    file: from `program_file`. It stays empty where JAX had the program in its cache, since XLA:CPU leaves out functions when it writes
      what it has read (jaxlib 0.10); on a full disk there is none.
  """
  events: list[str] = []
  note = lambda event, **_: events.append(event)
  jax.monitoring.register_event_listener(note)
  try:
    step = lowered.compile()
  finally:
    jax.monitoring.unregister_event_listener(note)
  is_new = "/jax/compilation_cache/cache_misses" in events
  partial = file.with_name(f".{file.name}.{os.getpid()}")
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial.touch(mode=0o600)
    partial.write_bytes(_written(step) if is_new else b"")
    partial.replace(file)
  except OSError:
    with contextlib.suppress(OSError):
      partial.unlink()
  return step


def _written(step: jax.stages.Compiled) -> bytes:
  try:
    program, _, results = serialize_executable.serialize(step)
    memory = step.memory_analysis()
  except (ValueError, NotImplementedError):  # what JAX cannot write
    return b""
  _, metrics = jax.tree.unflatten(results, range(results.num_leaves))
  about = {"metrics": sorted(metrics), "block_bytes": memory.temp_size_in_bytes if memory else 0}
  content = zlib.compress(json.dumps(about).encode() + b"\n" + program, level=1)
  return hashlib.sha256(content).digest() + content


class Kept(NamedTuple):
  """A step that `compile_and_keep` wrote: the names of its metrics, the bytes that it takes in one block, and the program."""

  metrics: list[str]
  block_bytes: int
  program: bytes

  def load(self, state: Any, *others: Any) -> jax.stages.Compiled | None:
    """Returns the step, or `None` where XLA refuses it.

    Args:
      state, others: what the step takes, or the shapes of that; it returns a state like this one and metrics.
    """
    takes = jax.tree.structure(((state, *others), {}))
    gives = jax.tree.structure((state, dict.fromkeys(self.metrics, 0)))
    try:
      return serialize_executable.deserialize_and_load(self.program, takes, gives, execution_devices=jax.devices())
    except jax.errors.JaxRuntimeError:
      return None


def kept(file: Path) -> Kept | None:
  """Returns what `compile_and_keep` wrote into a file of `program_file`.

  `None` where there is nothing, or what is damaged, or what another user wrote or may write: a program is code.
  """
  try:
    with file.open("rb") as opened:
      about = os.fstat(opened.fileno())
      if about.st_uid != os.getuid() or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return None
      content = opened.read()
  except OSError:
    return None
  if hashlib.sha256(content[_DIGEST:]).digest() != content[:_DIGEST]:
    return None
  about_step, _, program = zlib.decompress(content[_DIGEST:]).partition(b"\n")
  return Kept(program=program, **json.loads(about_step))


@functools.cache
def _source() -> str | None:
  """This package's, unless a file may not be what this process runs."""
  files = sorted(Path(__file__).parent.rglob("*.py"))
  if max(file.stat().st_mtime for file in files) > _IMPORTED:
    return None
  return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()


def _versions() -> list[str]:
  return [f"{name} {metadata.version(name)}" for name in ("jax", "jaxlib", "flax", "optax", "numpy")]


def _processor() -> str:
  """What it is and which instructions it has; a home folder may be that of several machines."""
  try:
    lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    return repr([line for line in lines if line.startswith(("model", "cpu family", "flags", "Features"))])
  except OSError:  # no Linux
    return f"{platform.machine()} {platform.processor()}"


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
