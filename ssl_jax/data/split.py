"""Which cases are labelled, unlabelled, and held out."""

import dataclasses

from ssl_jax.data.case import Source, unknown_name
from ssl_jax.types import DataConfig, InputError

_ALL = _SHARE = -1


@dataclasses.dataclass(frozen=True)
class Split:
  """Case names. A case's `index` in a batch is its position in `labelled + unlabelled`."""

  labelled: tuple[str, ...]
  unlabelled: tuple[str, ...]
  evaluation: tuple[str, ...]
  name: str


def make_split(cfg: DataConfig, source: Source) -> Split:
  """Divides the lists of a source as the published protocols do: the first `num_labelled` cases are labelled, with -1 all.

  `dev`: the last `num_holdout` cases of the training list that have a label, with -1 a fifth of them but at least one, are held out for
  evaluation; the test list is not touched. Where training cases are slices, their volumes are counted and held out whole. No patient (a
  volume's name up to `_frame`) is on both sides: further volumes of a patient that is held out are left out.
  `official`: all of the training list trains, the test list evaluates.
  Cases without a label file can only be unlabelled: they are passed over when labelled and evaluation cases are picked.
  With all labels given, `unlabelled` is empty; the unlabelled stream then draws the labelled cases' images again.

  Raises:
    InputError: unknown split, a number that does not fit the list, or an official evaluation case without a label.
  """
  labels = {name for name in source.names if source.has_label(name)}
  train = list(source.train_names)
  volume_of = getattr(source, "volume_of", {})  # of sources whose training cases are slices
  evaluation: tuple[str, ...]
  if cfg.split == "dev":
    with_label = list(dict.fromkeys(volume_of.get(name, name) for name in train if name in labels))
    evaluation = tuple(with_label[len(with_label) - _num_holdout(cfg, len(with_label)) :])
    held_out = {_patient(name) for name in evaluation}
    train = [name for name in train if _patient(volume_of.get(name, name)) not in held_out]
  elif cfg.split == "official":
    evaluation = tuple(source.test_names)
    if not evaluation:
      raise InputError(
        f"data.split='official' needs test cases: {cfg.test_list} in {cfg.root or 'the data folder'}; or use data.split='dev'"
      )
    bare = [name for name in evaluation if name not in labels]
    if bare:
      raise InputError(f"{cfg.test_list}: test case {bare[0]!r} has no label file, so it cannot be evaluated")
  else:
    raise unknown_name("data.split", cfg.split, ("dev", "official"))
  available = [name for name in train if name in labels]
  num_labelled = len(available) if cfg.num_labelled == _ALL else cfg.num_labelled
  if num_labelled < 1 and (available or cfg.num_labelled != _ALL):
    raise InputError(f"data.num_labelled={cfg.num_labelled} must be at least 1, or -1 for all")
  if not 0 < num_labelled <= len(available):
    raise InputError(
      f"data.num_labelled={cfg.num_labelled} is more than the {len(available)} training cases with a label "
      f"(split {cfg.split!r}, {len(evaluation)} held out)"
    )
  labelled = tuple(available[:num_labelled])
  unlabelled = tuple(name for name in train if name not in set(labelled))
  return Split(labelled, unlabelled, evaluation, cfg.split)


def _num_holdout(cfg: DataConfig, with_label: int) -> int:
  if not with_label:
    raise InputError(f"{cfg.root}: no training case has a label; a label file must be named like its image, without _0000")
  if cfg.num_holdout == _SHARE:
    if with_label == 1:
      raise InputError(
        f"{cfg.root}: only 1 training case has a label, but one must train and another be held out for evaluation; label a second case"
      )
    return max(with_label // 5, 1)
  if not 0 <= cfg.num_holdout < with_label:
    raise InputError(f"data.num_holdout={cfg.num_holdout} must be at least 0 and below the {with_label} cases that have a label, or -1")
  return cfg.num_holdout


def _patient(volume: str) -> str:
  return volume.split("_frame")[0]  # ACDC: patient001_frame01, patient001_frame12
