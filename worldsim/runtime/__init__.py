"""Computation of worlds: device, precision, threads, noise, CUDA graphs, timing, interrupts."""
