"""CAML's training step in plain PyTorch with its memory bank in the host's memory: the peer of `--config=caml_la`."""

import numpy as np
import torch
from torch import nn

from benchmarks.torch_vnet import VNet, on_device

ROWS, COLUMNS, WIDTH, TEMPERATURE = 12800, 256, 64, 0.1


class Attention(nn.Module):
  """Attention over the positions of a sample, then over the samples at a position."""

  def __init__(self, width: int):
    super().__init__()
    layer = lambda: nn.TransformerEncoderLayer(width, nhead=4, dim_feedforward=4 * width, dropout=0.5)
    self.intra, self.inter = layer(), layer()

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    tokens = x.flatten(2).permute(2, 0, 1)  # positions, samples, channels
    tokens = self.inter(self.intra(tokens).transpose(0, 1)).transpose(0, 1)
    return tokens.permute(1, 2, 0).reshape(x.shape)


def head(channels: int) -> nn.Sequential:
  return nn.Sequential(nn.Linear(channels, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(inplace=True), nn.Linear(WIDTH, WIDTH))


class Bank:
  """Every voxel of a labelled scan that both networks got right, as NumPy arrays on the host."""

  def __init__(self, num_cases: int):
    self.features: list[np.ndarray | None] = [None] * num_cases
    self.labels: list[np.ndarray | None] = [None] * num_cases
    self.rng = np.random.default_rng(0)

  def replace(self, case: int, features: torch.Tensor, label: torch.Tensor) -> None:
    self.features[case], self.labels[case] = features.cpu().numpy(), label.cpu().numpy()

  def draw(self, num_classes: int) -> list[torch.Tensor]:
    features = np.concatenate([f for f in self.features if f is not None])
    labels = np.concatenate([label for label in self.labels if label is not None])
    drawn = []
    for c in range(num_classes):
      own = features[labels == c]
      if len(own) >= COLUMNS:
        drawn.append(torch.from_numpy(own[self.rng.choice(len(own), COLUMNS, replace=False)]))
    return drawn


def correlations(rows: torch.Tensor, confidence: torch.Tensor, label: torch.Tensor, columns: list[torch.Tensor]) -> torch.Tensor:
  found = []
  for c in range(2):
    own = label == c
    order = torch.sort(confidence[own], descending=True)[1][:ROWS]
    found.append((rows[own][order] @ torch.cat(columns).T.to(rows.device) / TEMPERATURE).softmax(1))
  return torch.cat(found)


def foreground_dice(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
  prob, target = logits.softmax(1)[:, 1], (label == 1).float()
  return 1 - (2 * (prob * target).sum() + 1e-8) / (prob.sum() + target.sum() + 1e-8)


def consistency(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
  sharp = lambda p: p ** (1 / TEMPERATURE) / (p ** (1 / TEMPERATURE)).sum(1, keepdim=True)
  p, q = a.softmax(1), b.softmax(1)
  return ((p - sharp(q)) ** 2).mean() + ((q - sharp(p)) ** 2).mean()


def training_step(shape: tuple[int, ...], batch: int, width: int, device: str, dtype: torch.dtype):
  """Returns a function that takes one step and returns the loss; two labelled scans of eight a step, in turn."""
  torch.manual_seed(0)
  networks = nn.ModuleList([VNet(width=width), VNet(width=width, trilinear=True, attention=Attention(8 * width))])
  heads = nn.ModuleList(nn.ModuleList([head(width), head(WIDTH)]) for _ in networks)
  whole = on_device(nn.ModuleList([networks, heads]), device)
  optimizer = torch.optim.SGD(whole.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
  image = torch.randn(2 * batch, 1, *shape, device=device)
  label = (image[:batch, 0] > 0).long()
  bank, taken = Bank(8), 0
  rows_of = lambda features: features.movedim(1, -1).reshape(-1, width)

  def step() -> float:
    nonlocal taken
    optimizer.zero_grad()
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
      outputs = [network.with_features(image) for network in networks]
    logits, features = [o[0].float() for o in outputs], [o[1].float() for o in outputs]
    right = torch.stack([x[:batch].argmax(1) == label for x in logits]).all(0)
    with torch.no_grad():
      heads.eval()
      stored = sum(projection(rows_of(f[:batch])) for f, (projection, _) in zip(features, heads, strict=True)) / 2
      heads.train()
    stored = stored.reshape(batch, -1, WIDTH)
    for i in range(batch):
      bank.replace((taken + i) % 8, stored[i][right[i].reshape(-1)], label[i][right[i]])
    taken += batch
    columns = bank.draw(2)
    confidence, predicted = logits[0][batch:].detach().softmax(1).max(1)
    same = (predicted == logits[1][batch:].argmax(1)).reshape(-1)
    loss_o = torch.zeros(())
    if columns and same.sum() > 1:
      matrices = []
      for f, (projection, prediction) in zip(features, heads, strict=True):
        z = prediction(projection(rows_of(f[batch:])[same]))
        matrices.append(correlations(z, confidence.reshape(-1)[same], predicted.reshape(-1)[same], columns))
      loss_o = -(matrices[1] * torch.log(matrices[0] + 1e-8)).sum(1).mean()
    loss_s = sum(foreground_dice(x[:batch], label) for x in logits)
    loss = 0.5 * loss_s + consistency(*logits) + 0.05 * loss_o
    loss.backward()
    optimizer.step()
    return loss.item()

  return step
