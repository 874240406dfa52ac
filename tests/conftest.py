"""Eight CPU devices, so that sharding is tested wherever the suite runs; cheap compilation, shared by tests and commands."""

import atexit
import os
import shutil
import tempfile

_CACHE = tempfile.mkdtemp(prefix="ssl_jax_tests_")
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _CACHE)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
