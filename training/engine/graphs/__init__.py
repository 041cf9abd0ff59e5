"""Passes forward and backward that are recorded once as a CUDA graph and replayed."""
