"""What the benchmarks share: configurations without data, sides that take turns, one form of table, where and when it was measured."""

import argparse
import datetime
import importlib
import json
import math
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("flax", "grain", "jax", "jaxlib", "medpy", "monai", "numpy", "scipy", "torch")
COLUMNS = {  # of the table: key of a row, format
  "median ms": ("median_s", lambda s: f"{1e3 * s:.3g}" if s < 0.1 else f"{1e3 * s:.0f}"),
  "fastest ms": ("fastest_s", lambda s: f"{1e3 * s:.3g}" if s < 0.1 else f"{1e3 * s:.0f}"),
  "ratio": ("ratio", "{:.2f}".format),
  "CPU s": ("cpu_s", "{:.2f}".format),
  "first s": ("first_s", "{:.1f}".format),
  "peak GiB": ("peak_gib", "{:.2f}".format),
  "needs GiB": ("needs_gib", "{:.2f}".format),
  "kernels": ("kernels", "{:.0f}".format),
  "GB moved": ("moved_gb", "{:.2f}".format),
  "GB turned": ("turned_gb", "{:.2f}".format),
  "least ms": ("least_s", lambda s: f"{1e3 * s:.3g}"),
  "a second": ("per_s", "{:.1f}".format),
  "GFLOP/s": ("gflop_per_s", "{:.0f}".format),
  "GB/s": ("gb_per_s", "{:.1f}".format),
  "of the peak": ("of_peak", "{:.2f}".format),
  "difference": ("difference", "{:.1e}".format),
}
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8}
Row = dict[str, Any]
sides_of = lambda text: tuple(map(int, text.split(",")))


def configuration(name: str, root: Path | None = None, **changes: Any) -> Any:
  """Returns `configs/NAME.py` on phantoms as large as a patch, for which no data need be there.

  Args:
    name: of a configuration.
    root: of the configuration's own data, to have these instead.
    changes: of `patch`, of `batch` (of every stream that is not empty), and of the network's keys; `None` leaves a key as it is.
  """
  from ssl_jax import config
  from ssl_jax.types import Config

  raw = importlib.import_module(f"configs.{name}").get_config()
  patch, batch = changes.pop("patch", None), changes.pop("batch", None)
  if patch:  # the stride shrinks with it
    raw.eval.stride = tuple(max(1, step * new // old) for step, new, old in zip(raw.eval.stride, patch, raw.data.patch, strict=False))
    raw.data.patch = patch
  if root:
    raw.data.update(root=str(root), split="dev")  # which needs no list of test cases
  else:
    raw.data.update(source="phantom", split="official", num_labelled=8, slices=False, downsample=1)
    raw.data.phantom.shape = raw.data.patch
  for stream in ("batch_labelled", "batch_unlabelled", "batch_synthetic"):
    raw.train[stream] = batch if batch and raw.train[stream] else raw.train[stream]
  raw.network.update({key: value for key, value in changes.items() if value is not None})
  return config.check(config.parse(Config, raw.to_dict()))


def size_of(shape: str) -> int:
  """Bytes of an array, or of a tuple's, as a compiled program's text has its shape."""
  arrays = re.findall(r"(\w+)\[([\d,]*)\]", shape)
  return sum(BYTES.get(dtype, 4) * math.prod(int(side) for side in sides.split(",") if side) for dtype, sides in arrays)


def take_turns(sides: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
  """Seconds of every side in every round; a round before the first is not counted."""
  taken: dict[str, list[float]] = {name: [] for name in sides}
  for turn in range(rounds + 1):
    for name, side in sides.items():
      begin = time.perf_counter()
      side()
      if turn:
        taken[name].append(time.perf_counter() - begin)
  return taken


def rows_of(what: str, taken: Mapping[str, Sequence[float]]) -> list[Row]:
  """One row a side; with several, `ratio` is the median over rounds of its time by the last side's in the same round."""
  rows = [{"what": what, "side": side, "median_s": statistics.median(times), "fastest_s": min(times)} for side, times in taken.items()]
  if len(rows) > 1:
    *_, last = taken.values()
    for row, times in zip(rows, taken.values(), strict=True):
      row["ratio"] = statistics.median(a / b for a, b in zip(times, last, strict=True))
  return rows


def table(rows: Sequence[Row]) -> str:
  """The rows in markdown, with the columns that any of them has."""
  columns = {title: column for title, column in COLUMNS.items() if any(column[0] in row for row in rows)}
  lines = [["what", "side", *columns], ["---", "---", *("---:" for _ in columns)]]
  for row in rows:
    lines.append([row["what"], row["side"], *(show(row[key]) if key in row else "–" for key, show in columns.values())])
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine() -> Row:
  """When and where: date, processors, versions, malloc."""
  models = re.findall(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.M) if sys.platform == "linux" else []
  packages = {d.name.lower(): d.version for d in metadata.distributions()}
  found: Row = {
    "date": datetime.date.today().isoformat(),
    "platform": platform.platform(),
    "cpu": f"{os.cpu_count()} x {models[0] if models else platform.processor()}",
    "malloc": "tuned" if os.environ.get("GLIBC_TUNABLES") else "default",
    "versions": {"python": platform.python_version(), **{name: packages[name] for name in PACKAGES if name in packages}},
  }
  if "jax" in sys.modules:
    found["device"] = sys.modules["jax"].devices()[0].device_kind
  return found


def report(setting: str, rows: Sequence[Row], file: Path | None) -> None:
  """Prints the table, and writes it with `machine()` to `file` in JSON."""
  print(f"{setting}\n\n{table(rows)}\n", flush=True)
  if file:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"setting": setting, **machine(), "rows": list(rows)}, indent=2) + "\n")


def parser(doc: str) -> argparse.ArgumentParser:
  """A parser with what every benchmark takes."""
  made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
  made.add_argument("--rounds", default=5, type=int)
  made.add_argument("--json", type=Path, help="file for the table in JSON")
  return made
