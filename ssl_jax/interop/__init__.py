"""Import of published PyTorch weights."""
