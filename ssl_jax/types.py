"""Types that every room shares: the batch, the training state, the method contract, the configuration, the error."""

import dataclasses
import difflib
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePath
from tokenize import TokenError
from typing import Any, Literal

import flax.struct
import jax

Array = jax.Array
PyTree = Any
Batch = Mapping[str, Mapping[str, Array]]
"""`{"labelled": {"image", "label", "index"}, "unlabelled": {"image", "index"}}`, for some methods also `"synthetic"`, like `"labelled"`.

`image: f32[B, *spatial, channels]`, `label: i32[B, *spatial]` with values 0..C-1, `index: i32[B]` is the case's position in the training
  list.
"""
Metrics = Mapping[str, Array]


_DEEPEST_JSON = 64


# What NumPy and h5py raise over damaged files.
UNREADABLE = (
  OSError,
  EOFError,
  KeyError,
  MemoryError,
  RuntimeError,
  TypeError,
  ValueError,
  TokenError,
  zipfile.BadZipFile,
  zlib.error,
)


class InputError(ValueError):
  """Something the user gave is wrong: a file, a folder, a config key. The message names it and says what to do."""


def nearest(name: str, known: Iterable[str]) -> str:
  """Returns `name`'s closest neighbour among `known` as a hint, or the list of all that exist."""
  known = sorted(known)
  close = difflib.get_close_matches(name[:200], known, n=1)
  return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


def shown(value: object, most: int = 200) -> str:
  """Returns a value as a message quotes it: its `repr`, cut to `most` characters."""
  text = repr(value)
  return text if len(text) <= most else f"{text[:most]}…"


def read_text(file: Path) -> str:
  """Returns the content of a text file, without the byte order mark that some editors put first.

  Raises:
    InputError: it is not there, no regular file, or not UTF-8.
  """
  try:
    if not file.is_file():
      raise InputError(f"{file}: {'is no regular file' if file.exists() else 'there is no such file'}")
    return file.read_text(encoding="utf-8-sig")
  except UnicodeDecodeError as error:
    raise InputError(f"{file}: no UTF-8 text ({error.reason}, byte {error.start}); save it as UTF-8") from error
  except OSError as error:
    raise InputError(f"{file}: cannot be read ({error.strerror})") from error


def read_json(file: Path) -> Any:
  """Returns what a JSON file holds; see `parse_json`.

  Raises:
    InputError: see `read_text` and `parse_json`.
  """
  return parse_json(read_text(file), str(file))


def parse_json(text: str, where: str) -> Any:
  """Returns what JSON says, refusing what readers of it disagree on or fail at: repeated keys, values nested beyond 64 levels.

  Raises:
    InputError: naming `where`.
  """
  try:
    found = json.loads(text, object_pairs_hook=_without_repetition)
  except RecursionError as error:
    raise InputError(f"{where} is not valid JSON: nested too deeply") from error
  except ValueError as error:
    raise InputError(f"{where} is not valid JSON: {error}") from error
  level = [found]
  for _ in range(_DEEPEST_JSON):
    level = [item for node in level if isinstance(node, dict | list) for item in (node.values() if isinstance(node, dict) else node)]
  if level:
    raise InputError(f"{where} is not valid JSON: nested too deeply")
  return found


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    keys = [key for key, _ in pairs]
    raise ValueError(f"key {shown(next(key for key in keys if keys.count(key) > 1))} occurs twice in one object")
  return found


def write_whole(file: Path, text: str) -> None:
  """Writes a text file so that it is never seen half written: under another name first.

  Raises:
    InputError: the place cannot be written.
  """
  if file.is_dir():
    raise InputError(f"{file}: cannot be written (a folder of this name exists); name a file")
  partial = file.with_name(f".{file.name}.partial")
  try:
    partial.write_text(text, encoding="utf-8", newline="")
    partial.replace(file)
  except OSError as error:
    partial.unlink(missing_ok=True)
    raise InputError(f"{file}: cannot be written ({error.strerror}); name a file in a folder that exists") from error


@flax.struct.dataclass
class TrainState:
  """Everything a training step reads and writes; one pytree, one checkpoint."""

  step: Array  # int32 []
  students: dict[str, Any]  # {"a": ..., "b": ...}: trainable parameters
  prototypes: PyTree  # trainable class prototypes; () when a method has none
  stats: dict[str, Any]  # BatchNorm running averages, same keys as students
  opt: PyTree  # optimizer state
  teacher: dict[str, Any]  # EMA of students, prototypes, and the teacher's own stats; {} when none
  memory: PyTree  # memory bank, fixed shapes; () when none


@dataclasses.dataclass(frozen=True)
class Method:
  """What `methods/<name>.py:build(options, networks, optimizer, task)` returns. All functions are pure and jittable.

  Attributes:
    init: `(key, batch) -> TrainState`; `batch` gives shapes only, it may hold `jax.ShapeDtypeStruct`s under `eval_shape`.
    steps: phase name -> `(state, batch, key) -> (state, metrics)`.
    predict: `(state, image f32[B, *spatial, channels]) -> f32[B, *spatial, C]` probabilities; what the paper evaluates.
    predict_also: further named predictors that a results table shows beside it, such as the teacher.
    pseudo_labels: `(state, image) -> {stage: (probabilities, reliable bool[B, *spatial])}`, whose quality the evaluation hook measures
      against hidden labels;
      `None` when the method has none.
    published_select: which checkpoint the numbers published for the method come from, `last` or `best` on the evaluated cases.
  """

  init: Callable[..., TrainState]
  steps: Mapping[str, Callable[..., tuple[TrainState, Metrics]]]
  predict: Callable[[TrainState, Array], Array]
  predict_also: Mapping[str, Callable[[TrainState, Array], Array]] = dataclasses.field(default_factory=dict)
  pseudo_labels: Callable[[TrainState, Array], Mapping[str, tuple[Array, Array]]] | None = None
  published_select: Literal["last", "best"] = "last"


@dataclasses.dataclass(frozen=True)
class PhantomConfig:
  """The synthetic data set: deterministic from `seed`."""

  shape: tuple[int, ...] = (48, 48, 32)
  num_train: int = 24
  num_test: int = 8
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class SynthesisConfig:
  """Labelled images made from one exemplar slice; ranges are of uniform draws, made anew for every image."""

  per_background: int = 0  # images for each unlabelled slice; 0: none
  exemplar: str = "auto"  # name of a slice | auto: by `exemplar_rank` among the slices that hold every class
  exemplar_rank: int = 0  # 0: the slice whose smallest class is largest, 1: the next, ...
  scale: tuple[float, float] = (0.7, 1.3)
  rotation_deg: float = 30.0  # ±
  shift: float = 0.2  # ±, of the side
  gain: tuple[float, float] = (0.8, 1.2)
  offset: float = 0.1  # ±, in units of the image's intensity
  noise: float = 0.02  # standard deviation, in units of the image's intensity


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Which scans, how they are split, how crops are drawn from them."""

  # msd | la_h5 | la_nrrd | pancreas_h5 | pancreas_nifti | brats_h5 | brats_nifti | acdc_h5 | acdc_nifti | synapse_npz | synapse_nifti |
  # phantom
  source: str = "msd"
  root: str = ""
  split: str = "dev"  # dev: hold out the last `num_holdout` of the training list | official: train.list against test.list
  num_labelled: int = 8  # -1: all that have a label and are not held out
  num_holdout: int = 16  # -1: a fifth of those that have a label, at least one
  train_list: str = "train.list"
  test_list: str = "test.list"
  patch: tuple[int, ...] = (112, 112, 80)  # voxels; two sides train a 2D network
  canonical: bool = False  # turn volumes to right, anterior, superior; otherwise voxels keep their order on disk
  spacing: tuple[float, ...] = ()  # mm along each axis of `patch`, to which scans are resampled; (): as they are
  downsample: int = 1  # averages blocks of this many voxels along each axis of `patch`
  normalise: str = "none"  # none | zscore (per scan, over the whole scan)
  slices: bool = False  # train on the X-Y slices of a source of volumes; evaluation stays on volumes
  slice_list: str = "train_slices.list"  # in root, one `<case>_slice_<k>` a line, k from 1; without it all slices in the volumes' order
  view: Literal["crop", "resize", "none"] = "crop"  # weak view; resize, none: whole slices brought to `patch`, turned and flipped or not
  intensity_jitter: float = 0.0  # weak view: random gain 1±x and offset ±x per crop; 0 is the published recipe
  phantom: PhantomConfig = PhantomConfig()
  synthesis: SynthesisConfig = SynthesisConfig()

  @property
  def dataset(self) -> str:
    """Short name of the data set: what a benchmark's `source` begins with, or the last folder of `root`, in lower case."""
    return PurePath(self.root).name.lower() if self.source == "msd" else self.source.split("_")[0]


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
  """The backbone."""

  name: str = "vnet"  # vnet | unet2d | unet3d
  width: int = 16
  upsample: Literal["transpose", "trilinear", "nearest"] = "transpose"  # trilinear: linear in any number of axes; unet3d is always so
  dropout: float = 0.5  # unet2d: of encoder level 5; the levels have 0.1, 0.2, 0.4, 0.6, 1 of it
  dtype: Literal["float32", "bfloat16"] = "float32"  # compute precision; parameters, statistics and losses are f32
  bn_group: int = 0  # images that share BatchNorm statistics, as on one of several PyTorch devices; 0: the whole batch, on any number
  remat: bool = False  # keep convolutions alone for the gradient, compute the rest again: a third less memory, a tenth more time (CAML)


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  """SGD or Adam as PyTorch has them, and the learning rate over the run."""

  name: Literal["sgd", "adam"] = "sgd"
  lr: float = 0.01
  momentum: float = 0.9  # sgd only
  weight_decay: float = 1e-4  # added to the gradient
  accumulate: int = 1  # steps whose mean gradient makes one update; schedules count updates, everything else counts steps
  schedule: Literal["constant", "poly", "step"] = "constant"
  poly_power: float = 0.9
  step_from: int = 0  # step: lr is multiplied by `step_factor` every `step_every` steps after this one
  step_every: int = 2500
  step_factor: float = 0.1


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """The loop."""

  phases: tuple[tuple[str, int], ...] = (("train", 6000),)
  batch_labelled: int = 2
  batch_unlabelled: int = 2
  batch_synthetic: int = 0  # images that the method makes before training
  log_every_steps: int = 50
  checkpoint_every_steps: int = 500
  keep_checkpoints: int = 2
  eval_every_steps: int = 0  # 0: only at the end
  shard_state: bool = False  # divide the optimizer's state and the teacher among the devices (ZeRO)
  hang_s: float = 1800.0  # a loop that stands still this long says so, and with several processes ends; 0: never


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """Evaluation on whole scans, by sliding windows or, with a 2D network, slice by slice."""

  stride: tuple[int, ...] = (18, 18, 4)  # voxels; without meaning for a 2D network
  window_batch: int = 1  # windows, or slices, per call of the network
  window_weights: Literal["uniform", "gaussian"] = "uniform"  # of a window's voxels in the average; gaussian: the centre counts most
  flips: tuple[int, ...] = ()  # spatial axes; predictions are averaged over all flips along them
  whole_volume: bool = False  # one pass over the padded scan instead of windows
  max_cases: int = 0  # 0: all
  empty: Literal["published", "worst", "exclude"] = "published"  # distance of an empty prediction: 0 | the volume's diagonal | left out
  select: Literal["last", "best", "published"] = "last"  # checkpoint; best: by Dice on the evaluated cases; published: as the method's code
  num_resamples: int = 100  # bootstrap


@dataclasses.dataclass(frozen=True)
class Task:
  """What a method may know of a run beside its own options.

  Attributes:
    num_labelled: number of labelled training cases; `index` of a labelled crop lies below it.
    num_steps: length of all phases together.
  """

  num_labelled: int
  num_steps: int


@dataclasses.dataclass(frozen=True)
class Config:
  """One run. `method` and its options are checked by the method's own `Options`.

  `compare` maps names to further `method` groups: when it is not empty, each is trained in turn at equal settings and one table shows
    them all.
  """

  seed: int
  data: DataConfig
  network: NetworkConfig
  optim: OptimConfig
  train: TrainConfig
  eval: EvalConfig
  method: Mapping[str, Any]  # {"name": ..., **options of that method}
  compare: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
