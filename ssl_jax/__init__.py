"""Semi-supervised medical image segmentation in JAX: published methods behind one training loop."""
