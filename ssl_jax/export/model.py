"""Reads an exported model; needs neither its run, its configuration nor the code of its method and network."""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.export  # not loaded by `import jax`
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from ssl_jax import compiler, config, data
from ssl_jax.inference import Predictor, whole_scan
from ssl_jax.segment import Segment, Segmented, segment_case, segment_files
from ssl_jax.types import Array, DataConfig, EvalConfig, InputError, read_json

FORMAT = 2
DESCRIPTION, WEIGHTS, PROGRAM = "model.json", "weights.safetensors", "predict.stablehlo"


@dataclasses.dataclass(frozen=True)
class _Version:
  format: int


@dataclasses.dataclass(frozen=True)
class _Description:
  class_names: tuple[str, ...]
  channels: int
  data: DataConfig
  eval: EvalConfig
  sha256: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Model:
  """An exported model.

  Attributes:
    class_names: background first.
    channels: of an image.
    data: how scans are prepared, and `patch`.
    eval: stride, weights and flips of sliding windows.
    weights: by name.
    program: `(weights, f32[B, *patch, channels]) -> f32[B, *patch, C]` for any B.
    facts: what else the description says: method, step, network, versions.
  """

  class_names: tuple[str, ...]
  channels: int
  data: DataConfig
  eval: EvalConfig
  weights: Mapping[str, np.ndarray]
  program: jax.export.Exported
  facts: Mapping[str, Any]

  @functools.cached_property
  def _predict(self) -> Predictor:
    return jax.jit(self.program.call, compiler_options=compiler.for_convolutions())

  @functools.cached_property
  def _weights(self) -> Mapping[str, Array]:
    return jax.device_put(dict(self.weights))

  @functools.cached_property
  def _segment(self) -> Segment:
    scan = whole_scan(self.program.call, self.data.patch, self.eval)
    return lambda image: scan(self._weights, image)

  def __call__(self, image: np.ndarray | Array) -> Array:
    """Class probabilities of patches that are prepared already.

    Args:
      image: f32[B, *patch, channels].
    Returns: f32[B, *patch, C].
    Raises: InputError when the shape is another.
    """
    expected = (*self.data.patch, self.channels)
    if jnp.shape(image)[1:] != expected:
      raise InputError(f"patches of shape {jnp.shape(image)[1:]} do not fit the model; give it [batch, {', '.join(map(str, expected))}]")
    return self._predict(self._weights, jnp.asarray(image, jnp.float32))

  def segment(self, scan: str | Path) -> Segmented:
    """Label map and class probabilities of one NIfTI image, on its own grid.

    Raises:
      InputError: the image cannot be read or does not fit the model.
    """
    images, problems = data.open_images(Path(scan), self.channels, self.class_names)
    for problem in problems.values():
      raise problem
    return segment_case(images.load(images.names[0]), self._segment, self.data)

  def segment_files(self, inputs: str | Path, output: str | Path, *, probabilities: bool = False, overwrite: bool = False) -> list[Path]:
    """Segments a NIfTI image or a folder of them; see `segment.segment_files`."""
    return segment_files(
      self._segment,
      Path(inputs),
      Path(output),
      self.data,
      channels=self.channels,
      class_names=self.class_names,
      probabilities=probabilities,
      overwrite=overwrite,
    )


def load(folder: str | Path) -> Model:
  """Reads what `python -m ssl_jax.main --mode=export` has written.

  Raises:
    InputError: a file is missing, damaged, or of a format that this version does not know.
  """
  folder = Path(folder)
  for name in (DESCRIPTION, WEIGHTS, PROGRAM):
    if not (folder / name).is_file():
      raise InputError(f"{folder / name} is not there: {folder} is no exported model; make one with --mode=export")
  description, facts = _describe(folder / DESCRIPTION)
  # XLA reads programs in native code, which a damaged one may bring down: only what was exported gets there.
  weights, program = (_unchanged(folder / name, description.sha256) for name in (WEIGHTS, PROGRAM))
  try:
    arrays = safetensors.numpy.load(weights)
  except Exception as error:  # SafetensorError has no narrower base; a dtype that NumPy lacks raises KeyError
    raise InputError(f"{folder / WEIGHTS}: cannot be read as safetensors ({error}); export the run again") from error
  try:
    exported = jax.export.deserialize(bytearray(program))
  except Exception as error:  # a damaged file raises whatever the reader of its format stumbles over
    raise InputError(f"{folder / PROGRAM}: cannot be read as a program of jax.export ({error!r}); export the run again") from error
  return Model(description.class_names, description.channels, description.data, description.eval, arrays, exported, facts)


def _describe(file: Path) -> tuple[_Description, dict[str, Any]]:
  facts = read_json(file)
  try:
    version = config.parse_known(_Version, facts, "model").format
    if version == FORMAT:
      found = config.parse_known(_Description, facts, "model")
      if found.channels < 1 or not 2 <= len(found.class_names) <= 256:
        raise InputError(f"{found.channels} channels and {len(found.class_names)} classes")
      return found, facts
  except InputError as error:
    raise InputError(f"{file}: damaged ({error}); export the run again") from error
  raise InputError(f"{file}: format {version} is not read, only {FORMAT}; export the run again")


def _unchanged(file: Path, sha256: Mapping[str, str]) -> bytes:
  """The content of a file whose checksum is the one that was recorded when it was written."""
  content = file.read_bytes()
  if hashlib.sha256(content).hexdigest() != sha256.get(file.name):
    raise InputError(f"{file}: not the file that was exported, its checksum differs from that in {DESCRIPTION}; export the run again")
  return content
