"""From a `ConfigDict` (what config files build and the command line overrides) to frozen dataclasses, with errors that name the key."""

import dataclasses
import functools
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from ssl_jax.types import Config, InputError, nearest, read_json, shown

T = TypeVar("T")
# Numbers that have a range of their own, both ends included.
_RANGES: Mapping[str, tuple[float, float]] = {
  "seed": (0, 2**31 - 1),
  "data.intensity_jitter": (0, 1),
  "data.synthesis.per_background": (0, 10**6),
  "data.synthesis.exemplar_rank": (0, 10**6),
  "data.synthesis.rotation_deg": (0, 180),
  "data.synthesis.shift": (0, 1),
  "data.synthesis.offset": (0, 1e6),
  "data.synthesis.noise": (0, 1e6),
  "network.width": (1, 4096),
  "optim.lr": (0, 1e6),
  "optim.momentum": (0, 1),
  "optim.weight_decay": (0, 1e6),
  "optim.poly_power": (0, 100),
  "optim.step_from": (0, 2**31 - 1),
  "optim.step_every": (1, 2**31 - 1),
  "optim.step_factor": (0, 1e6),
  "train.batch_labelled": (1, 2**16),
  "train.batch_unlabelled": (1, 2**16),
  "train.batch_synthetic": (0, 2**16),
  "train.eval_every_steps": (0, 2**31 - 1),
  "eval.window_batch": (1, 2**16),
  "eval.max_cases": (0, 10**6),
  "eval.num_resamples": (1, 10**6),
}
_MOST_VOXELS = 2**31  # of a patch
_LARGEST = {float: 3e38, int: 2**53}  # beyond these float32 is infinite, and JSON's readers round


def parse(cls: type[T], values: Mapping[str, Any], where: str = "config") -> T:
  """Builds the frozen dataclass `cls` from a mapping, recursively.

  Args:
    cls: a dataclass; fields without default are required.
    values: mapping of field name to value; nested mappings for nested dataclasses.
    where: dotted path of `values` for messages.

  Returns:
    An instance of `cls`, numbers and tuples converted to the declared types.

  Raises:
    InputError: an unknown key (with the nearest valid one), a missing key, or a value of the wrong type.
  """
  if not isinstance(values, Mapping):
    raise InputError(f"{where}: expected a group of keys, got {shown(values)}")
  hints = typing.get_type_hints(cls)
  fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
  for key in values:
    if key not in fields:
      raise InputError(f"{where}.{str(key)[:200]}: no such key; {nearest(str(key), fields)}")
  missing = [
    n for n, f in fields.items() if n not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
  ]
  if missing:
    raise InputError(f"{where}.{missing[0]}: this key is required")
  return cls(**{key: _convert(hints[key], value, f"{where}.{key}") for key, value in values.items()})


def parse_known(cls: type[T], values: Any, where: str) -> T:
  """As `parse`, of a mapping that may have further keys, which are passed over."""
  known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
  return parse(cls, {key: value for key, value in values.items() if key in known} if isinstance(values, Mapping) else values, where)


def _convert(hint: Any, value: Any, where: str) -> Any:
  if dataclasses.is_dataclass(hint):
    return parse(hint, value, where)  # type: ignore[arg-type]
  origin = typing.get_origin(hint)
  if origin in (types.UnionType, typing.Union):
    if value is None:
      return None
    return _convert(next(a for a in typing.get_args(hint) if a is not type(None)), value, where)
  if origin is tuple:
    if not isinstance(value, list | tuple):
      raise InputError(f"{where}: expected a list, got {shown(value)}")
    items, args = list(value), typing.get_args(hint)
    if len(args) == 2 and args[1] is Ellipsis:
      args = (args[0],) * len(items)
    if len(args) != len(items):
      raise InputError(f"{where}: expected {len(args)} items, got {shown(value)}")
    return tuple(_convert(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, items, strict=True)))
  if origin is typing.Literal:
    if value not in typing.get_args(hint):
      raise InputError(f"{where}: no {shown(value)}; {nearest(str(value), typing.get_args(hint))}")
    return value
  if origin is not None and issubclass(origin, Mapping):
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
      raise InputError(f"{where}: expected a group of keys, got {shown(value)}")
    item = typing.get_args(hint)[1] if typing.get_args(hint) else Any
    return {k: _convert(item, v, f"{where}.{k}") for k, v in value.items()}
  if hint is Any:
    return value
  if isinstance(hint, type) and not isinstance(value, (float, int) if hint is float else hint):
    raise InputError(f"{where}: expected {hint.__name__}, got {shown(value)}")
  if isinstance(value, bool) and hint is not bool:
    raise InputError(f"{where}: expected {hint.__name__}, got {value!r}")
  if hint in (float, int) and not abs(value) <= _LARGEST[hint]:
    raise InputError(f"{where}: expected a number of at most {_LARGEST[hint]:g}, got {shown(value)}")
  return float(value) if hint is float else value


def check(cfg: Config) -> Config:
  """Checks values that only make sense together; returns `cfg`.

  Raises:
    InputError: naming the key that is out of range.
  """

  def need(ok: bool, key: str, what: str) -> None:
    if not ok:
      raise InputError(f"config.{key}: {what}")

  need(len(cfg.data.patch) in (2, 3) and min(cfg.data.patch) > 0, "data.patch", f"needs 2 or 3 positive sides, got {cfg.data.patch}")
  is_2d, stride = len(cfg.data.patch) == 2, cfg.eval.stride
  need(
    is_2d or len(stride) == len(cfg.data.patch),
    "eval.stride",
    f"needs one number per side of data.patch {cfg.data.patch}, got {stride}",
  )
  need(
    is_2d or all(0 < s <= p for s, p in zip(stride, cfg.data.patch, strict=True)), "eval.stride", "needs 0 < stride <= patch on every axis"
  )
  need(cfg.eval.window_batch >= 1, "eval.window_batch", f"must be at least 1, got {cfg.eval.window_batch}")
  need(
    is_2d or not cfg.data.slices,
    "data.slices",
    f"slices need a patch of two sides, got config.data.patch={cfg.data.patch}; give X and Y alone, or set config.data.slices=False",
  )
  need(
    is_2d == (cfg.data.view != "crop"),
    "data.view",
    f"a 2D network is evaluated on whole slices resized to config.data.patch, so it must be trained on such: 'resize' or 'none', and a 3D "
    f"one on crops: 'crop'; got {cfg.data.view!r} with {cfg.data.patch}",
  )
  need(
    not cfg.data.spacing or (len(cfg.data.spacing) == len(cfg.data.patch) and min(cfg.data.spacing) > 0),
    "data.spacing",
    f"needs one positive number of mm per side of data.patch {cfg.data.patch}, or none at all, got {cfg.data.spacing}",
  )
  need(
    len(set(cfg.eval.flips)) == len(cfg.eval.flips) and all(0 <= axis < len(cfg.data.patch) for axis in cfg.eval.flips),
    "eval.flips",
    f"needs different spatial axes, 0 to {len(cfg.data.patch) - 1}, got {cfg.eval.flips}",
  )
  need(not (is_2d and cfg.eval.whole_volume), "eval.whole_volume", "a 2D network sees whole slices anyway; set it to False")
  need(cfg.data.downsample >= 1, "data.downsample", f"must be at least 1, got {cfg.data.downsample}")
  need(cfg.optim.lr > 0, "optim.lr", f"must be positive, got {cfg.optim.lr}")
  need(min(cfg.train.batch_labelled, cfg.train.batch_unlabelled) >= 1, "train.batch_labelled", "both batch sizes must be at least 1")
  need(cfg.train.batch_synthetic >= 0, "train.batch_synthetic", f"must be at least 0, got {cfg.train.batch_synthetic}")
  need(cfg.train.log_every_steps >= 1, "train.log_every_steps", "must be at least 1")
  need(cfg.train.checkpoint_every_steps >= 1, "train.checkpoint_every_steps", "must be at least 1")
  need(cfg.train.keep_checkpoints >= 1, "train.keep_checkpoints", "must be at least 1")
  need(len(cfg.train.phases) >= 1 and all(n >= 0 for _, n in cfg.train.phases), "train.phases", "needs pairs (name, steps) with steps >= 0")
  need(
    cfg.eval.select != "best" or cfg.train.eval_every_steps > 0,
    "eval.select",
    "'best' needs config.train.eval_every_steps > 0, or no checkpoint has a score",
  )
  need(math.prod(cfg.data.patch) <= _MOST_VOXELS, "data.patch", f"has more than {_MOST_VOXELS} voxels: {cfg.data.patch}")
  need(sum(n for _, n in cfg.train.phases) < 2**31, "train.phases", "has more than 2³¹ steps")
  for key in ("scale", "gain"):
    low, high = getattr(cfg.data.synthesis, key)
    need(0 < low <= high, f"data.synthesis.{key}", f"needs two positive numbers, the smaller one first, got {(low, high)}")
  for key, (least, most) in _RANGES.items():
    value: Any = functools.reduce(getattr, key.split("."), cfg)
    need(least <= value <= most, key, f"must lie between {least:g} and {most:g}, got {value:g}")
  for key, method in (("method", cfg.method), *((f"compare.{name}", method) for name, method in cfg.compare.items())):
    need("name" in method, f"{key}.name", "this key is required")
  for name in cfg.compare:
    need(bool(re.fullmatch(r"\w[\w.+-]*", name)), f"compare.{name[:200]}", "names a folder: letters, digits and _ . + - only")
  return cfg


def to_json(cfg: Config) -> str:
  """Returns the resolved configuration as indented JSON."""
  return json.dumps(dataclasses.asdict(cfg), indent=2)


def from_json(file: Path) -> Config:
  """Reads what `to_json` wrote.

  Raises:
    InputError: the file is damaged or from another version.
  """
  values = read_json(file)
  try:
    return parse(Config, values)
  except InputError as error:
    raise InputError(f"{file}: {error}; restore it or start another --workdir") from error
