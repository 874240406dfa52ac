"""The notebook runs from its first cell to its last, in a few steps."""

import json
import os
import subprocess
import sys

from tests.helpers import HANG_S, ROOT

NOTEBOOK = ROOT / "notebooks" / "ablations_colab.ipynb"
# Runs the cells one after the other in one namespace, as a kernel does, then prints what they have left in it.
RUNNER = """
import json, sys
import matplotlib
matplotlib.use("agg")
cells = json.load(open(sys.argv[1], encoding="utf-8"))["cells"]
names = {}
for number, cell in enumerate(cells):
  if cell["cell_type"] == "code":
    exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
import matplotlib.pyplot as plt

import pytest
found = {
    label: {
        "terms": sorted(result["metrics"]),
        "steps": len(result["metrics"]["loss"]),
        "finite": bool(names["np"].isfinite(result["metrics"]["loss"]).all()),
        "dice": len(result["dice"]),
        "curve": sorted(result["curve"]),
    }
    for label, result in names["results"].items()
}
print(json.dumps({"results": found, "figures": len(plt.get_fignums())}))
"""


def test_every_cell_runs_and_leaves_its_results(tmp_path):
  env = {**os.environ, "SSL_JAX_NOTEBOOK_STEPS": "2", "JAX_NUM_CPU_DEVICES": "1"}
  command = [sys.executable, "-W", "ignore", "-c", RUNNER, str(NOTEBOOK)]
  done = subprocess.run(command, cwd=NOTEBOOK.parent, env=env, capture_output=True, text=True, timeout=HANG_S)
  assert done.returncode == 0, done.stderr[-3000:]
  found = json.loads(done.stdout.splitlines()[-1])
  results = found["results"]
  assert list(results) == ["CRLN", "CRLN without CPS", "CAML", "CAML without OCC"] and found["figures"] == 3
  for label, term in (("CRLN", "loss_cps"), ("CAML", "loss_occ")):
    without = next(name for name in results if name.startswith(f"{label} without"))
    assert term in results[label]["terms"] and term not in results[without]["terms"]
  for result in results.values():
    assert result["steps"] == 2 and result["finite"] and result["dice"] == 32 and result["curve"] == [1, 2]
