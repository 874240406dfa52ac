"""Seconds to segment a scan by sliding windows, ours beside PyTorch's loop and MONAI's, and by one pass; same weights, in turns.

  python -m benchmarks.sliding_window [--image=FILE.nii.gz] [--config=supervised_la] [--rounds=3] [--json=PATH]

Windows, stride and network are the configuration's. PyTorch's loop is the published procedure: one window after the other, probabilities
added up in NumPy. MONAI's takes part where it is installed. *difference* is the largest one of a probability from the loop's. Weights are
random: what one pass costs in Dice is asked of a trained run, with `--mode=eval --config.eval.whole_volume=True`.
"""

import functools
import importlib.util
import itertools
import math
from pathlib import Path

import numpy as np

from benchmarks import common

SCAN = (180, 150, 88)  # voxels of a cropped Left Atrium scan


def published(network, image: np.ndarray, patch: tuple[int, ...], stride: tuple[int, ...], device: str) -> np.ndarray:
  """The mean of softmax over windows at multiples of the stride, the last one flush with the end of an axis: f32[*spatial, C]."""
  import torch

  starts = [
    [min(step * i, side - size) for i in range(math.ceil((side - size) / step) + 1)]
    for side, size, step in zip(image.shape, patch, stride, strict=True)
  ]
  total, visits = np.zeros((2, *image.shape), np.float32), np.zeros(image.shape, np.float32)
  with torch.no_grad():
    for corner in itertools.product(*starts):
      window = tuple(slice(begin, begin + size) for begin, size in zip(corner, patch, strict=True))
      logits = network(torch.from_numpy(image[window][None, None]).to(device))
      total[:, *window] += logits.softmax(1)[0].cpu().numpy()
      visits[window] += 1
  return np.moveaxis(total / visits, 0, -1)


def monai(network, image: np.ndarray, patch: tuple[int, ...], stride: tuple[int, ...], device: str) -> np.ndarray:
  import torch
  from monai.inferers import sliding_window_inference

  overlap = [1 - (step + 1e-6) / side for step, side in zip(stride, patch, strict=True)]  # it rounds the stride down
  with torch.no_grad():
    given = torch.from_numpy(image[None, None]).to(device)
    return sliding_window_inference(given, patch, 1, lambda x: network(x).softmax(1), overlap)[0].movedim(0, -1).cpu().numpy()


def main() -> None:
  parser = common.parser(__doc__)
  parser.add_argument("--image", type=Path, help="NIfTI file; default: noise as large as a cropped Left Atrium scan")
  parser.add_argument("--config", default="supervised_la", help="name of a file in configs/ with a V-Net")
  parser.add_argument("--shape", type=common.sides_of, help="of a window; the stride shrinks with it")
  parser.add_argument("--scan", type=common.sides_of, default=SCAN, help="shape of the noise")
  parser.add_argument("--width", type=int)
  args = parser.parse_args()

  import jax
  import torch

  from benchmarks.torch_vnet import VNet
  from ssl_jax import compiler
  from ssl_jax.inference import SlidingWindow, WholeVolume
  from ssl_jax.interop.torch_weights import load_vnet
  from ssl_jax.networks.factory import Networks

  compiler.vectorize_channels()
  cfg = common.configuration(args.config, patch=args.shape, width=args.width)
  patch, stride = cfg.data.patch, cfg.eval.stride
  if args.image:
    import nibabel

    image = np.asarray(nibabel.load(args.image).dataobj, np.float32)
    image = (image - image.mean()) / image.std()
  else:
    image = np.random.default_rng(0).standard_normal(args.scan, np.float32)
  image = np.pad(image, [(0, max(side - size, 0)) for side, size in zip(patch, image.shape, strict=True)])

  torch.manual_seed(0)
  device = "cuda" if torch.cuda.is_available() else "cpu"
  peer = VNet(width=cfg.network.width).to(device)
  with torch.no_grad():
    peer(torch.randn(1, 1, *patch, device=device))  # so that running averages differ from their initial values
  variables = jax.device_put(load_vnet(peer.eval().published_state()))
  network = Networks(cfg.network, 2).backbone()
  predict = lambda state, x: jax.nn.softmax(network.apply(state, x, train=False).logits)
  ours = SlidingWindow(predict, patch=patch, stride=stride, window_batch=cfg.eval.window_batch)
  whole = WholeVolume(predict)
  sides = {
    "ours": lambda: ours(variables, image[..., None]),
    "ours, one pass": lambda: whole(variables, image[..., None]),
    "MONAI": functools.partial(monai, peer, image, patch, stride, device),
    "PyTorch, loop": functools.partial(published, peer, image, patch, stride, device),
  }
  if not importlib.util.find_spec("monai"):
    del sides["MONAI"]
  found = {name: side() for name, side in sides.items()}
  taken = common.take_turns(sides, args.rounds)
  reference = found["PyTorch, loop"]
  rows = [{**row, "difference": float(np.abs(found[row["side"]] - reference).max())} for row in common.rows_of("a scan", taken)]
  count = math.prod(math.ceil((side - size) / step) + 1 for side, size, step in zip(image.shape, patch, stride, strict=True))
  shape = lambda sides: "x".join(map(str, sides))
  common.report(
    f"Scan {shape(image.shape)}, {count} windows {shape(patch)}, stride {shape(stride)}, V-Net of width {cfg.network.width}, "
    f"{cfg.network.dtype}, {args.rounds} rounds",
    rows,
    args.json,
  )


if __name__ == "__main__":
  main()
