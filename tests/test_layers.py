"""The layout of the library: who may import whom, how long a file may be, and who may know a method by name."""

import ast
import pathlib
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "ssl_jax"

# Room -> rooms it may import. A room is a folder or a file directly under ssl_jax/; every room may import itself.
ALLOWED = {
  "types": set(),
  "compiler": set(),
  "ops": set(),
  "metrics": set(),
  "config": {"types"},
  "core": {"types", "ops"},
  "networks": {"types", "ops"},
  "data": {"types"},
  "methods": {"types", "core", "ops"},
  "inference": {"types", "compiler", "data"},
  "interop": {"types", "networks"},
  "report": {"types", "config", "metrics", "experiment"},
  "experiment": {"types", "compiler", "config", "core", "networks", "data", "methods", "inference"},
  "train": {"types", "compiler", "config", "core", "networks", "data", "methods", "inference", "experiment", "evaluate", "report"},
  "evaluate": {"types", "config", "core", "networks", "data", "methods", "inference", "metrics", "experiment"},
  "segment": {"types", "data"},
  "predict": {"types", "data", "experiment", "segment"},
  "export": {"types", "compiler", "config", "data", "inference", "experiment", "segment"},
  "recorded": {"config"},
  "main": {"types", "compiler", "config", "core", "experiment", "train", "evaluate", "predict", "export", "report"},
  "sweep": {"types", "config", "methods", "experiment", "train", "report", "main"},
}
MAX_LINES = 400
MAX_LINES_OF = {"train.py": 250, "sweep.py": 250}
MAX_LINES_OF_METHOD = 199

FILES = sorted(PACKAGE.rglob("*.py"))
METHOD_NAMES = {path.stem for path in (PACKAGE / "methods").glob("*.py")} - {"__init__"}


def room(path: pathlib.Path) -> str:
  return path.relative_to(PACKAGE).with_suffix("").parts[0]


def name_of(path: pathlib.Path) -> str:
  return path.relative_to(PACKAGE).as_posix()


def imported_modules(tree: ast.AST, path: pathlib.Path) -> Iterator[str]:
  """Yields the dotted name of everything that `tree` imports, at any depth, relative imports resolved."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      package = ["ssl_jax", *path.relative_to(PACKAGE).parent.parts]
      base = package[: len(package) - node.level + 1] if node.level else []
      yield from (".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names)


def forbidden_imports(tree: ast.AST, path: pathlib.Path) -> list[str]:
  own = room(path)
  found = []
  for module in imported_modules(tree, path):
    parts = module.split(".")
    if parts[0] != "ssl_jax" or own == "__init__":
      continue
    target = parts[1] if len(parts) > 1 else "__init__"
    if target != own and target not in ALLOWED[own]:
      found.append(f"{own} -> {target}")
    if own == "methods" and target == "methods" and path.name != "__init__.py":
      found.append(f"method {path.stem} -> {module}")
  return found


def comparisons_with(tree: ast.AST, names: set[str]) -> list[int]:
  """Lines that compare something with, or match it against, a string among `names`."""
  lines = []
  for node in ast.walk(tree):
    if isinstance(node, ast.Compare | ast.match_case):
      inside = node if isinstance(node, ast.Compare) else node.pattern
      if any(isinstance(leaf, ast.Constant) and leaf.value in names for leaf in ast.walk(inside)):
        lines.append(inside.lineno)
  return lines


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_follow_the_arrows(path):
  assert room(path) in ALLOWED | {"__init__": set()}, f"a new room: add {room(path)} and what it may import to ALLOWED"
  assert not forbidden_imports(ast.parse(path.read_text()), path)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_stay_short(path):
  is_method = room(path) == "methods" and path.stem in METHOD_NAMES
  limit = MAX_LINES_OF.get(name_of(path), MAX_LINES_OF_METHOD if is_method else MAX_LINES)
  lines = path.read_text().count("\n")
  assert lines <= limit


@pytest.mark.parametrize("path", [path for path in FILES if room(path) != "methods"], ids=name_of)
def test_no_branch_on_a_method_outside_methods(path):
  assert not comparisons_with(ast.parse(path.read_text()), METHOD_NAMES)


@pytest.mark.parametrize("name", ["train.py", "evaluate.py", "experiment.py", "main.py", "sweep.py", "predict.py", "inference.py"])
def test_the_loop_names_no_method(name):
  """Neither as an identifier nor as a string of its own; prose may cite a paper."""
  tree = ast.parse((PACKAGE / name).read_text())
  leaves = {leaf.value for leaf in ast.walk(tree) if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str)}
  identifiers = {getattr(node, field, None) for node in ast.walk(tree) for field in ("id", "attr", "arg", "name")}
  assert not METHOD_NAMES & (leaves | identifiers)


def test_arrows_do_not_turn_around():
  """The allowed imports have no cycle: rooms can be put in an order in which each imports only earlier ones."""
  remaining = dict(ALLOWED)
  while remaining:
    ready = [name for name, targets in remaining.items() if not targets & remaining.keys()]
    assert ready, f"a cycle among {sorted(remaining)}"
    for name in ready:
      del remaining[name]


@pytest.mark.parametrize(
  ("where", "source", "caught"),
  [
    ("methods/new.py", "from ssl_jax.methods import supervised", True),
    ("methods/new.py", "def f():\n  import ssl_jax.networks.vnet", True),
    ("methods/new.py", "from ..data import sources", True),
    ("methods/new.py", "from ssl_jax.core import ema", False),
    ("ops/new.py", "from ssl_jax import types", True),
    ("ops/new.py", "from .segmentation import ce_dice", False),
    ("metrics/new.py", "import numpy, jax", False),
  ],
)
def test_the_check_itself_catches(where, source, caught):
  assert bool(forbidden_imports(ast.parse(source), PACKAGE / where)) == caught


@pytest.mark.parametrize(
  ("source", "caught"),
  [
    ("if cfg.name == 'crln': pass", True),
    ("ok = name in ('vnet', 'crln')", True),
    ("match name:\n  case 'crln': pass", True),
    ("if name == 'vnet': pass", False),
    ("x = 'crln'", False),
  ],
)
def test_the_comparison_check_itself_catches(source, caught):
  assert bool(comparisons_with(ast.parse(source), {"crln"})) == caught
