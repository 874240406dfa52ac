"""Tables against cells worked out by hand."""

import json

import pytest

from ssl_jax import metrics
from ssl_jax.report.__main__ import main
from ssl_jax.report.results import load_results
from ssl_jax.report.tables import markdown_table


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


@pytest.mark.parametrize("change", [{"seed": 1337}, {"step": 10}, {"select": "best"}, {"split": "official"}, {"name": "ablation"}])
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


@pytest.mark.parametrize("content", [None, "{", "[]", '{"method": "crln"}'])
def test_command_line_names_what_is_wrong(tmp_path, capsys, content):
  if content is not None:
    (tmp_path / "results_student.json").write_text(content)
  assert main([str(tmp_path)]) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and str(tmp_path) in error and error.count("\n") == 1


@pytest.mark.parametrize("arguments", [{"results": []}, {"results": [result()], "spread": "x"}, {"results": [result()], "unit": "cm"}])
def test_wrong_arguments_raise(arguments):
  with pytest.raises(ValueError, match=r"no results|must be one of"):
    markdown_table(**arguments)
