"""Video transformers of the Wan 2.1 family: the network, its causal form, its checkpoints, its decoder."""
