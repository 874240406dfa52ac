"""The X-Y slices of volumes as training cases of their own, so that any source of volumes trains a 2D network."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ssl_jax.data.case import Case, Source, read_list
from ssl_jax.data.preprocess import translation
from ssl_jax.types import DataConfig, InputError, nearest

_NAME = "{}_slice_{}"  # case, position along the last axis counted from 1: ACDC as SSL4MIS publishes it [C]


class SliceSource:
  """Another source of volumes whose training cases are slices; test cases stay volumes, and every volume can still be loaded by its name.

  Attributes:
    train_names: of slices, in the list's order.
    test_names: of volumes.
    names: all slices, then all volumes.
    volume_of: slice -> its volume; `make_split` holds out volumes, not slices.
  """

  def __init__(self, source: Source, places: Mapping[str, tuple[str, int]]):
    """Wraps `source`, which should keep its volumes in memory; `places` maps a slice's name to its volume and its position from 1."""
    self._source, self._places = source, places
    self.train_names, self.test_names = tuple(places), source.test_names
    self.names = self.train_names + source.names
    self.volume_of = {name: volume for name, (volume, _) in places.items()}
    self.channels, self.num_classes, self.class_names = source.channels, source.num_classes, source.class_names

  def has_label(self, name: str) -> bool:
    """Whether the case, or the slice's volume, has a label file."""
    return self._source.has_label(self.volume_of.get(name, name))

  def files(self, name: str) -> tuple[Path, ...]:
    """The files that the case, or the slice's volume, is read from."""
    return self._source.files(self.volume_of.get(name, name))

  def load(self, name: str) -> Case:
    """Returns a volume, or a slice: image f32[X, Y, channels], label u8[X, Y], contiguous.

    Raises:
      InputError: the volume is damaged or has not that many slices.
    """
    if name not in self._places:
      return self._source.load(name)
    volume, position = self._places[name]
    case = self._source.load(volume)
    depth = _depth(case)
    if position > depth:
      raise InputError(f"data.slice_list: {name!r} is not there, {volume!r} has {depth} slices, counted from 1; correct the list")
    image = np.ascontiguousarray(case.image[:, :, position - 1])
    label = None if case.label is None else np.ascontiguousarray(case.label[:, :, position - 1])
    return Case(name, image, label, case.spacing[:2], case.affine @ translation((0, 0, position - 1)))


def slice_source(source: Source, cfg: DataConfig) -> SliceSource:
  """Cuts the training volumes of a source into slices along their last axis.

  Args:
    source: of volumes, kept in memory.
    cfg: `slice_list` in `root` names the slices in their order; without that file they are all slices of all training volumes, which
      are then read at once to be counted.

  Raises:
    InputError: a list that was asked for by name is missing or names a slice that is not of a training volume, or cases have no slices.
  """
  file = Path(cfg.root).expanduser() / cfg.slice_list
  listed = read_list(file) if cfg.root else None
  if listed is None:
    if cfg.slice_list != DataConfig.slice_list:
      raise InputError(f"data.slice_list: {file} does not exist; write one <case>_slice_<k> a line, or drop the option")
    places = {
      _NAME.format(volume, position): (volume, position)
      for volume in source.train_names
      for position in range(1, _depth(source.load(volume)) + 1)
    }
    return SliceSource(source, places)
  return SliceSource(source, {name: _place(name, source.train_names, source.test_names, file) for name in listed})


def _place(name: str, train: Sequence[str], test: Sequence[str], file: Path) -> tuple[str, int]:
  match = re.fullmatch(_NAME.format("(.+)", r"(\d+)"), name)
  if not match or int(match[2]) < 1:
    raise InputError(f"{file}: {name!r} is no slice; write <case>_slice_<k> with k counted from 1")
  if match[1] not in train:
    why = "is a test volume, whose slices may not train" if match[1] in test else f"is no training volume; {nearest(match[1], train)}"
    raise InputError(f"{file}: {name!r}: {match[1]!r} {why}")
  return match[1], int(match[2])


def _depth(case: Case) -> int:
  if case.image.ndim != 4:
    raise InputError(f"config.data.slices=True needs volumes, but {case.name!r} has shape {case.image.shape[:-1]}; set it to False")
  return case.image.shape[2]
