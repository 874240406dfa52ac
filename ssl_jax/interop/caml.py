"""Weights of the published CAML pair as this library's parameters."""

from collections.abc import Mapping

import numpy as np

from ssl_jax.interop.torch_weights import load_vnet
from ssl_jax.types import InputError, PyTree

_NETWORKS = {"a": "1", "b": "2"}  # ours and the number in PyTorch's names: vanilla, auxiliary
_ATTENTION = {"intra": "intra_attention", "inter": "inter_attention"}
_HEADS = ("projection", "prediction")
_NUM_HEADS = 4


def load_caml(state_dict: Mapping[str, np.ndarray]) -> dict[str, PyTree]:
  """Converts both networks of a published CAML state dict, with attention and heads.

  Args:
    state_dict: PyTorch's names and arrays, as the authors' training script saves them: `encoder1`, `decoder1`, `projection_head1`,
      `prediction_head1` of the vanilla network, the same with 2 of the auxiliary one.

  Returns:
    `{"params": ..., "batch_stats": ...}` with the trees of `TrainState.students` and `TrainState.stats` of `methods.caml`.

  Raises:
    InputError: a key is missing, unknown, or of another shape than the others imply.

  Source: names and layout of the published code [C].
  """
  weights = {key.removeprefix("module."): np.asarray(value) for key, value in state_dict.items() if not key.endswith("num_batches_tracked")}
  tree: dict[str, PyTree] = {"params": {}, "batch_stats": {}}
  for ours, number in _NETWORKS.items():
    part = _Part(weights, number)
    network = load_vnet(part.network())
    if ours == "b":
      network["params"]["cma"] = {name: part.encoder_layer(f"encoder{number}.{torch}.encoder_layers") for name, torch in _ATTENTION.items()}
    heads = {name: part.head(f"{name}_head{number}") for name in _HEADS}
    for collection in tree:
      tree[collection][ours] = {"network": network[collection], **{name: head[collection] for name, head in heads.items()}}
  if weights:
    raise InputError(f"{sorted(weights)[0]}: unknown; the published CAML pair has no such part ({len(weights)} like it)")
  return tree


class _Part:
  """Takes the arrays of one network out of the state dict, one after the other."""

  def __init__(self, weights: dict[str, np.ndarray], number: str) -> None:
    self._weights, self._number = weights, number

  def network(self) -> dict[str, np.ndarray]:
    prefixes = (f"encoder{self._number}.", f"decoder{self._number}.")
    keys = [key for key in self._weights if key.startswith(prefixes) and ".encoder_layers." not in key]
    return {key.split(".", 1)[1]: self._weights.pop(key) for key in keys}

  def take(self, key: str) -> np.ndarray:
    if key not in self._weights:
      raise InputError(f"{key} of the state dict is missing: these are not the weights of the published CAML pair")
    return self._weights.pop(key).astype(np.float32)

  def dense(self, name: str) -> dict[str, np.ndarray]:
    return {"kernel": self.take(f"{name}.weight").T, "bias": self.take(f"{name}.bias")}

  def head(self, name: str) -> dict[str, PyTree]:
    norm = {"scale": self.take(f"{name}.1.weight"), "bias": self.take(f"{name}.1.bias")}
    running = {"mean": self.take(f"{name}.1.running_mean"), "var": self.take(f"{name}.1.running_var")}
    params = {"hidden": self.dense(f"{name}.0"), "norm": norm, "output": self.dense(f"{name}.3")}
    return {"params": params, "batch_stats": {"norm": running}}

  def encoder_layer(self, name: str) -> dict[str, PyTree]:
    kernel, bias = self.take(f"{name}.self_attn.in_proj_weight"), self.take(f"{name}.self_attn.in_proj_bias")
    width = kernel.shape[1]
    if kernel.shape[0] != 3 * width or width % _NUM_HEADS:
      raise InputError(f"{name}.self_attn.in_proj_weight: has shape {kernel.shape}, expected three times a width that {_NUM_HEADS} divides")
    by_head = (_NUM_HEADS, width // _NUM_HEADS)
    attention = {
      part: {"kernel": k.T.reshape(width, *by_head), "bias": b.reshape(by_head)}
      for part, k, b in zip(("query", "key", "value"), np.split(kernel, 3), np.split(bias, 3), strict=True)
    }
    out = self.dense(f"{name}.self_attn.out_proj")
    attention["out"] = {"kernel": out["kernel"].reshape(*by_head, width), "bias": out["bias"]}
    norms = {
      ours: {"scale": self.take(f"{name}.{torch}.weight"), "bias": self.take(f"{name}.{torch}.bias")}
      for ours, torch in (("norm_attention", "norm1"), ("norm_mlp", "norm2"))
    }
    return {"attention": attention, **norms, "mlp_in": self.dense(f"{name}.linear1"), "mlp_out": self.dense(f"{name}.linear2")}
