"""Crops a second that the input pipeline delivers, by number of readers, and how many training steps a second that feeds.

  python -m benchmarks.pipeline [--config=crln_la] [--root=data/la] [--steps=50] [--json=PATH]

Without `--root` the scans are phantoms as large as a crop. The first batches, in which every scan is read once, are not counted.
"""

import time
from pathlib import Path

from benchmarks import common


def main() -> None:
  parser = common.parser(__doc__)
  parser.add_argument("--config", default="crln_la", help="name of a file in configs/")
  parser.add_argument("--root", type=Path, help="the configuration's data; default: phantoms")
  parser.add_argument("--shape", type=common.sides_of, help="of a crop")
  parser.add_argument("--steps", default=50, type=int, help="counted, a round")
  parser.add_argument("--readers", default=(0, 1, 2), type=common.sides_of, help="threads that prepare batches ahead")
  args = parser.parse_args()

  from ssl_jax import data

  cfg = common.configuration(args.config, args.root, patch=args.shape)
  source = data.open_source(cfg.data)
  split = data.make_split(cfg.data, source)
  sizes = {"batch_labelled": cfg.train.batch_labelled, "batch_unlabelled": cfg.train.batch_unlabelled}
  for name in split.labelled + split.unlabelled:
    source.load(name)
  rows = []
  for readers in args.readers:
    stream = data.batches(
      cfg.data, source, split, seed=0, start_step=0, num_steps=args.steps * args.rounds + 5, num_threads=readers, **sizes
    )
    for _ in range(5):
      next(stream)
    times = []
    for _ in range(args.rounds):
      begin = time.perf_counter()
      for _ in range(args.steps):
        next(stream)
      times.append((time.perf_counter() - begin) / args.steps)
    [row] = common.rows_of("a batch", {f"{readers} readers": times})
    rows.append({**row, "per_s": 1 / row["median_s"]})
  shape = "x".join(map(str, cfg.data.patch))
  origin = "real scans" if args.root else "phantoms"
  common.report(f"{args.config}: batches of {sum(sizes.values())} crops {shape} from {origin}; *a second*: batches", rows, args.json)


if __name__ == "__main__":
  main()
