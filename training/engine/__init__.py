"""The training loop, its run folder, devices, optimizers and validation."""
