"""The 2D U-Net of `ssl_jax.networks.unet` in plain PyTorch with the supervised training step: the peer in two dimensions."""

import torch
from torch import nn

from benchmarks.torch_vnet import ce_dice, on_device

DROPOUT = (0.05, 0.1, 0.2, 0.3, 0.5)


def _block(channels: int, features: int, dropout: float = 0.0) -> nn.Sequential:
  return nn.Sequential(
    nn.Conv2d(channels, features, 3, padding=1),
    nn.BatchNorm2d(features),
    nn.LeakyReLU(inplace=True),
    nn.Dropout(dropout) if dropout else nn.Identity(),
    nn.Conv2d(features, features, 3, padding=1),
    nn.BatchNorm2d(features),
    nn.LeakyReLU(inplace=True),
  )


def _up(channels: int, features: int, bilinear: bool) -> nn.Module:
  if not bilinear:
    return nn.ConvTranspose2d(channels, features, 2, stride=2)
  return nn.Sequential(nn.Conv2d(channels, features, 1), nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True))


class UNet(nn.Module):
  def __init__(self, num_classes: int = 2, width: int = 16, channels: int = 1, bilinear: bool = False):
    super().__init__()
    widths = [width * 2**level for level in range(5)]
    inputs = [channels, *widths[:-1]]
    self.encoder = nn.ModuleList(_block(c, w, p) for c, w, p in zip(inputs, widths, DROPOUT, strict=True))
    self.up = nn.ModuleList(_up(2 * w, w, bilinear) for w in widths[-2::-1])
    self.decoder = nn.ModuleList(_block(2 * w, w) for w in widths[-2::-1])
    self.output = nn.Conv2d(width, num_classes, 3, padding=1)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    skips = []
    for level, block in enumerate(self.encoder):
      x = block(nn.functional.max_pool2d(x, 2) if level else x)
      skips.append(x)
    x = skips.pop()
    for up, block in zip(self.up, self.decoder, strict=True):
      x = block(torch.cat([skips.pop(), up(x)], 1))
    return self.output(x)


def training_step(shape: tuple[int, ...], batch: int, width: int, device: str, dtype: torch.dtype):
  """Returns a function that takes one step on fixed random data and returns the loss."""
  torch.manual_seed(0)
  network = on_device(UNet(width=width), device)
  optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
  image, label = torch.randn(batch, 1, *shape, device=device), torch.randint(0, 2, (batch, *shape), device=device)

  def step() -> float:
    optimizer.zero_grad()
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
      logits = network(image)
    loss = ce_dice(logits.float(), label)
    loss.backward()
    optimizer.step()
    return loss.item()

  return step
