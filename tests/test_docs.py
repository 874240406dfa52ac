"""The documentation: its Python runs, its commands parse, its links lead somewhere, and what it names exists."""

import argparse
import contextlib
import copy
import dataclasses
import functools
import importlib
import itertools
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from absl import flags
from ml_collections import config_flags

from ssl_jax import config, methods
from ssl_jax.types import Config
from tests.helpers import HANG_S, ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINKING_PAGES = [*PAGES, ROOT / "BUILD.md", ROOT / "launch/README.md", *sorted((ROOT / "benchmarks/results").glob("*.md"))]
METHOD_PAGES = [page for page in PAGES if page.parent.name == "methods" and page.stem in methods.names()]
PAGE = lambda page: page.relative_to(ROOT).as_posix()
FENCE = re.compile(r"(?ms)^(?:<!-- not run: (?P<reason>[^\n]*?) -->\n)?^```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```$")
HEREDOC = re.compile(r"(?ms)^python - <<'(\w+)'\n(.*?)^\1$")
MOST_NOT_RUN = 3
NAME = re.compile(r"`((\w+)(?:\.\w+)+)(?:=[^`]*)?`")
ROOMS = {"ssl_jax", "config", *(path.stem for path in (ROOT / "ssl_jax").glob("[a-z]*"))}
FILE_ENDINGS = (".json", ".jsonl", ".list", ".md", ".npz", ".py", ".stablehlo", ".txt")
SHELL_WORDS = {"pip", "python3.12", "jupyter", "chromium"}  # of other programs: nothing here to check them against


class Block(NamedTuple):
  language: str
  text: str
  reason: str | None  # why it is not run; None: it is


def blocks(text: str) -> list[Block]:
  """Fenced blocks; a Python script inside a shell block counts as Python."""
  found = []
  for match in FENCE.finditer(text):
    block = Block(match["language"], match["text"], match["reason"])
    scripts = [Block("python", inner[2], block.reason) for inner in HEREDOC.finditer(block.text)] if block.language == "bash" else []
    found += [*scripts, block._replace(text=HEREDOC.sub("", block.text)) if scripts else block]
  return found


def scripts(page: Path) -> list[str]:
  """The Python of a page that runs."""
  return [block.text for block in blocks(page.read_text()) if block.language == "python" and block.reason is None]


def commands(text: str) -> Iterator[list[str]]:
  """Words of every command of a shell block; `for` loops are unrolled, comments and settings of variables dropped."""
  loops: list[tuple[str, list[str]]] = []
  for line in re.sub(r"\\\n", " ", text).splitlines():
    words = shlex.split(line, comments=True)
    if words[:1] == ["for"]:
      loops.append((words[1], [word.rstrip(";") for word in words[3 : words.index("do")]]))
    elif words == ["done"]:
      loops.pop()
    elif words:
      for values in itertools.product(*(values for _, values in loops)):
        bound = dict(zip((name for name, _ in loops), values, strict=True))
        command = [re.sub(r"\$\{?(\w+)\}?", lambda m, bound=bound: bound.get(m[1], m[0]), re.sub(r"\[|\]", "", word)) for word in words]
        yield list(itertools.dropwhile(lambda word: re.match(r"[A-Z_]+=", word), command))


class Parsed(BaseException):
  """A command line was understood; the program stops here."""


def check_main(arguments: list[str]) -> None:
  """Parses a command line of `ssl_jax.main` to the checked configuration."""
  from ssl_jax import main

  values = flags.FlagValues()
  for flag in flags.FLAGS.get_flags_for_module(main.__name__):
    if flag.name != "config":
      values[flag.name] = copy.deepcopy(flag)
  if not any(argument.startswith("--config=") for argument in arguments) and any(a.startswith("--workdir=") for a in arguments):
    arguments = [f"--config={ROOT}/configs/crln_la.py", *arguments]  # stands in for what the run's folder has recorded
  argv = ["main", *(re.sub(r"(--config=)(?=[^/])", rf"\1{ROOT}/", argument) for argument in arguments)]
  config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=argv)
  rest = values(argv)
  assert len(rest) == 1, f"not flags: {rest[1:]}"
  assert values["config"].value is not None, "neither --config nor --workdir"
  cfg = config.check(config.parse(Config, values["config"].value.to_dict()))
  for group in (cfg.method, *cfg.compare.values()):
    config.parse(methods.load(group["name"]).Options, {k: v for k, v in group.items() if k != "name"})


def check_sweep(arguments: list[str]) -> None:
  """Plans a sweep and lists it."""
  from ssl_jax import sweep

  with contextlib.chdir(ROOT):
    assert sweep.main([*(argument.replace("$SLURM_ARRAY_TASK_ID", "0") for argument in arguments), "--list"]) == 0


def check_argparse(module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
  """Lets a program parse its arguments and stops it there."""

  def parse_args(self, args=None, namespace=None, *, original=argparse.ArgumentParser.parse_args):
    original(self, args, namespace)
    raise Parsed

  with monkeypatch.context() as patched:
    patched.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    try:
      status = importlib.import_module(f"{module}.__main__").main(arguments)
    except Parsed:
      return
  raise AssertionError(f"{module} {arguments}: refused with exit status {status}")


def check_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
  """Raises or fails when a command of the documentation would not start."""
  if words[0] == "make":
    targets = re.findall(r"(?m)^([a-z][\w-]*):", (ROOT / "Makefile").read_text())
    assert {word for word in words[1:] if "=" not in word} <= set(targets)
  elif words[0].endswith("python"):
    if words[1:3] == ["-m", "ssl_jax.main"]:
      check_main(words[3:])
    elif words[1:3] == ["-m", "ssl_jax.sweep"]:
      check_sweep(words[3:])
    elif words[1] == "-m" and words[2].startswith("ssl_jax."):
      check_argparse(words[2], words[3:], monkeypatch)
    elif words[1:3] != ["-m", "http.server"]:
      if "--" in words:  # what follows is for the command line that the script starts
        check_main(words[words.index("--") + 1 :])
        words = words[: words.index("--")]
      script = ROOT / (words[2].replace(".", "/") + ".py" if words[1] == "-m" else words[1])
      script = script if script.is_file() else script.with_suffix("") / "__main__.py"
      source = script.read_text()
      assert all(word.split("=")[0] in source for word in words if word.startswith("--")), words
  else:
    assert words[0] in SHELL_WORDS, f"{words[0]}: no known program; mark the block <!-- not run: reason --> or teach this test"


def anchors(text: str) -> set[str]:
  """Fragments that headings can be reached by."""
  headings = re.findall(r"(?m)^#+ (.+)$", FENCE.sub("", text))
  return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


@pytest.mark.parametrize("page", [page for page in PAGES if scripts(page)], ids=PAGE)
def test_python_runs(page, tmp_path, monkeypatch):
  (tmp_path / "configs").symlink_to(ROOT / "configs")
  monkeypatch.chdir(tmp_path)
  module = type(sys)("documentation")
  monkeypatch.setitem(sys.modules, module.__name__, module)
  for script in scripts(page):
    exec(compile(script, PAGE(page), "exec"), module.__dict__)  # one namespace a page


@pytest.mark.parametrize("page", PAGES, ids=PAGE)
def test_commands_parse(page, monkeypatch):
  for block in blocks(page.read_text()):
    if block.language == "bash" and block.reason is None:
      for words in commands(block.text):
        check_command(words, monkeypatch)


@pytest.mark.parametrize(
  "line",
  [
    "python -m ssl_jax.main --config=configs/no_such.py",
    "python -m ssl_jax.main --config=configs/crln_la.py --config.method.no_such=1",
    "python -m ssl_jax.main --config=configs/crln_la.py --no_such=1",
    "python -m ssl_jax.main --mode=eval",
    "python -m ssl_jax.main --mode=eval --workdir=runs/a --config.eval.no_such=1",
    "python -m ssl_jax.main --config=configs/crln_la.py --mode=no_such",
    "python -m ssl_jax.sweep --sweep=configs/ablations/no_such.py",
    "python -m ssl_jax.data no-such data/la",
    "python -m ssl_jax.report runs/a --no_such=1",
    "python -m benchmarks.step_time --no_such=1",
    "make no-such",
    "no_such",
  ],
)
def test_wrong_commands_are_caught(line, monkeypatch):
  with pytest.raises((Exception, SystemExit)):
    for words in commands(line):
      check_command(words, monkeypatch)


def test_loops_and_comments_of_a_shell_block():
  text = "for m in a b; do\n  A=1 python -m x --config=${m}.py \\\n    --y=$m  # why\ndone\nmake test"
  assert list(commands(text)) == [
    ["python", "-m", "x", "--config=a.py", "--y=a"],
    ["python", "-m", "x", "--config=b.py", "--y=b"],
    ["make", "test"],
  ]


def test_scripts_and_reasons_are_found(tmp_path):
  page = tmp_path / "page.md"
  runs, refused = "```python\na\n```\n", "<!-- not run: too slow here -->\n```python\nb\n```\n"
  page.write_text(runs + refused + "```bash\npython - <<'END'\nc\nEND\nmake test\n```\n")
  assert scripts(page) == ["a\n", "c\n"]
  assert [(block.language, block.reason) for block in blocks(page.read_text())][1] == ("python", "too slow here")
  assert len([page for page in PAGES if scripts(page)]) >= 10


def test_blocks_that_do_not_run_say_why():
  reasons = [block.reason for page in PAGES for block in blocks(page.read_text()) if block.reason is not None]
  assert all(len(reason.split()) > 2 for reason in reasons)
  assert len(reasons) <= MOST_NOT_RUN


@pytest.mark.parametrize("page", LINKING_PAGES, ids=PAGE)
def test_links_resolve(page):
  text = FENCE.sub("", page.read_text())
  for target in re.findall(r"\]\(([^)\s]+)\)", text):
    path, _, fragment = target.partition("#")
    if re.match(r"\w+:", target):
      continue
    file = (page.parent / path).resolve() if path else page
    assert file.exists(), f"{PAGE(page)}: {target}"
    assert not fragment or fragment in anchors(file.read_text()), f"{PAGE(page)}: {target}"


@functools.cache
def known_keys() -> dict[str, Any]:
  """Every configuration key, those of all methods under `method`, as nested dictionaries."""
  groups = ("data", "network", "optim", "train", "eval")
  keys = dataclasses.asdict(config.parse(Config, {**dict.fromkeys(groups, {}), "seed": 0, "method": {}}))
  for name in methods.names():
    options = dataclasses.asdict(methods.load(name).Options())
    weights = {**keys["method"].get("weights", {}), **options.get("weights", {})}
    keys["method"] |= {"name": name, **options, "weights": weights}
  return keys


def is_key(name: str) -> bool:
  group = known_keys()
  for part in name.removeprefix("config.").split("."):
    if not isinstance(group, dict) or part not in group:
      return False
    group = group[part]
  return True


def is_object(name: str) -> bool:
  """Whether `ssl_jax.<name>` is a module or something in one."""
  found = importlib.import_module("ssl_jax")
  for part in name.removeprefix("ssl_jax.").split("."):
    with contextlib.suppress(ModuleNotFoundError):
      importlib.import_module(f"{found.__name__}.{part}")
    if not hasattr(found, part):
      return False
    found = getattr(found, part)
  return True


@pytest.mark.parametrize("page", PAGES, ids=PAGE)
def test_names_exist(page):
  """Functions, configuration keys and tests that the text names."""
  text = FENCE.sub("", page.read_text())
  names = [name for name, first in NAME.findall(text) if first in ROOMS | known_keys().keys() and not name.endswith(FILE_ENDINGS)]
  assert [name for name in names if not is_key(name) and not is_object(name)] == []
  defined = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py") if file.name != "test_docs.py")
  assert [start for start in re.findall(r"`(test_\w+)…?`", text) if f"def {start}" not in defined] == []


@pytest.mark.parametrize(
  ("name", "exists"),
  [
    ("ops.segmentation.ce_dice", True),
    ("ops.segmentation.no_such", False),
    ("types.Method", True),
    ("method.weights.cps", True),
    ("method.weights.no_such", False),
    ("config.data.patch", True),
    ("data.no_such", False),
  ],
)
def test_names_are_looked_up(name, exists):
  assert (is_key(name) or is_object(name)) == exists


@pytest.mark.parametrize("page", METHOD_PAGES, ids=PAGE)
def test_switches_of_the_equations_exist(page):
  """The third column of the table of equations and every default `key=value` name keys of the method or of the configuration."""
  options = vars(methods.load(page.stem).Options())
  table = re.search(r"(?ms)^\| equation \| function \| switch.*?(?=^$)", page.read_text())
  cells = [row.split("|")[3] for row in table[0].splitlines()[2:]] if table else []
  for switch in itertools.chain.from_iterable(re.findall(r"`([\w.]+)(?:=\w+)?`", cell) for cell in cells):
    head, _, term = switch.partition(".")
    assert is_key(switch) if head in known_keys() else head in options and (not term or term in options[head]), f"{PAGE(page)}: {switch}"


@pytest.mark.parametrize("page", ["performance.md", "reproducing.md"])
def test_times_are_measured_or_published(page):
  """Each number with a decimal point stands in a committed measurement, a results page or a configuration's citation."""
  sources = itertools.chain(*(ROOT.glob(pattern) for pattern in ("benchmarks/results/*.md", "docs/results/*.md", "configs/*.py")))
  known = set(re.findall(r"\d+\.\d+", "\n".join(file.read_text() for file in sources)))
  assert set(re.findall(r"\d+\.\d+", FENCE.sub("", (ROOT / "docs" / page).read_text()))) <= known


def test_every_method_has_a_page():
  """A page of its own, or a section of the page of baselines."""
  sections = re.findall(r"(?m)^## (\w+)$", (ROOT / "docs/methods/baselines.md").read_text())
  assert sorted([*(page.stem for page in METHOD_PAGES), *sections]) == list(methods.names())


def test_site_builds(tmp_path):
  for package in ("mkdocs", "material", "mkdocstrings"):
    pytest.importorskip(package, reason="pip install -r requirements-docs.txt")
  command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
  result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG_S)
  assert result.returncode == 0, result.stderr
  assert (tmp_path / "site/api/ops.html").is_file()
