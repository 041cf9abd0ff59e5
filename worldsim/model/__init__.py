"""The network: a diffusion transformer with a memory."""
