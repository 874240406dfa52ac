"""Figures of what training wrote to `metrics.jsonl`: losses, validation, pseudo-labels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ssl_jax.report import canvas
from ssl_jax.types import InputError, parse_json, read_text, shown

History = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Metric -> the steps at which it was written, ascending, and its values."""
_COLUMNS = 3
_QUALITY = {"dice_all": "Dice of all voxels [%]", "dice_reliable": "Dice of reliable voxels [%]", "share_reliable": "Reliable voxels [%]"}


def read_history(file: Path) -> History:
  """Reads `metrics.jsonl`; of a step that a resumed run repeated, the last line counts.

  Raises:
    InputError: a line is no JSON object with a step; a last line that was cut off is passed over.
  """
  found: dict[str, dict[int, float]] = {}
  lines = read_text(file).splitlines()
  for number, line in enumerate(lines, start=1):
    try:
      values = parse_json(line, "it")
      step = values.pop("step")
      if type(step) is not int or abs(step) >= 2**31:
        raise ValueError(f"step {shown(step)}")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
      if number == len(lines):
        break
      raise InputError(f"{file}: line {number} is no line of metrics ({error!r}); delete it") from error
    for name, value in values.items():
      if isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63):
        found.setdefault(name, {})[step] = float(value)
  return {name: (np.array(sorted(at)), np.array([at[step] for step in sorted(at)])) for name, at in found.items()}


def training(histories: Mapping[str, History]) -> Figure:
  """Loss, its terms and the validation Dice of every predictor over steps; one panel each, one colour a run.

  Args:
    histories: name of the run -> `read_history`.

  Raises:
    InputError: nothing was logged yet.
  """
  names = list(dict.fromkeys(name for history in histories.values() for name in history))
  losses = sorted((name for name in names if name == "loss" or name.startswith("loss_")), key=lambda name: name != "loss")
  if not losses:
    raise InputError(f"{', '.join(histories)}: metrics.jsonl has no losses yet; train longer, or lower config.train.log_every_steps")
  panels = [(name, name.replace("loss_", "Loss: ") if name != "loss" else "Loss", 1.0) for name in losses]
  dices = [name for name in names if name.endswith("/dice")]
  panels += [(name, f"Validation Dice, {name.removesuffix('/dice')} [%]", 100.0) for name in dices]
  figure, axes = _panels(len(panels))
  for panel, (name, title, scale) in zip(axes, panels, strict=False):
    for index, history in enumerate(histories.values()):
      if name in history:
        steps, values = history[name]
        panel.plot(steps, scale * values, linewidth=1.2, marker="." if name in dices else None, **canvas.line_style(index))
    _finish(panel, title)
  _name_runs(figure, list(histories))
  return figure


def pseudo_labels(histories: Mapping[str, History]) -> Figure:
  """Quality of pseudo-labels at every stage against hidden labels, and µ when the method learns one, over steps.

  Args:
    histories: name of the run -> `read_history`; those without pseudo-labels are passed over.

  Raises:
    InputError: no run has any.

  Source: CRLN, Figs. 1 and 11.
  """
  runs = {title: history for title, history in histories.items() if _stages(history)}
  if not runs:
    raise InputError(
      f"{', '.join(histories)}: metrics.jsonl has no quality of pseudo-labels; train a method that has pseudo-labels on data whose "
      "unlabelled scans have label files, with config.train.eval_every_steps > 0"
    )
  stages = list(dict.fromkeys(stage for history in runs.values() for stage in _stages(history)))
  panels = [*_QUALITY, *(["mu"] if any("mu" in history for history in runs.values()) else [])]
  figure, axes = _panels(len(panels), columns=len(panels))
  for panel, name in zip(axes, panels, strict=True):
    for index, history in enumerate(runs.values()):
      if name == "mu" and "mu" in history:
        panel.plot(*history["mu"], linewidth=1.2, color=canvas.LINES[-1] if len(runs) == 1 else canvas.LINES[index % len(canvas.LINES)])
      for position, stage in enumerate(stages):
        steps, values = history.get(f"pseudo_{stage}/{name}", ((), ()))
        if len(steps):
          panel.plot(steps, 100 * np.asarray(values), linewidth=1.2, marker=".", **_stage_style(index, position, stages, len(runs)))
    _finish(panel, _QUALITY.get(name, "µ"))
  handles = [Line2D([], [], label=stage, marker=".", **_stage_style(0, at, stages, 1)) for at, stage in enumerate(stages)]
  if len(runs) > 1:
    handles = [Line2D([], [], color="grey", label=stage, linestyle=_dash(at, stages)) for at, stage in enumerate(stages)]
    handles += [Line2D([], [], color=canvas.LINES[index % len(canvas.LINES)], label=title) for index, title in enumerate(runs)]
  canvas.legend_below(figure, handles)
  if len(runs) == 1:
    figure.suptitle(f"{next(iter(runs))}: pseudo-labels against hidden labels", fontsize=10)
  return figure


def _stages(history: History) -> list[str]:
  found = {name.split("/")[0].removeprefix("pseudo_") for name in history if name.startswith("pseudo_") and "/" in name}
  return sorted(found, key=lambda stage: (stage == "after", stage != "before", stage))  # the file has them in alphabetical order


def _dash(position: int, stages: Sequence[str]) -> Any:
  return canvas.DASHES[len(stages) - 1 - position]  # the last stage, what training uses, is solid


def _stage_style(run: int, position: int, stages: Sequence[str], num_runs: int) -> dict[str, Any]:
  colour = canvas.LINES[(position if num_runs == 1 else run) % len(canvas.LINES)]
  return {"color": colour, "linestyle": _dash(position, stages)}


def _panels(count: int, columns: int = _COLUMNS) -> tuple[Figure, list[Any]]:
  columns = min(columns, count)
  rows = -(-count // columns)
  figure = Figure(figsize=(2.9 * columns + 0.2, 2.1 * rows + 0.6), layout="constrained")
  axes = figure.subplots(rows, columns, squeeze=False).ravel()
  for unused in axes[count:]:
    unused.set_axis_off()
  return figure, list(axes[:count])


def _finish(panel: Any, title: str) -> None:
  panel.set_title(title, fontsize=9)
  panel.set_xlabel("Step", fontsize=8)
  panel.tick_params(labelsize=8)
  panel.grid(alpha=0.3)
  panel.spines[["top", "right"]].set_visible(False)


def _name_runs(figure: Figure, names: Sequence[str]) -> None:
  if len(names) == 1:
    figure.suptitle(names[0], fontsize=10)
  else:
    canvas.legend_below(figure, [Line2D([], [], label=name, **canvas.line_style(index)) for index, name in enumerate(names)])
