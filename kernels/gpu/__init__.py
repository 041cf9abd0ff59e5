"""Triton kernels of the scan, the read and the commit, forward and backward."""
