"""CML's self-training step in plain PyTorch, with components found on the host: the peer of `--config=cml_la`."""

import numpy as np
import torch
from scipy import ndimage
from torch import nn
from torch.nn import functional

from benchmarks.torch_vnet import VNet, ce_dice, on_device

CUTMIX_SIZE, DISCREPANCY = 2 / 3, 0.2


def largest_component(logits: torch.Tensor) -> torch.Tensor:
  """The foreground's largest component, 26-connected, one sample after the other on the host."""
  mask = (logits.softmax(1)[:, 1] >= 0.5).cpu().numpy()
  kept = np.zeros(mask.shape, np.int64)
  for i, sample in enumerate(mask):
    components, count = ndimage.label(sample, np.ones((3,) * sample.ndim))
    if count:
      kept[i] = components == 1 + np.bincount(components.ravel())[1:].argmax()
  return torch.from_numpy(kept).to(logits.device)


def outside_box(shape: tuple[int, ...], device: str) -> torch.Tensor:
  """1 outside a box at a uniform place, 0 inside."""
  mask = torch.ones(shape, device=device)
  starts = [int(torch.randint(0, side - int(side * CUTMIX_SIZE) + 1, ())) for side in shape]
  mask[tuple(slice(start, start + int(side * CUTMIX_SIZE)) for start, side in zip(starts, shape, strict=True))] = 0
  return mask


def paste(mask: torch.Tensor, outside: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
  mask = mask.to(outside.dtype)
  return outside * mask + inside * (1 - mask)


def mixed(mask: torch.Tensor, array: torch.Tensor) -> torch.Tensor:
  return paste(mask, *array.chunk(2))


def discrepancy(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
  return 2 + functional.cosine_similarity(a, b.detach()).mean() + functional.cosine_similarity(b, a.detach()).mean()


def training_step(shape: tuple[int, ...], batch: int, width: int, device: str, dtype: torch.dtype):
  """Returns a function that takes one step on fixed random data and returns the loss."""
  torch.manual_seed(0)
  networks = on_device(nn.ModuleList([VNet(width=width), VNet(width=width, trilinear=True)]), device)
  optimizer = torch.optim.SGD(networks.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
  image, unlabelled = (torch.randn(batch, 1, *shape, device=device) for _ in range(2))
  label = (image[:, 0] > 0).long()

  def both(x: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
      outputs = [network.with_bottleneck(x) for network in networks]
    return [logits.float() for logits, _ in outputs], [bottleneck.float() for _, bottleneck in outputs]

  def step() -> float:
    masks = [outside_box(shape, device) for _ in range(2)]
    with torch.no_grad():
      pseudo = [largest_component(logits) for logits in both(unlabelled)[0]]
    logits_l, bottlenecks_l = both(mixed(masks[0], image))
    logits_u, bottlenecks_u = both(mixed(masks[1], unlabelled))
    half = batch // 2
    targets = [paste(masks[1], pseudo[1 - i][:half], pseudo[i][half:]) for i in range(2)]
    loss = sum(ce_dice(logits, mixed(masks[0], label)) for logits in logits_l)
    loss = loss + sum(ce_dice(logits, target) for logits, target in zip(logits_u, targets, strict=True))
    loss = loss + DISCREPANCY * (discrepancy(*bottlenecks_l) + discrepancy(*bottlenecks_u))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()

  return step
