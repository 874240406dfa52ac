"""Published PyTorch weights become ours and survive the round trip; wrong ones are refused by name."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from ssl_jax.interop import torch_weights
from ssl_jax.interop.torch_weights import load_vnet, load_weights, read_state_dict, save_weights
from ssl_jax.networks.vnet import VNet
from ssl_jax.types import InputError
from tests.helpers import HANG_S, ROOT


def state_dict(upsample="transpose"):
  """The weights of `tests/data/vnet_*.npz`, whose outputs `tests/test_vnet.py` checks."""
  oracle = np.load(ROOT / "tests" / "data" / f"vnet_{upsample}.npz")
  return {key.removeprefix("sd/"): oracle[key] for key in oracle.files if key.startswith("sd/")}


def assert_equal_trees(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(("upsample", "ours"), [("transpose", "transpose"), ("trilinear", "trilinear"), ("trilinear", "nearest")])
def test_the_tree_is_that_of_the_network(upsample, ours):
  network = VNet(num_classes=2, width=2, upsample=ours)
  expected = jax.eval_shape(lambda: network.init(jax.random.key(0), np.zeros((1, 16, 16, 16, 1)), train=False))
  tree = load_vnet(state_dict(upsample))
  assert jax.tree.map(lambda a: (a.shape, a.dtype), tree) == jax.tree.map(lambda a: (a.shape, a.dtype), dict(expected))


@pytest.mark.parametrize("rename", [lambda n: f"module.{n}", lambda n: n.split(".", 1)[1]], ids=["data parallel", "UA-MT's flat names"])
def test_prefixes_do_not_matter(rename):
  weights = state_dict()
  assert_equal_trees(load_vnet({rename(name): value for name, value in weights.items()}), load_vnet(weights))


def without(name):
  return lambda weights: weights.pop(name)


def with_value(name, value):
  return lambda weights: weights.update({name: value})


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (without("decoder.block_seven.conv.4.running_var"), "block_seven.conv.4.running_var: missing"),
    (without("encoder.block_one.conv.0.weight"), "block_one.conv.0.weight .* is missing: these are not the weights of a V-Net"),
    (with_value("decoder.block_ten.conv.0.weight", np.zeros(3)), "block_ten.conv.0.weight: unknown"),
    (with_value("decoder.block_six.conv.0.weight", np.zeros((16, 9, 3, 3, 3))), r"block_six.conv.0.weight: has shape \(3, 3, 3, 9, 16\)"),
    (with_value("encoder.block_two.conv.1.bias", np.zeros(5)), r"block_two.conv.1.bias: has shape \(5,\)"),
    (with_value("encoder.block_one.conv.0.weight", np.zeros((2, 1, 3))), "4 or 5 axes"),
    (with_value("module.decoder.out_conv.bias", np.zeros(2)), "out_conv.bias: another name"),
  ],
)
def test_wrong_weights_are_named(change, message):
  weights = state_dict()
  change(weights)
  with pytest.raises(InputError, match=message):
    load_vnet(weights)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_conversion_round_trip(tmp_path, suffix, capsys):
  source, target = tmp_path / f"published{suffix}", tmp_path / "ours.npz"
  if suffix == ".npz":
    np.savez(source, **state_dict())
  else:
    pytest.importorskip("safetensors.numpy").save_file(state_dict(), source)
  assert torch_weights.main([str(source), str(target)]) == 0
  assert "parameters" in capsys.readouterr().out
  assert_equal_trees(load_weights(target), load_vnet(state_dict()))


def test_pytorch_checkpoint(tmp_path):
  torch = pytest.importorskip("torch")
  weights = {name: torch.from_numpy(np.asarray(value)) for name, value in state_dict().items()}
  torch.save({"net": weights, "opt": {"lr": 0.1}}, tmp_path / "iter_6000.pth")
  assert_equal_trees(load_vnet(read_state_dict(tmp_path / "iter_6000.pth")), load_vnet(state_dict()))


class Exploit:
  """Pickles as a call that would leave a file behind."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return open, (str(self.path), "w")


def test_pytorch_checkpoint_with_code_is_refused(tmp_path):
  torch = pytest.importorskip("torch")
  torch.save({"net": Exploit(tmp_path / "owned")}, tmp_path / "bad.pth")
  with pytest.raises(InputError, match="bad.pth: cannot be read safely"):
    read_state_dict(tmp_path / "bad.pth")
  assert not (tmp_path / "owned").exists()


def test_without_pytorch_the_message_says_so(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "torch", None)
  (tmp_path / "a.pth").write_bytes(b"")
  with pytest.raises(InputError, match=r"a\.pth: reading it needs PyTorch"):
    read_state_dict(tmp_path / "a.pth")


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("missing.npz", None, "no such file"),
    ("weights.h5", b"", "weights come as"),
    ("broken.npz", b"PK\x03\x04 not a zip", "cannot be read as .npz"),
    ("broken.safetensors", b"\xff" * 16, "cannot be read as safetensors"),
  ],
)
def test_unreadable_files_are_named(tmp_path, name, content, message):
  if name.endswith(".safetensors"):
    pytest.importorskip("safetensors")
  if content is not None:
    (tmp_path / name).write_bytes(content)
  with pytest.raises(InputError, match=f"{name}: .*{message}"):
    read_state_dict(tmp_path / name)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_truncated_files_are_named(tmp_path, suffix):
  path = tmp_path / f"half{suffix}"
  if suffix == ".npz":
    np.savez(path, **state_dict())
  else:
    pytest.importorskip("safetensors.numpy").save_file(state_dict(), path)
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  with pytest.raises(InputError, match=f"half{suffix}: cannot be read as"):
    read_state_dict(path)


def test_pickled_arrays_are_refused(tmp_path):
  np.savez(tmp_path / "objects.npz", weights=np.array([Exploit(tmp_path / "owned")], dtype=object))
  with pytest.raises(InputError, match="objects.npz: cannot be read as .npz of plain arrays"):
    read_state_dict(tmp_path / "objects.npz")
  assert not (tmp_path / "owned").exists()


def test_load_weights_refuses_foreign_files(tmp_path):
  np.savez(tmp_path / "foreign.npz", a=np.zeros(2))
  with pytest.raises(InputError, match="foreign.npz: not a file of converted weights"):
    load_weights(tmp_path / "foreign.npz")
  save_weights(load_vnet(state_dict()), tmp_path / "ours.npz")
  assert load_weights(tmp_path / "ours.npz").keys() == {"params", "batch_stats"}


def test_command_ends_with_a_sentence_and_not_a_traceback(tmp_path):
  command = [sys.executable, "-m", "ssl_jax.interop.torch_weights", str(tmp_path / "none.pth"), str(tmp_path / "out.npz")]
  result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG_S)
  assert result.returncode == 2
  assert result.stderr.strip() == f"error: {tmp_path / 'none.pth'}: no such file"
