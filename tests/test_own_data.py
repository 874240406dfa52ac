"""`configs/own_data.py`: what it makes of its choices and of a folder; `test_contract.py` trains every method with it."""

import dataclasses

import pytest

from configs import common, own_data
from ssl_jax import config, main, methods
from ssl_jax.experiment import open_experiment
from ssl_jax.types import Config, InputError
from tests.helpers import command, own_config, write_msd


@pytest.mark.parametrize("method", methods.names())
@pytest.mark.parametrize("options", ["", ",small", ",2d", ",2d,small"])
def test_every_choice_is_a_valid_configuration(method, options):
  cfg = config.check(config.parse(Config, own_data.get_config(method + options).to_dict()))
  assert cfg.method["name"] == method and (cfg.data.source, cfg.data.split, cfg.data.root) == ("msd", "dev", "")
  assert len(cfg.data.patch) == (2 if "2d" in options or common.learns_from_synthetic(method) else 3)


def test_the_split(own_folder):
  split = open_experiment(own_config("supervised", own_folder)).split
  assert (split.labelled, split.unlabelled, split.evaluation) == (tuple("acde"), ("b", "g"), ("f",))
  split = open_experiment(own_config("cml,2d", own_folder)).split
  assert {name.split("_")[0] for name in split.labelled} == set("acde") and split.evaluation == ("f",)
  assert {name.split("_")[0] for name in split.unlabelled} == set("bg") and len(split.unlabelled) == 2 * 18


@pytest.mark.parametrize("method", methods.names())
def test_every_method_s_networks_take_slices(own_folder, method):
  experiment = open_experiment(own_config(f"{method},2d,small", own_folder))
  shape = (*experiment.batch_spec["labelled"]["image"].shape[:-1], 3)
  assert shape[1:] == (16, 16, 3) and experiment.batch_spec["labelled"]["image"].shape[-1] == 2
  assert experiment.abstract_state.students


def test_errors(own_folder, tmp_path):
  for choice, message in (("crlm", "no method 'crlm'; did you mean 'crln'"), ("crln,smal", "no option 'smal'; did you mean 'small'")):
    with pytest.raises(InputError, match=message):
      own_data.get_config(choice)
  cfg = own_config("supervised", write_msd(tmp_path / "one", {"a": (20, 20, 20)}))
  with pytest.raises(InputError, match="only 1 training case has a label"):
    open_experiment(cfg)
  (tmp_path / "one" / "labelsTr" / "a.nii.gz").rename(tmp_path / "one" / "labelsTr" / "a_seg.nii.gz")
  with pytest.raises(InputError, match="no training case has a label; a label file must be named like its image"):
    open_experiment(cfg)
  with pytest.raises(InputError, match=r"data\.num_labelled=7 is more than the 4 training cases with a label"):
    open_experiment(dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, root=str(own_folder), num_labelled=7)))


def test_the_command_line_says_what_is_wrong_in_one_line():
  wrong = command("--config=configs/own_data.py:crlm")
  assert wrong.returncode == 2
  assert wrong.stderr == "error: configs/own_data.py:crlm: no method 'crlm'; did you mean 'crln'?\n"


def test_a_run_is_named_after_its_choice():
  assert main._name("configs/own_data.py:crln,small") == "own_data_crln_small" and main._name("configs/crln_la.py") == "crln_la"
