"""Benchmark of the memory's operators against their peers: `python -m kernels.benchmark`."""
