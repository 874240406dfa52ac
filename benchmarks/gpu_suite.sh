#!/usr/bin/env bash
# What to run first on a machine with an accelerator, eight minutes: tests, then every method's step in float32 and bfloat16 beside PyTorch's,
# layers, sliding windows, input pipeline. One table at the end; JSON in the folder $OUT (default: build/benchmarks).
#
#   benchmarks/gpu_suite.sh [options of `python -m benchmarks`]
#
# Packages that the machine lacks are installed from .data/wheels, where that folder is there.
set -u
cd "$(dirname "$0")/.."
out=${OUT:-build/benchmarks}
mkdir -p "$out"
[ -d .data/wheels ] && python -m pip install --quiet --no-index --find-links=.data/wheels grain nibabel ml-collections medpy
python -c 'import jax; d = jax.devices()[0]; print(jax.__version__, d.platform, d.device_kind)'
JAX_PLATFORMS=cuda,cpu JAX_DISABLE_MOST_OPTIMIZATIONS=0 timeout 150 python -m pytest -q -m gpu tests/test_gpu.py
status=$?
python -m benchmarks --size=published --dtypes=bfloat16,float32 --methods=supervised,crln,caml,cml,mean_teacher,cmems \
  --rounds=10 --limit_s=120 --out="$out" "$@" || status=1
exit $status
