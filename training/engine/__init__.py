"""The training loop, its run folder, devices, distribution and optimizers."""
