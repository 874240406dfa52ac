"""V-Net and 2D U-Net weights published for PyTorch, as this library's parameters.

`python -m ssl_jax.interop.torch_weights IN.(pth|pt|safetensors|npz) OUT.npz` converts a file; `load_weights(OUT.npz)` reads it back.
No file is ever unpickled into arbitrary objects.
"""

import argparse
import importlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssl_jax.types import UNREADABLE, InputError, PyTree

_ENCODER = {"one": 1, "two": 2, "three": 3, "four": 3, "five": 3}  # PyTorch's name of a level and its number of convolutions
_DECODER = {"six": 3, "seven": 3, "eight": 2, "nine": 1}
_UNET_FIRST = "in_conv.conv_conv.0"
_WRAPPERS = ("net", "state_dict", "model")  # what training scripts call the weights among other things in a .pth
_PREFIXES = ("module.", "encoder.", "decoder.")
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
    state_dict: PyTorch's names and arrays, channels first: convolution kernels (out, in, x, y[, z]), transposed ones (in, out, x, y[, z]).
      Widths, input channels, classes, rank and the decoder (transposed convolution, or interpolation and convolution) are read off the
      shapes. Prefixes `module.`, `encoder.`, `decoder.` and `num_batches_tracked` do not matter.

  Returns:
    `{"params": ..., "batch_stats": ...}` of f32 NumPy arrays.

  Raises:
    InputError: a key is missing, unknown, or of another shape than the others imply; the message names it and what was expected.

  Source: names and layout of the published V-Net of UA-MT, MC-Net, CAML and CML [C].
  """
  weights = _short_names(state_dict)
  first, last = (_kernel(weights, f"{name}.weight", "V-Net") for name in ("block_one.conv.0", "out_conv"))
  interpolates = "block_five_up.conv.1.running_mean" not in weights
  return _convert(weights, _vnet_layers(first.shape[0], first.shape[1], last.shape[0], interpolates), first.ndim - 2, "V-Net")


def load_unet2d(state_dict: Mapping[str, np.ndarray]) -> dict[str, PyTree]:
  """Converts a 2D U-Net's state dict; `networks.unet.UNet2D` of the same width, classes and decoder computes what PyTorch did.

  Args:
    state_dict: PyTorch's names and arrays as in `load_vnet`; the decoder (transposed convolution, or convolution 1 and interpolation) is
      read off the names.

  Returns:
    `{"params": ..., "batch_stats": ...}` of f32 NumPy arrays.

  Raises:
    InputError: a key is missing, unknown, or of another shape than the others imply; the message names it and what was expected.

  Source: names and layout of the published U-Net of SSL4MIS, CML and BCP [C].
  """
  weights = _short_names(state_dict)
  first, last = (_kernel(weights, f"{name}.weight", "2D U-Net") for name in (_UNET_FIRST, "out_conv"))
  interpolates = "up1.conv1x1.weight" in weights
  return _convert(weights, _unet_layers(first.shape[0], first.shape[1], last.shape[0], interpolates), first.ndim - 2, "2D U-Net")


def _convert(weights: Mapping[str, np.ndarray], layers: Iterable[_Layer], rank: int, network: str) -> dict[str, PyTree]:
  tree: dict[str, PyTree] = {"params": {}, "batch_stats": {}}
  known = set()
  for layer in layers:
    for key, collection, path, axes, shape in _arrays(layer, rank):
      known.add(key)
      group = tree[collection]
      for name in path[:-1]:
        group = group.setdefault(name, {})
      group[path[-1]] = _converted(weights, key, axes, shape)
  unknown = sorted(weights.keys() - known)
  if unknown:
    raise InputError(f"{unknown[0]}: unknown; the {network} that the other arrays make has no such part ({len(unknown)} like it)")
  return tree


def _short_names(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  short: dict[str, np.ndarray] = {}
  for key, value in state_dict.items():
    name = key
    for prefix in _PREFIXES:
      name = name.removeprefix(prefix)
    if name.endswith("num_batches_tracked"):
      continue
    if name in short:
      raise InputError(f"{key}: another name of an array that the state dict holds already")
    short[name] = np.asarray(value)
  return short


def _kernel(weights: Mapping[str, np.ndarray], key: str, network: str) -> np.ndarray:
  if key not in weights:
    raise InputError(f"{key} of the state dict is missing: these are not the weights of a {network}")
  if weights[key].ndim not in (4, 5):
    raise InputError(f"{key}: has shape {weights[key].shape}, expected 4 or 5 axes: out, in, and two or three of the kernel")
  return weights[key]


def _vnet_layers(width: int, channels: int, classes: int, interpolates: bool) -> Iterator[_Layer]:
  """Lists all layers; where the decoder interpolates, that takes place 0 and moves convolution and BatchNorm by one."""

  def blocks(torch: str, ours: str, count: int, channels: int, features: int) -> Iterator[_Layer]:
    for i in range(count):
      yield _Layer(f"{torch}.conv.{3 * i}", f"{ours}_conv{i}", "conv3", channels if i == 0 else features, features)
      yield _Layer(f"{torch}.conv.{3 * i + 1}", f"{ours}_norm{i}", "norm", features, features)

  previous = ""
  for level, (name, count) in enumerate(_ENCODER.items(), start=1):
    features = width * 2 ** (level - 1)
    if previous:
      yield _Layer(f"block_{previous}_dw.conv.0", f"encoder{level}_down", "down2", features // 2, features)
      yield _Layer(f"block_{previous}_dw.conv.1", f"encoder{level}_down_norm", "norm", features, features)
    yield from blocks(f"block_{name}", f"encoder{level}", count, features if previous else channels, features)
    previous = name
  for level, (name, count) in enumerate(_DECODER.items(), start=1):
    features = width * 2 ** (4 - level)
    up, ours = f"block_{previous}_up.conv", f"decoder{level}_up"
    if interpolates:
      yield _Layer(f"{up}.1", f"{ours}/conv", "conv3", 2 * features, features)
    else:
      yield _Layer(f"{up}.0", ours, "up2", 2 * features, features)
    yield _Layer(f"{up}.{1 + interpolates}", f"{ours}_norm", "norm", features, features)
    yield from blocks(f"block_{name}", f"decoder{level}", count, features, features)
    previous = name
  yield _Layer("out_conv", "output", "conv1", width, classes)


def _unet_layers(width: int, channels: int, classes: int, interpolates: bool) -> Iterator[_Layer]:
  def block(torch: str, ours: str, channels: int, features: int) -> Iterator[_Layer]:
    for i, place in enumerate((0, 4)):  # activation and dropout lie between
      yield _Layer(f"{torch}.conv_conv.{place}", f"{ours}_conv{i}", "conv3", features if i else channels, features)
      yield _Layer(f"{torch}.conv_conv.{place + 1}", f"{ours}_norm{i}", "norm", features, features)

  yield from block("in_conv", "encoder1", channels, width)
  for level in range(1, 5):
    features = width * 2**level
    yield from block(f"down{level}.maxpool_conv.1", f"encoder{level + 1}", features // 2, features)
  for level in range(1, 5):
    features = width * 2 ** (4 - level)
    name, kind = ("conv1x1", "conv1") if interpolates else ("up", "up2")
    yield _Layer(f"up{level}.{name}", f"decoder{level}_up", kind, 2 * features, features)
    yield from block(f"up{level}.conv", f"decoder{level}", 2 * features, features)
  yield _Layer("out_conv", "output", "conv3", width, classes)


def _arrays(layer: _Layer, rank: int) -> Iterator[tuple[str, str, tuple[str, ...], tuple[int, ...], tuple[int, ...]]]:
  """Yields PyTorch's key, our collection and path in it, the order of axes that makes the array ours, and its shape then."""
  path = tuple(layer.ours.split("/"))
  if layer.kind == "norm":
    for name, (collection, ours) in _NORM.items():
      yield f"{layer.torch}.{name}", collection, (*path, ours), (0,), (layer.features,)
    return
  size = {"conv3": 3, "down2": 2, "up2": 2, "conv1": 1}[layer.kind]
  axes = (*range(2, rank + 2), *((0, 1) if layer.kind == "up2" else (1, 0)))
  yield f"{layer.torch}.weight", "params", (*path, "kernel"), axes, (*(size,) * rank, layer.channels, layer.features)
  yield f"{layer.torch}.bias", "params", (*path, "bias"), (0,), (layer.features,)


def _converted(weights: Mapping[str, np.ndarray], key: str, axes: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
  if key not in weights:
    raise InputError(f"{key}: missing from the state dict; it would have shape {shape}, channels last")
  value = weights[key]
  value = np.transpose(value, axes) if value.ndim == len(axes) else value
  if value.shape != shape or value.dtype.kind != "f":
    raise InputError(f"{key}: has shape {value.shape}, channels last, of {value.dtype}; expected {shape} of floating point")
  return value.astype(np.float32).reshape(shape[-2:] if shape[0] == 1 and len(shape) > 1 else shape)


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
  """Reads arrays by name from a file of PyTorch (`.pth`, `.pt`), safetensors, or NumPy (`.npz`), without unpickling objects.

  Raises:
    InputError: the file is missing, damaged, of another kind, or needs a package that is not installed.
  """
  readers = {".pth": _read_torch, ".pt": _read_torch, ".safetensors": _read_safetensors, ".npz": _read_npz}
  if path.suffix not in readers:
    raise InputError(f"{path}: weights come as {', '.join(readers)}")
  if not path.is_file():
    raise InputError(f"{path}: no such file")
  return readers[path.suffix](path)


def _package(module: str, name: str, path: Path) -> Any:
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise InputError(f"{path}: reading it needs {name}; pip install {module.partition('.')[0]}") from error


def _read_torch(path: Path) -> dict[str, np.ndarray]:
  torch = _package("torch", "PyTorch", path)
  try:
    found = torch.load(path, weights_only=True, map_location="cpu")
  except Exception as error:  # a damaged file raises whatever its reader stumbles over, one with code UnpicklingError
    raise InputError(f"{path}: cannot be read safely: it is damaged, or holds more than tensors; save the state dict alone") from error
  if isinstance(found, Mapping):
    found = next((found[name] for name in _WRAPPERS if isinstance(found.get(name), Mapping)), found)
  if not isinstance(found, Mapping) or not all(isinstance(value, torch.Tensor) for value in found.values()):
    raise InputError(f"{path}: holds no state dict, neither by itself nor as {', '.join(_WRAPPERS)}")
  return {str(key): (value.float() if value.is_floating_point() else value).detach().numpy() for key, value in found.items()}


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
  safetensors = _package("safetensors.numpy", "safetensors", path)
  try:
    return safetensors.load_file(path)
  except Exception as error:  # SafetensorError has no narrower base; a dtype that NumPy lacks raises TypeError
    raise InputError(f"{path}: cannot be read as safetensors ({error})") from error


def _read_npz(path: Path) -> dict[str, np.ndarray]:
  try:
    with np.load(path, allow_pickle=False) as arrays:
      return {key: arrays[key] for key in arrays.files}
  except UNREADABLE as error:
    raise InputError(f"{path}: cannot be read as .npz of plain arrays ({error})") from error


def save_weights(variables: Mapping[str, PyTree], path: Path) -> None:
  """Writes `{"params": ..., "batch_stats": ...}` as a flat npz whose keys are paths, such as `params/encoder1_conv0/kernel`."""
  with path.open("wb") as file:  # an open file keeps its name: np.savez would append .npz
    np.savez_compressed(file, allow_pickle=False, **dict(_flat(variables)))


def _flat(tree: Mapping[str, PyTree], prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
  for name, value in tree.items():
    yield from _flat(value, f"{prefix}{name}/") if isinstance(value, Mapping) else [(f"{prefix}{name}", np.asarray(value))]


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
    collection, _, rest = key.partition("/")
    *groups, leaf = rest.split("/")
    if collection not in tree or not groups:
      raise InputError(f"{path}: not a file of converted weights; make one with python -m ssl_jax.interop.torch_weights")
    group = tree[collection]
    for name in groups:
      group = group.setdefault(name, {})
    group[leaf] = value
  return tree


def main(arguments: list[str] | None = None) -> int:
  """Converts one file, see the module's docstring; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog="python -m ssl_jax.interop.torch_weights", description="Converts the weights of a PyTorch V-Net or 2D U-Net."
  )
  parser.add_argument("input", type=Path, help=".pth, .pt, .safetensors or .npz")
  parser.add_argument("output", type=Path, help=".npz, read back by load_weights")
  parsed = parser.parse_args(arguments)
  try:
    if parsed.output.suffix != ".npz" or not parsed.output.parent.is_dir():
      raise InputError(f"{parsed.output}: the output is an .npz in a folder that exists")
    weights = read_state_dict(parsed.input)
    is_unet = any(key.endswith(f"{_UNET_FIRST}.weight") for key in weights)
    load, network = (load_unet2d, "2D U-Net") if is_unet else (load_vnet, "V-Net")
    variables = load(weights)
    save_weights(variables, parsed.output)
  except InputError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  params = variables["params"]
  up = params["decoder1_up"]
  first, decoder = params["encoder1_conv0"]["kernel"], "trilinear or nearest" if "conv" in up or up["kernel"].ndim == 2 else "transpose"
  count = sum(value.size for _, value in _flat(params))
  print(
    f"{parsed.output}: {count:,} parameters; {network} of width {first.shape[-1]}, {first.shape[-2]} channel(s), "
    f"{len(params['output']['bias'])} classes, upsample {decoder}"
  )
  return 0


if __name__ == "__main__":
  sys.exit(main())
