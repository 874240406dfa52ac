"""Tables against cells worked out by hand."""

import csv
import dataclasses
import json
import math

import pytest

from ssl_jax import metrics
from ssl_jax.evaluate import write_results
from ssl_jax.report.__main__ import main
from ssl_jax.report.published import PUBLISHED
from ssl_jax.report.render import Number, Table, render
from ssl_jax.report.results import load_results
from ssl_jax.report.tables import markdown_table, result_tables

DATA = {"dataset": "la", "num_labelled": 8, "downsample": 1, "test_list": "test.list"}


def write(folder, **changes):
  folder.mkdir(parents=True, exist_ok=True)
  found = result(**changes)
  write_results({found["predictor"]: found}, folder)
  return str(folder)


def result(method="crln", predictor="student", seed=1337, dice=(0.8, 0.6), **changes):
  cases = [
    {"case": f"c{i}", "dice": d, "jaccard": d / 2, "hd95": 4.0, "asd": 2.0, "hd95_mm": 8.0, "asd_mm": 5.0, "empty": i == 1}
    for i, d in enumerate(dice)
  ]
  summary = metrics.summarise(cases, num_resamples=50, seed=0)
  fixed = {"method": method, "predictor": predictor, "select": "last", "step": 4000, "seed": seed, "split": "dev"}
  return {**fixed, "cases": cases, "summary": summary, **changes}


def rows(table):
  return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")][2:]


def test_one_seed_shows_the_spread_over_cases():
  table = markdown_table([result(), result("supervised", dice=(0.5, 0.5))])
  assert rows(table) == [
    ["crln (student)", "70.00 ± 10.00", "35.00 ± 5.00", "4.00 ± 0.00", "2.00 ± 0.00", "1/2"],
    ["supervised (student)", "50.00 ± 0.00", "25.00 ± 0.00", "4.00 ± 0.00", "2.00 ± 0.00", "1/2"],
  ]
  caption = table.splitlines()[-1]
  assert (
    "over cases" in caption and "voxels" in caption and "last checkpoint" in caption and "step 4000" in caption and "dev split" in caption
  )


def test_seeds_are_one_row_with_the_spread_over_seeds():
  table = markdown_table([result(seed=1), result(seed=2, dice=(0.8, 0.8)), result(predictor="teacher", seed=1)])
  assert rows(table)[0][:2] == ["crln (student)", "75.00 ± 7.07"]  # 70 and 80, sample standard deviation
  assert rows(table)[0][-1] == "2/4"
  assert rows(table)[1][:2] == ["crln (teacher)", "70.00"]  # one seed has no spread over seeds
  assert "seed 1, 2" in table


@pytest.mark.parametrize(
  "change",
  [
    {"seed": 1337},
    {"step": 10},
    {"select": "best"},
    {"empty_policy": "worst"},
    {"data": DATA},
    {"split": "official"},
    {"name": "ablation"},
  ],
)
def test_runs_that_differ_in_more_than_the_seed_stay_apart(change):
  assert len(rows(markdown_table([result(), result(**{"seed": 1, **change})]))) == 2


def test_units_and_bootstrap():
  found = result()
  row = rows(markdown_table([found], spread="bootstrap", unit="mm"))[0]
  assert row[3:5] == ["8.00 ± 0.00", "5.00 ± 0.00"]
  assert row[1] == f"70.00 ± {100 * found['summary']['dice']['bootstrap_std']:.2f}"


def test_command_line_groups_folders_by_seed(tmp_path, capsys):
  for seed, dice in ((1, (0.8, 0.6)), (2, (0.8, 0.8))):
    folder = tmp_path / f"la_small_seed{seed}"
    folder.mkdir()
    (folder / "results_student.json").write_text(json.dumps(result(seed=seed, dice=dice)))
  assert main([str(tmp_path / "la_small_seed1"), str(tmp_path / "la_small_seed2")]) == 0
  assert rows(capsys.readouterr().out)[0][:2] == ["la_small (student)", "75.00 ± 7.07"]
  assert [r["seed"] for r in load_results([tmp_path])] == [1, 2]


CASE = {"case": "a", "dice": 0.5, "jaccard": 0.4, "hd95": 1.0, "asd": 1.0, "empty": False}


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (None, "no results_*.json"),
    ("{", "not a result"),
    ("[]", "a JSON object is expected"),
    ('{"method": "crln"}', "lacks 'predictor'"),
    (json.dumps({**result(), "cases": []}), "no cases"),
    (json.dumps({**result(), "cases": [CASE, CASE]}), "occurs twice"),
    (json.dumps({**result(), "cases": [{**CASE, "asd": "x"}]}), "not a result"),
    (json.dumps({**result(), "cases": [{"case": "a"}]}), "lacks 'dice'"),
    (json.dumps({**result(), "summary": metrics.summarise([{**CASE, **dict.fromkeys(metrics.METRICS, math.nan)}])}), "every number is NaN"),
  ],
)
@pytest.mark.parametrize("subcommand", [[], ["compare"]])
def test_command_line_names_what_is_wrong(tmp_path, capsys, content, message, subcommand):
  if content is not None:
    (tmp_path / "results_student.json").write_text(content)
  output = tmp_path / "table.md"
  assert main([*subcommand, *[str(tmp_path)] * (1 + len(subcommand)), f"--output={output}"]) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and str(tmp_path) in error and message in error and error.count("\n") == 1
  assert not output.exists()


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], "RUN_DIR"),
    (["RUN", "--spread=x"], "--spread"),
    (["RUN", "--nonsense"], "--nonsense"),
    (["RUN", "--output=missing/table.md"], "missing/table.md: cannot be written"),
    (["RUN", "--output=."], "cannot be written"),
    (["compare", "RUN"], "RUN_B"),
    (["compare", "RUN", "RUN", "--predictor=teacher"], "no predictor 'teacher'"),
    (["compare", "RUN,RUN2", "RUN"], "same seed"),
    (["compare", "RUN", "OTHERS"], "not one run under several seeds"),
    (["compare", "RUN", "FEWER"], "has 1 cases that"),
    (["compare", "RUN", "WORST"], "differ in empty_policy"),
    (["compare", "RUN", "COARSE"], "--unit=mm"),
    (["overlay", "RUN"], "config.json"),
  ],
)
def test_wrong_commands_get_one_line(tmp_path, capsys, monkeypatch, arguments, message):
  monkeypatch.chdir(tmp_path)
  write(tmp_path / "RUN", data=DATA, empty_policy="published")
  write(tmp_path / "RUN2", name="RUN", data=DATA, empty_policy="published")
  write(tmp_path / "OTHERS" / "a", data=DATA)
  write(tmp_path / "OTHERS" / "b", method="cml", data=DATA, seed=2)
  write(tmp_path / "FEWER", dice=(0.5,), data=DATA)
  write(tmp_path / "WORST", data=DATA, empty_policy="worst")
  write(tmp_path / "COARSE", data={**DATA, "downsample": 2})
  before = sorted(tmp_path.rglob("*"))
  assert main(arguments) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and message in error and error.count("\n") == 1
  assert sorted(tmp_path.rglob("*")) == before


def test_published_numbers_stand_below_ours(tmp_path, capsys):
  run = write(tmp_path / "mine", data=DATA, split="official", empty_policy="published")
  teacher = result(predictor="teacher", data=DATA, split="official", empty_policy="published")
  write_results({"teacher": teacher}, tmp_path / "mine")
  assert main([run]) == 0
  table = capsys.readouterr().out
  paper = ["crln (published: CRLN; checkpoint: last)", "91.74", "84.79", "4.60", "1.46", ""]
  assert [row[0] for row in rows(table)] == ["mine (student)", paper[0], "mine (teacher)"] and rows(table)[1] == paper
  assert "8 labelled" in table and "not comparable" not in table and "(`published`)" in table and "distance 0" in table
  main([run, "--published=none"])
  assert "published:" not in capsys.readouterr().out
  main([run, "--published=all", "--unit=mm"])
  everything = rows(capsys.readouterr().out)
  assert {"supervised", "caml", "cml", "ua_mt"} <= {row[0].split(" ")[0] for row in everything}
  assert next(row for row in everything if row[0].startswith("cml"))[1:5] == ["90.36", "–", "–", "–"]


def test_a_table_says_what_keeps_ours_from_the_published():
  ours = result(data={**DATA, "downsample": 2}, select="published", checkpoint="best")
  caption = result_tables([ours])[0].caption
  assert "not comparable" in caption and "dev split" in caption and "1/2 resolution" in caption
  assert "published: best, picked on the evaluated cases checkpoint" in caption
  assert "val.list" in result_tables([result(split="official", data={**DATA, "test_list": "val.list"})])[0].caption


def test_facts_that_differ_are_columns():
  table = result_tables([result(select="best", checkpoint="best"), result("cml", data=DATA)], published="none")[0]
  assert table.names == ["Method (predictor)", "Labelled", "Checkpoint", "Resolution"]
  assert [row[2] for row in table.rows] == ["best, picked on the evaluated cases", "last"]


def test_old_results_learn_about_their_data_from_the_configuration_beside(tmp_path):
  from ssl_jax import config
  from tests.helpers import tiny_config

  write(tmp_path)
  assert "data" not in load_results([tmp_path])[0]
  cfg = tiny_config("supervised")
  (tmp_path / "config.json").write_text(config.to_json(dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, source="la_h5"))))
  assert load_results([tmp_path])[0]["data"] == {**DATA, "num_labelled": 2}


def test_interval_spread_and_nan_as_dash(tmp_path, capsys):
  found = result(dice=(0.8, 0.6, 0.4))
  low, high = metrics.interval([0.8, 0.6, 0.4])
  cell = f"60.00 [{100 * low:.2f}, {100 * high:.2f}]"
  assert rows(markdown_table([found], spread="interval"))[0][1] == cell
  cases = [{**case, "hd95": math.nan} for case in found["cases"]]
  write_results({"student": {**found, "cases": cases, "summary": metrics.summarise(cases)}}, tmp_path)
  assert "NaN" not in (tmp_path / "results_student.json").read_text()
  assert main([str(tmp_path), "--spread=interval"]) == 0
  assert rows(capsys.readouterr().out)[0][1:4] == [cell, rows(markdown_table([found], spread="interval"))[0][2], "–"]


def test_csv_has_numbers_and_facts_in_full(tmp_path, capsys):
  folder = write(tmp_path / "run", data=DATA, empty_policy="worst")
  output = tmp_path / "table.csv"
  assert main([folder, "--format=csv", f"--output={output}"]) == 0 and capsys.readouterr().out == ""
  ours, paper = csv.DictReader(output.read_text().splitlines())
  assert float(ours["Dice ↑ [%]"]) == pytest.approx(70) and float(ours["Dice ↑ [%] ±"]) == pytest.approx(10)
  assert [ours[key] for key in ("Checkpoint", "Step", "Split", "Empty policy", "Seeds", "Empty")] == [
    "last",
    "4000",
    "dev",
    "worst",
    "1337",
    "1/2",
  ]
  assert (paper["Dice ↑ [%]"], paper["Dice ↑ [%] ±"], paper["Checkpoint"]) == ("91.74", "", "last")
  assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["table.csv"]


def test_latex_escapes_what_it_must():
  table = Table(["Run_1"], ["Dice ↑ [%]"], [["a & b", Number(70.126, 1)], ["c", Number(math.nan)]], "± {x} $y$ \\ ~")
  text = render([table], "latex")
  assert r"Run\_1 & Dice $\uparrow$ [\%] \\" in text and r"a \& b & 70.13 $\pm$ 1.00 \\" in text and r"c & -- \\" in text
  assert r"\caption{$\pm$ \{x\} \$y\$ \textbackslash{} \textasciitilde{}}" in text and text.count("{") == text.count("}")
  assert render([table], "markdown").splitlines()[2] == "| a & b | 70.13 ± 1.00 |"
  with pytest.raises(ValueError, match="markdown, csv, latex"):
    render([table], "html")


def test_comparison_by_hand(tmp_path, capsys):
  a = write(tmp_path / "a_seed1", dice=(0.9, 0.8, 0.7), seed=1)
  a2 = write(tmp_path / "a_seed2", dice=(0.7, 0.8, 0.9), seed=2)
  b = write(tmp_path / "b", method="supervised", dice=(0.6, 0.7, 0.5))
  reordered = json.loads((tmp_path / "b" / "results_student.json").read_text())
  reordered["cases"].reverse()
  (tmp_path / "b" / "results_student.json").write_text(json.dumps(reordered))
  assert main(["compare", a, b]) == 0
  out = capsys.readouterr().out
  dice, _, hd95, _ = rows(out)
  # Differences 30, 10 and 20 points: 2 of 8 sign patterns are as extreme.
  assert dice[:3] == ["Dice ↑ [%]", "80.00", "60.00"] and dice[3].startswith("20.00 [") and dice[4:] == ["0.2500", "3", "3", "0"]
  assert hd95 == ["95HD ↓", "4.00", "4.00", "0.00 [0.00, 0.00]", "1.0000", "3", "0", "0"]
  assert "A: a (student), last checkpoint, step 4000, seed 1, 1 empty of 3, empty policy not recorded." in out
  assert main(["compare", f"{a},{a2}", b, "--unit=mm"]) == 0  # mean of A's seeds: 80 on every case
  out = capsys.readouterr().out
  assert rows(out)[0][1:3] == ["80.00", "60.00"] and rows(out)[2][1] == "8.00" and "seeds averaged" in out and "distances in mm" in out
  assert main(["compare", b, a]) == 0
  assert rows(capsys.readouterr().out)[0][-2:] == ["0", "3"]


def test_comparison_of_classes(tmp_path, capsys):
  for name, shift in (("a", 0.1), ("b", 0.0)):
    found = result()
    cases = [
      {**case, **{f"{c}/{k}": case[k] + (shift if c == "LV" else 0) for c in ("LV", "RV") for k in case if k != "case"}}
      for case in found["cases"]
    ]
    classes = {c: metrics.summarise(metrics.of_class(cases, c)) for c in ("LV", "RV")}
    (tmp_path / name).mkdir()
    write_results({"student": {**found, "cases": cases, "classes": classes}}, tmp_path / name)
  assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
  found = {(row[0], row[1]): row[4] for row in rows(capsys.readouterr().out)}
  assert len(found) == 12
  assert (
    found["LV", "Dice ↑ [%]"] == "10.00 [10.00, 10.00]" and found["RV", "Dice ↑ [%]"] == found["mean", "Dice ↑ [%]"] == "0.00 [0.00, 0.00]"
  )
  assert result_tables(load_results([tmp_path / "a"]), spread="interval")[1].rows[0][1] == "LV"


def test_published_numbers_are_plausible_and_of_known_data():
  assert len({(p.method, p.dataset, p.num_labelled, p.where) for p in PUBLISHED}) == len(PUBLISHED)
  for p in PUBLISHED:
    assert set(p.values) <= set(metrics.METRICS) and "dice" in p.values
    dice = p.values["dice"]
    assert 1 < dice < 100 and 0 < p.values.get("asd", 0.1) < p.values.get("hd95", 100)
    # Of one case Jaccard is d / (2 - d); of a mean of cases it lies a little above, since d / (2 - d) is convex.
    assert p.values.get("jaccard", 100) > 100 * dice / (200 - dice) - 0.5
    if p.classes:
      assert sum(p.classes.values()) / len(p.classes) == pytest.approx(dice, abs=0.1)


@pytest.mark.parametrize(
  "arguments",
  [
    {"results": []},
    {"results": [result()], "spread": "x"},
    {"results": [result()], "unit": "cm"},
    {"results": [result()], "published": "x"},
  ],
)
def test_wrong_arguments_raise(arguments):
  with pytest.raises(ValueError, match=r"no results|must be one of"):
    result_tables(**arguments)
