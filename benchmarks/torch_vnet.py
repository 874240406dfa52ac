"""The V-Net of `ssl_jax.networks.vnet` in plain PyTorch with the supervised training step: the peer of the step-time benchmark."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional


def _unit(convolution: nn.Module, features: int) -> nn.Sequential:
  return nn.Sequential(convolution, nn.BatchNorm3d(features), nn.ReLU(inplace=True))


def _blocks(count: int, channels: int, features: int) -> nn.Sequential:
  return nn.Sequential(*(_unit(nn.Conv3d(channels if i == 0 else features, features, 3, padding=1), features) for i in range(count)))


def _up(channels: int, features: int, trilinear: bool) -> nn.Module:
  if not trilinear:
    return nn.ConvTranspose3d(channels, features, 2, stride=2)
  return nn.Sequential(nn.Upsample(scale_factor=2, mode="trilinear", align_corners=True), nn.Conv3d(channels, features, 3, padding=1))


class VNet(nn.Module):
  def __init__(
    self,
    num_classes: int = 2,
    width: int = 16,
    channels: int = 1,
    dropout: float = 0.5,
    trilinear: bool = False,
    attention: nn.Module | None = None,
  ):
    super().__init__()
    widths = [width * 2**level for level in range(5)]
    self.encoder = nn.ModuleList(
      _blocks(n, channels if i == 0 else w, w) for i, (n, w) in enumerate(zip((1, 2, 3, 3, 3), widths, strict=True))
    )
    self.down = nn.ModuleList(_unit(nn.Conv3d(w, 2 * w, 2, stride=2), 2 * w) for w in widths[:-1])
    self.up = nn.ModuleList(_unit(_up(2 * w, w, trilinear), w) for w in widths[-2::-1])
    self.decoder = nn.ModuleList(_blocks(n, w, w) for n, w in zip((3, 3, 2, 1), widths[-2::-1], strict=True))
    self.dropout = nn.Dropout3d(dropout)
    self.output = nn.Conv3d(width, num_classes, 1)
    self.attention = attention

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return self.parts(x)[0]

  def with_features(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return self.parts(x)[:2]

  def with_bottleneck(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return self.parts(x)[::2]

  def parts(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, last features, bottleneck."""
    skips = []
    for level, blocks in enumerate(self.encoder):
      if level:
        skips.append(x)
        x = self.down[level - 1](x)
      x = blocks(x)
      if level == 3 and self.attention is not None:
        x = self.attention(x)
    x = bottleneck = self.dropout(x)
    for up, blocks in zip(self.up, self.decoder, strict=True):
      x = blocks(up(x) + skips.pop())
    return self.output(self.dropout(x)), x, bottleneck

  def published_state(self) -> dict[str, np.ndarray]:
    """The weights under the names of the published V-Net with transposed convolutions, which `ssl_jax.interop` reads."""
    levels = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

    def published(name: str) -> str:
      if name.startswith("output"):
        return name.replace("output", "out_conv")
      part, level, *block, layer, array = name.split(".")
      if block:  # three layers a block, the third without weights
        return f"block_{levels[int(level) + (5 if part == 'decoder' else 0)]}.conv.{3 * int(block[0]) + int(layer)}.{array}"
      return f"block_{levels[int(level) + (4 if part == 'up' else 0)]}_{'up' if part == 'up' else 'dw'}.conv.{layer}.{array}"

    return {published(name): array.detach().cpu().numpy() for name, array in self.state_dict().items()}


def on_device(module: nn.Module, device: str) -> nn.Module:
  """Puts a module on its device; on a GPU with channels last, in which cuDNN computes in bfloat16."""
  if device == "cpu":
    return module
  planes = any(parameter.ndim == 4 for parameter in module.parameters())
  return module.to(device, memory_format=torch.channels_last if planes else torch.channels_last_3d)


def ce_dice(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
  prob = logits.softmax(1)
  target = functional.one_hot(label, logits.shape[1]).movedim(-1, 1).to(prob.dtype)
  axes = tuple(range(2, prob.ndim))
  dice = 1 - (2 * (prob * target).sum(axes) + 1e-5) / (prob.sum(axes) + target.sum(axes) + 1e-5)
  return 0.5 * (functional.cross_entropy(logits, label) + dice.mean())


def training_step(shape: tuple[int, ...], batch: int, width: int, device: str, dtype: torch.dtype):
  """Returns a function that takes one step on fixed random data and returns the loss."""
  torch.manual_seed(0)
  network = on_device(VNet(width=width), device)
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
