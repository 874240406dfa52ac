"""All benchmarks in one run, one table, JSON beside it.

  python -m benchmarks [--size=small|published|toy] [--methods=crln,caml] [--dtypes=float32,bfloat16] [--root=data/la] [--out=FOLDER]

Every method's step, beside PyTorch's where there is a peer; the layers of the V-Net; sliding windows; the input pipeline; components and
distances. Each benchmark is a process of its own; one that fails is said at the end, and the others go on. `small` is a crop of 64x64x32
(2D: 128x128) and batch 2, `published` what each configuration says, `toy` only shows that everything runs.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import common
from ssl_jax import methods

# size -> arguments for three and for two dimensions
STEPS = {
  "published": ([], []),
  "small": (["--shape=64,64,32", "--batch=2"], ["--shape=128,128", "--batch=4"]),
  "toy": (["--shape=16,16,16", "--batch=2", "--width=4"], ["--shape=32,32", "--batch=2", "--width=4"]),
}
WINDOWS = {"published": [], "small": ["--shape=64,64,32", "--scan=90,75,44"], "toy": ["--shape=32,32,16", "--width=4", "--scan=48,40,20"]}
CROPS = {"published": [], "small": ["--shape=64,64,32"], "toy": ["--shape=16,16,16", "--steps=5"]}
MASKS = {"published": [], "small": ["--shape=64,64,32"], "toy": ["--shape=32,32,16", "--batch=1"]}
IN_TWO_DIMENSIONS = {"cmems": "cmems_acdc", "els_net": "els_net_acdc"}  # no configuration for the Left Atrium
PEERS = ("supervised", "caml", "cml")


def plan(args: argparse.Namespace) -> dict[str, list[str]]:
  """Name -> module of this folder and its arguments, the quickest things first."""
  rounds = f"--rounds={args.rounds}"
  root = [f"--root={args.root}"] if args.root else []
  found = {
    "components": ["components", *MASKS[args.size], *root],
    "surface": ["surface", "--scans=1", *(["--uncropped"] if args.size == "published" else []), *root],
    "pipeline": ["pipeline", *CROPS[args.size], *root],
    "sliding_window": ["sliding_window", *WINDOWS[args.size]],
  }
  for dtype in args.dtypes:
    found[f"layers_{dtype}"] = ["layers", *STEPS[args.size][0], f"--dtype={dtype}"]
    for method in args.methods:
      flat = method in IN_TWO_DIMENSIONS
      peer = "torch" if method in PEERS else "none"
      config = IN_TWO_DIMENSIONS.get(method, f"{method}_la")
      options = [f"--dtype={dtype}", f"--peer={peer}", "--tuned", *(["--remat"] if args.remat else [])]
      found[f"step_{method}_{dtype}"] = ["step_time", f"--config={config}", *options, *STEPS[args.size][flat]]
  return {name: [*words, rounds] for name, words in found.items()}


def main() -> None:
  """Runs the plan."""
  names = lambda text: tuple(text.split(","))
  parser = common.parser(__doc__)
  parser.set_defaults(rounds=3)
  parser.add_argument("--size", default="small", choices=tuple(STEPS))
  parser.add_argument("--methods", default=tuple(methods.names()), type=names)
  parser.add_argument("--dtypes", default=("float32",), type=names)
  parser.add_argument("--remat", action="store_true", help="our steps keep less for the gradient")
  parser.add_argument("--only", default="", help="run only what begins so, such as step_crln")
  parser.add_argument("--root", type=Path, help="Left Atrium scans; default: phantoms")
  parser.add_argument("--limit_s", default=1800, type=int, help="for each benchmark")
  parser.add_argument("--out", type=Path, default=common.ROOT / "build" / "benchmarks", help="folder for the JSON files")
  args = parser.parse_args()
  rows: list[common.Row] = []
  failed = []
  for name, (module, *words) in plan(args).items():
    if not name.startswith(args.only):
      continue
    file, begin = args.out / f"{name}.json", time.perf_counter()
    file.unlink(missing_ok=True)
    try:
      command = [sys.executable, "-m", f"benchmarks.{module}", *words, f"--json={file}"]
      subprocess.run(command, cwd=common.ROOT, check=True, timeout=args.limit_s)
      rows += [{**row, "what": f"{name}: {row['what']}"} for row in json.loads(file.read_text())["rows"]]
    except (subprocess.SubprocessError, OSError) as error:
      failed.append(f"{name}: {error}")
    print(f"[{name}: {time.perf_counter() - begin:.0f} s]\n", flush=True)
  common.report(f"# Everything, size {args.size}", rows, args.json or args.out / "all.json")
  if failed:
    sys.exit("error: not measured:\n  " + "\n  ".join(failed))


if __name__ == "__main__":
  main()
