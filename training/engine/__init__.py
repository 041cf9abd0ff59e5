"""The training loop, its clips, run folder, devices, optimizers and validation."""
