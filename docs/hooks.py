"""Hooks of the documentation's site (mkdocs.yml): what it takes from outside `docs/`, and links from names to the API reference.

BUILD.md, launch/, the notebook and the benchmarks' tables become pages; every package of ssl_jax gets a page made from its docstrings; a
name in a page's text, such as `ops.components.largest_component`, links there.
"""

import ast
import functools
import json
import re
from pathlib import Path

from markdown import Extension, Markdown
from markdown.preprocessors import Preprocessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ssl_jax"
TAKEN = {"BUILD.md": "build.md", "launch/README.md": "launch.md", "notebooks/ablations_colab.ipynb": "notebook.md"}
TAKEN |= {f"benchmarks/results/{f.name}": f"benchmarks/{f.name}" for f in ROOT.glob("benchmarks/results/*.md")}
CODE_OR_NAME = re.compile(r"(?ms)^(?:```|~~~).*?^(?:```|~~~)$|(?<![\[`])`(\w+(?:\.\w+)+)`(?![\]`])")


class _BlankLineBeforeTables(Preprocessor):
  """Docstrings start a table right under a sentence, which Markdown takes for more of the sentence."""

  def run(self, lines: list[str]) -> list[str]:
    spaced: list[str] = []
    for line in lines:
      if line.lstrip().startswith("|") and spaced and spaced[-1].strip() and not spaced[-1].lstrip().startswith("|"):
        spaced.append("")
      spaced.append(line)
    return spaced


class _Tables(Extension):
  def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
    md.preprocessors.register(_BlankLineBeforeTables(md), "blank_line_before_tables", 20)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
  """Adds the pages from outside `docs/` to the navigation."""
  config.markdown_extensions.append(_Tables())  # type: ignore[arg-type]
  assert config.nav is not None
  tables = [{Path(name).stem.replace("_", " ").capitalize(): page} for name, page in TAKEN.items() if page.startswith("benchmarks/")]
  config.nav += [{"Measurements": tables}, {"API": [{"ssl_jax" if name == "index" else name: f"api/{name}.md"} for name in _api_pages()]}]
  return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
  """Makes the pages from outside `docs/`."""
  for name, page in TAKEN.items():
    files.append(File.generated(config, page, content=_notebook(ROOT / name) if name.endswith(".ipynb") else (ROOT / name).read_text()))
  for name, modules in _api_pages().items():
    title = "# ssl_jax" if name == "index" else f"# {name}"
    files.append(File.generated(config, f"api/{name}.md", content="\n\n".join([title, *(f"::: {module}" for module in modules)]) + "\n"))
  return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
  """Turns links out of `docs/` into links to the pages made here, and names of the library into links to their documentation."""
  markdown = re.sub(r"\]\((?:\.\./)+docs/", "](", markdown)
  up = "../" * page.file.src_uri.count("/")
  for name, target in TAKEN.items():
    markdown = re.sub(rf"\]\((?:\.\./)+{re.escape(name)}", f"]({up}{target}", markdown)
  return CODE_OR_NAME.sub(lambda m: f"[`{m[1]}`][ssl_jax.{m[1]}]" if m[1] and _is_documented(m[1]) else m[0], markdown)


def _notebook(file: Path) -> str:
  """Markdown of a notebook: its texts, its code, and what it printed and drew when it was last run."""
  parts = []
  for cell in json.loads(file.read_text())["cells"]:
    source = "".join(cell["source"])
    parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
    for output in cell.get("outputs", []):
      if "text" in output:
        parts.append("```text\n" + "".join(output["text"]) + "```")
      if image := output.get("data", {}).get("image/png"):
        parts.append(f"![](data:image/png;base64,{''.join(image).replace(chr(10), '')})")
  return "\n\n".join(parts) + "\n"


@functools.cache
def _api_pages() -> dict[str, list[str]]:
  """Page -> its modules: those directly under ssl_jax on one page, then one page a package."""
  pages = {"index": [f"ssl_jax.{file.stem}" for file in sorted(PACKAGE.glob("*.py")) if file.stem != "__init__"]}
  for package in sorted(PACKAGE.glob("*/__init__.py")):
    name = package.parent.name
    modules = (file.stem for file in sorted(package.parent.glob("*.py")) if not file.stem.startswith("__"))
    pages[name] = [f"ssl_jax.{name}", *(f"ssl_jax.{name}.{module}" for module in modules)]
  return pages


@functools.cache
def _is_documented(name: str) -> bool:
  """Whether `ssl_jax.<name>` is a module, or a public function or class of one, and no key of the configuration's group `data`."""
  file = PACKAGE.joinpath(*name.split(".")).with_suffix(".py")
  if file.is_file():
    return not name.startswith("data.")
  module, _, attribute = name.rpartition(".")
  file = PACKAGE.joinpath(*module.split(".")).with_suffix(".py")
  if not file.is_file() or attribute.startswith("_"):
    return False
  tree = ast.parse(file.read_text())
  documented = (ast.FunctionDef, ast.ClassDef)
  return any(isinstance(node, documented) and node.name == attribute and ast.get_docstring(node) for node in tree.body)
