"""A table as Markdown, CSV or LaTeX."""

import csv
import dataclasses
import io
import math
import re
from collections.abc import Sequence

FORMATS = ("markdown", "csv", "latex")
_LATEX = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}"}
_LATEX |= {"^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "±": r"$\pm$"}
_LATEX |= {"–": "--", "−": "$-$", "×": r"$\times$", "<": "$<$", ">": "$>$"}


@dataclasses.dataclass(frozen=True)
class Number:
  """A cell: a number that is known when it is not NaN, to a few digits, with what it may vary by.

  Attributes:
    deviation: printed behind ±.
    interval: printed in brackets.
  """

  value: float
  deviation: float | None = None
  interval: tuple[float, float] | None = None
  digits: int = 2

  def __str__(self) -> str:
    if math.isnan(self.value):
      return "–"
    text = f"{self.value:.{self.digits}f}"
    if self.deviation is not None:
      text += f" ± {self.deviation:.{self.digits}f}"
    if self.interval is not None:
      text += f" [{self.interval[0]:.{self.digits}f}, {self.interval[1]:.{self.digits}f}]"
    return text


Cell = str | Number


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows of cells, those of the columns `names` aligned to the left, of `numbers` to the right; `caption` says what they are."""

  names: Sequence[str]
  numbers: Sequence[str]
  rows: Sequence[Sequence[Cell]]
  caption: str


def render(tables: Sequence[Table], form: str) -> str:
  """Returns tables as text, without a newline at the end.

  Args:
    tables: captions stand below; CSV has none, and one table after the other with an empty line between.
    form: one of `FORMATS`.

  Raises: ValueError on another format.
  """
  if form not in FORMATS:
    raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {form!r}")
  return "\n\n".join({"markdown": _markdown, "csv": _csv, "latex": _latex}[form](table) for table in tables)


def _markdown(table: Table) -> str:
  lines = [[*table.names, *table.numbers], [*["---"] * len(table.names), *["---:"] * len(table.numbers)], *table.rows]
  return "\n".join([*(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines), "", table.caption])


def _csv(table: Table) -> str:
  """Numbers in full, what they vary by in columns of their own, nothing for what is not known."""
  columns = list(zip(*table.rows, strict=True)) or [()] * (len(table.names) + len(table.numbers))
  found: dict[str, list[str]] = {}
  for heading, cells in zip([*table.names, *table.numbers], columns, strict=True):
    found[heading] = ["" if str(cell) == "–" else repr(cell.value) if isinstance(cell, Number) else cell for cell in cells]
    numbers = [cell if isinstance(cell, Number) else Number(math.nan) for cell in cells]
    if any(number.deviation is not None for number in numbers):
      found[f"{heading} ±"] = ["" if n.deviation is None else repr(n.deviation) for n in numbers]
    if any(number.interval is not None for number in numbers):
      for end, name in enumerate(("low", "high")):
        found[f"{heading} {name}"] = ["" if n.interval is None else repr(n.interval[end]) for n in numbers]
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(found)
  writer.writerows(zip(*found.values(), strict=True))
  return text.getvalue().rstrip("\n")


def _latex(table: Table) -> str:
  r"""A `table` environment with rules of the package booktabs."""
  lines = [" & ".join(_escaped(str(cell)) for cell in line) + r" \\" for line in ([*table.names, *table.numbers], *table.rows)]
  return "\n".join(
    [
      "% \\usepackage{booktabs}",
      "\\begin{table}",
      "\\centering",
      f"\\begin{{tabular}}{{{'l' * len(table.names)}{'r' * len(table.numbers)}}}",
      "\\toprule",
      lines[0],
      "\\midrule",
      *lines[1:],
      "\\bottomrule",
      "\\end{tabular}",
      f"\\caption{{{_escaped(table.caption)}}}",
      "\\end{table}",
    ]
  )


def _escaped(text: str) -> str:
  return re.sub("|".join(map(re.escape, _LATEX)), lambda match: _LATEX[match[0]], text)
