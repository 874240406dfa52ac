"""From mappings to frozen dataclasses."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import pytest

from configs import common
from ssl_jax import config
from ssl_jax.types import Config, InputError


@dataclasses.dataclass(frozen=True)
class Inner:
  rate: float = 0.5
  kind: Literal["soft", "hard"] = "soft"


@dataclasses.dataclass(frozen=True)
class Outer:
  size: tuple[int, ...]
  inner: Inner = Inner()
  weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
  phases: tuple[tuple[str, int], ...] = ()
  limit: int | None = None
  on: bool = False


def test_converts_lists_ints_and_nested_groups():
  raw = {"size": [1, 2], "inner": {"rate": 1, "kind": "hard"}, "weights": {"a": 1}, "phases": [["x", 3]], "limit": 4}
  assert config.parse(Outer, raw) == Outer((1, 2), Inner(1.0, "hard"), {"a": 1.0}, (("x", 3),), 4)


@pytest.mark.parametrize(
  ("raw", "message"),
  [
    ({"size": (1,), "iner": {}}, r"config.iner: no such key; did you mean 'inner'"),
    ({"size": (1,), "inner": {"rat": 1}}, r"config.inner.rat: no such key; did you mean 'rate'"),
    ({"size": (1,), "inner": {"kind": "sofd"}}, r"config.inner.kind: no 'sofd'; did you mean 'soft'"),
    ({}, r"config.size: this key is required"),
    ({"size": 3}, r"config.size: expected a list, got 3"),
    ({"size": (1, "b")}, r"config.size\[1\]: expected int, got 'b'"),
    ({"size": (1,), "inner": 3}, r"config.inner: expected a group of keys"),
    ({"size": (1,), "inner": {"rate": "fast"}}, r"config.inner.rate: expected float, got 'fast'"),
    ({"size": (1,), "phases": [["x"]]}, r"config.phases\[0\]: expected 2 items"),
    ({"size": (True,)}, r"config.size\[0\]: expected int, got True"),
    ({"size": (1,), "on": 1}, r"config.on: expected bool, got 1"),
    ({"size": (1,), "weights": {"a": None}}, r"config.weights.a: expected float, got None"),
  ],
)
def test_says_which_key_is_wrong(raw, message):
  with pytest.raises(InputError, match=message):
    config.parse(Outer, raw)


@pytest.mark.parametrize(
  ("group", "key", "value"),
  [
    ("data", "patch", (16,)),
    ("data", "downsample", 0),
    ("eval", "stride", (16, 16)),
    ("eval", "stride", (0, 16, 16)),
    ("eval", "stride", (200, 16, 16)),
    ("eval", "select", "best"),
    ("optim", "lr", 0.0),
    ("train", "batch_labelled", 0),
    ("train", "phases", ()),
    ("train", "log_every_steps", 0),
  ],
)
def test_checks_name_the_key(group, key, value):
  raw = common.base("supervised").to_dict()
  raw[group][key] = value
  with pytest.raises(InputError, match=rf"config\.{group}\.{key}|config\.eval\.stride"):
    config.check(config.parse(Config, raw))


def test_a_damaged_json_is_named(tmp_path):
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(InputError, match="config.json"):
    config.from_json(tmp_path / "config.json")
