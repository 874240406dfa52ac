"""V-Net weights published for PyTorch, as this library's parameters.

`python -m ssl_jax.interop.torch_weights IN.(pth|pt|safetensors|npz) OUT.npz` converts a file; `load_weights(OUT.npz)` reads it back.
No file is ever unpickled into arbitrary objects.
"""

import argparse
import importlib
import pickle
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssl_jax.types import InputError, PyTree, nearest

_ENCODER = {"one": 1, "two": 2, "three": 3, "four": 3, "five": 3}  # PyTorch's name of a level and its number of convolutions
_DECODER = {"six": 3, "seven": 3, "eight": 2, "nine": 1}
_WRAPPERS = ("net", "state_dict", "model")  # what training scripts call the weights among other things in a .pth
_NORM = {
  "weight": ("params", "scale"),
  "bias": ("params", "bias"),
  "running_mean": ("batch_stats", "mean"),
  "running_var": ("batch_stats", "var"),
}


class _Layer(NamedTuple):
  """One convolution or BatchNorm: PyTorch's name, ours, its kind and widths."""

  torch: str
  ours: str
  kind: str  # conv3 | down2 | up2 | conv1 | norm
  channels: int
  features: int


def load_vnet(state_dict: Mapping[str, np.ndarray]) -> dict[str, PyTree]:
  """Converts a V-Net's state dict; `networks.vnet.VNet` of the same width, classes and decoder computes what PyTorch did.

  Args:
    state_dict: PyTorch's names and arrays: channels first, convolution kernels (out, in, x, y, z), transposed ones (in, out, x, y, z).
      Widths, input channels, classes and the decoder (transposed convolution, or interpolation and convolution) are read off the shapes.
      A prefix `module.` on all names and `num_batches_tracked` are ignored.

  Returns:
    `{"params": ..., "batch_stats": ...}` of f32 NumPy arrays.

  Raises:
    InputError: a key is missing, unexpected, or of another shape than the others imply; the message names it and what was expected.

  Source: names and layout of the published V-Net of UA-MT, MC-Net, CAML and CML [C].
  """
  weights = {key: np.asarray(value) for key, value in _without_prefix(state_dict).items() if not key.endswith("num_batches_tracked")}
  tree: dict[str, PyTree] = {"params": {}, "batch_stats": {}}
  expected = set()
  for layer in _layers(weights):
    for torch_name, collection, path, value in _converted(layer, weights):
      expected.add(torch_name)
      group = tree[collection]
      for part in path[:-1]:
        group = group.setdefault(part, {})
      group[path[-1]] = value
  unexpected = sorted(weights.keys() - expected)
  if unexpected:
    raise InputError(f"state dict: unexpected key {unexpected[0]!r}, one of {len(unexpected)}; this V-Net has none of that name")
  return tree


def _without_prefix(state_dict: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
  if state_dict and all(key.startswith("module.") for key in state_dict):
    return {key.removeprefix("module."): value for key, value in state_dict.items()}
  return state_dict


def _layers(weights: Mapping[str, np.ndarray]) -> Iterator[_Layer]:
  """Lists every layer of the V-Net whose width, channels, classes and decoder the first, the last and one decoder key show."""
  width, channels = _shape(weights, "encoder.block_one.conv.0.weight", "(n, channels, 3, 3, 3)")[:2]
  classes = _shape(weights, "decoder.out_conv.weight", "(classes, n, 1, 1, 1)")[0]
  interpolates = "decoder.block_five_up.conv.1.running_mean" not in weights  # interpolation takes place 0 and moves both others by one

  def blocks(torch: str, ours: str, count: int, channels: int, features: int) -> Iterator[_Layer]:
    for i in range(count):
      yield _Layer(f"{torch}.conv.{3 * i}", f"{ours}_conv{i}", "conv3", channels if i == 0 else features, features)
      yield _Layer(f"{torch}.conv.{3 * i + 1}", f"{ours}_norm{i}", "norm", features, features)

  previous = ""
  for level, (name, count) in enumerate(_ENCODER.items(), start=1):
    features = width * 2 ** (level - 1)
    if previous:
      yield _Layer(f"encoder.block_{previous}_dw.conv.0", f"encoder{level}_down", "down2", features // 2, features)
      yield _Layer(f"encoder.block_{previous}_dw.conv.1", f"encoder{level}_down_norm", "norm", features, features)
    yield from blocks(f"encoder.block_{name}", f"encoder{level}", count, features if level > 1 else channels, features)
    previous = name
  for level, (name, count) in enumerate(_DECODER.items(), start=1):
    features = width * 2 ** (4 - level)
    up = f"decoder.block_{previous}_up.conv"
    if interpolates:
      yield _Layer(f"{up}.1", f"decoder{level}_up/conv", "conv3", 2 * features, features)
    else:
      yield _Layer(f"{up}.0", f"decoder{level}_up", "up2", 2 * features, features)
    yield _Layer(f"{up}.{1 + interpolates}", f"decoder{level}_up_norm", "norm", features, features)
    yield from blocks(f"decoder.block_{name}", f"decoder{level}", count, features, features)
    previous = name
  yield _Layer("decoder.out_conv", "output", "conv1", width, classes)


def _shape(weights: Mapping[str, np.ndarray], key: str, wanted: str) -> tuple[int, ...]:
  if key not in weights:
    raise InputError(
      f"state dict: no key {key!r} of shape {wanted}; is this a V-Net? {nearest(key, weights) if weights else 'It is empty.'}"
    )
  if weights[key].ndim != 5:
    raise InputError(f"state dict: {key!r} has shape {weights[key].shape}, expected {wanted}")
  return weights[key].shape


def _converted(layer: _Layer, weights: Mapping[str, np.ndarray]) -> Iterator[tuple[str, str, tuple[str, ...], np.ndarray]]:
  """Yields PyTorch's key, our collection, the path in it, and the array in our layout."""
  path = tuple(layer.ours.split("/"))
  if layer.kind == "norm":
    for name, (collection, ours) in _NORM.items():
      key = f"{layer.torch}.{name}"
      yield key, collection, (*path, ours), _get(weights, key, (layer.features,))
    return
  size = {"conv3": 3, "down2": 2, "up2": 2, "conv1": 1}[layer.kind]
  ends = (layer.channels, layer.features) if layer.kind == "up2" else (layer.features, layer.channels)
  kernel = _get(weights, f"{layer.torch}.weight", (*ends, size, size, size))
  kernel = np.transpose(kernel, (2, 3, 4, 0, 1) if layer.kind == "up2" else (2, 3, 4, 1, 0))
  yield f"{layer.torch}.weight", "params", (*path, "kernel"), kernel[0, 0, 0] if size == 1 else kernel
  yield f"{layer.torch}.bias", "params", (*path, "bias"), _get(weights, f"{layer.torch}.bias", (layer.features,))


def _get(weights: Mapping[str, np.ndarray], key: str, shape: tuple[int, ...]) -> np.ndarray:
  if key not in weights:
    raise InputError(f"state dict: missing key {key!r} of shape {shape}")
  if weights[key].shape != shape:
    raise InputError(f"state dict: {key!r} has shape {weights[key].shape}, expected {shape}")
  if weights[key].dtype.kind != "f":
    raise InputError(f"state dict: {key!r} holds {weights[key].dtype}, expected floating point")
  return weights[key].astype(np.float32)


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
  """Reads arrays by name from a file of PyTorch (`.pth`, `.pt`), safetensors, or NumPy (`.npz`), without unpickling objects.

  Raises:
    InputError: the file is missing, damaged, of another kind, or needs a package that is not installed.
  """
  readers = {".pth": _read_torch, ".pt": _read_torch, ".safetensors": _read_safetensors, ".npz": _read_npz}
  if path.suffix not in readers:
    raise InputError(f"{path}: cannot read {path.suffix or 'a file without suffix'}; known: {', '.join(readers)}")
  if not path.is_file():
    raise InputError(f"{path}: no such file")
  return readers[path.suffix](path)


def _package(name: str, path: Path) -> Any:
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise InputError(f"{path}: reading {path.suffix} needs the package {name}; pip install {name.split('.')[0]}") from error


def _read_torch(path: Path) -> dict[str, np.ndarray]:
  torch = _package("torch", path)
  try:
    found = torch.load(path, weights_only=True, map_location="cpu")
  except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
    reason = str(error).partition(chr(10))[0]
    raise InputError(f"{path}: damaged, or more than tensors is in it; save the state dict alone ({reason})") from error
  if isinstance(found, Mapping):
    found = next((found[name] for name in _WRAPPERS if isinstance(found.get(name), Mapping)), found)
  if not isinstance(found, Mapping) or not all(isinstance(value, torch.Tensor) for value in found.values()):
    raise InputError(f"{path}: holds no state dict, neither by itself nor as {', '.join(_WRAPPERS)}")
  return {str(key): (v.float() if v.is_floating_point() else v).detach().numpy() for key, v in found.items()}


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
  safetensors = _package("safetensors.numpy", path)
  try:
    return safetensors.load_file(path)
  except Exception as error:  # SafetensorError is of no narrower class; NumPy without bfloat16 raises TypeError
    raise InputError(f"{path}: not a readable safetensors file ({error})") from error


def _read_npz(path: Path) -> dict[str, np.ndarray]:
  try:
    with np.load(path, allow_pickle=False) as arrays:
      return {key: arrays[key] for key in arrays.files}
  except (ValueError, EOFError, OSError, AttributeError, zipfile.BadZipFile) as error:
    raise InputError(f"{path}: not a readable npz file of plain arrays ({error})") from error


def save_weights(path: Path, variables: Mapping[str, PyTree]) -> None:
  """Writes `{"params": ..., "batch_stats": ...}` as a flat npz whose keys are paths, such as `params/encoder1_conv0/kernel`."""

  def flat(tree: PyTree, prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    for name, value in tree.items():
      yield from flat(value, f"{prefix}{name}/") if isinstance(value, Mapping) else [(f"{prefix}{name}", np.asarray(value))]

  with path.open("wb") as file:
    np.savez_compressed(file, **dict(flat(variables, "")))


def load_weights(path: Path) -> dict[str, PyTree]:
  """Reads what `save_weights`, and so the command, has written.

  Returns:
    `{"params": ..., "batch_stats": ...}` of f32 NumPy arrays.

  Raises:
    InputError: the file is missing, damaged, or holds something else.
  """
  if not path.is_file():
    raise InputError(f"{path}: no such file")
  tree: dict[str, PyTree] = {"params": {}, "batch_stats": {}}
  for key, value in _read_npz(path).items():
    collection, *groups, leaf = key.split("/")
    if collection not in tree or not groups:
      raise InputError(f"{path}: unexpected array {key!r}; convert the file first with python -m ssl_jax.interop.torch_weights")
    group = tree[collection]
    for name in groups:
      group = group.setdefault(name, {})
    group[leaf] = value
  return tree


def main(arguments: list[str] | None = None) -> None:
  """Converts one file, see the module's docstring."""
  parser = argparse.ArgumentParser(prog="python -m ssl_jax.interop.torch_weights", description="Converts a PyTorch V-Net's weights.")
  parser.add_argument("input", type=Path, help=".pth, .pt, .safetensors or .npz")
  parser.add_argument("output", type=Path, help=".npz, read back by load_weights")
  parsed = parser.parse_args(arguments)
  try:
    if parsed.output.suffix != ".npz":
      raise InputError(f"{parsed.output}: the output is an .npz")
    if not parsed.output.parent.is_dir():
      raise InputError(f"{parsed.output.parent}: no such folder")
    variables = load_vnet(read_state_dict(parsed.input))
    save_weights(parsed.output, variables)
  except InputError as error:
    sys.exit(f"error: {error}")
  kernel, output = (variables["params"][name]["kernel"] for name in ("encoder1_conv0", "output"))
  decoder = "trilinear" if "conv" in variables["params"]["decoder1_up"] else "transpose"
  print(f"{parsed.output}: width {kernel.shape[-1]}, {kernel.shape[-2]} channel(s), {output.shape[-1]} classes, upsample {decoder}")


if __name__ == "__main__":
  main()
