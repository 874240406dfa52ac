"""Eight CPU devices, so that sharding is tested wherever the suite runs; cheap compilation, shared by tests and commands."""

import atexit
import gc
import importlib.metadata
import os
import shutil
import tempfile

import pytest

_AS_IN_USE = "--xla_backend_extra_options=-unroll-full-max-count=2"  # `compiler.vectorize_channels`; part of a program's key in the cache
_CACHE = tempfile.mkdtemp(prefix="ssl_jax_tests_")
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _CACHE)
_JAXLIB = importlib.metadata.version("jaxlib")
if _JAXLIB.startswith(("0.10.", "0.11.")):  # an unknown flag would end the interpreter
  # Without fusion emitters, where they can be chosen, it compiles in two thirds of the time, in one piece in five sixths of that. The
  # scheduler would start independent collectives of a short step in any order, and pretended devices of one process wait for ever when
  # two disagree.
  _FLAGS = ["--xla_cpu_parallel_codegen_split_count=1", "--xla_cpu_enable_concurrency_optimized_scheduler=false", _AS_IN_USE]
  if _JAXLIB.startswith("0.10."):
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
  os.environ.setdefault("XLA_FLAGS", " ".join(_FLAGS))
# Traces are large and live long: at Python's thresholds a seventh of the time of tests goes into looking through them for garbage.
gc.set_threshold(100_000, 50, 100)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@pytest.fixture(autouse=True)
def forget_programs():
  """JAX keeps a program's text as long as its trace: at least 1.4 MiB each, and to make another one takes the longer the more there are."""
  yield
  import jax

  if len(jax.devices()[0].client.live_executables()) > 150:
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def own_folder(tmp_path_factory):
  """A folder as a user brings it: seven scans of two channels and three classes, two of them without a label."""
  from tests.helpers import write_msd

  root = write_msd(tmp_path_factory.mktemp("own"), {name: (36, 33, 18) for name in "abcdefg"}, channels=2, classes=3)
  for name in "bg":
    (root / "labelsTr" / f"{name}.nii.gz").unlink()
  return root
