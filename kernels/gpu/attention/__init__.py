"""Triton kernels of softmax attention, within a frame and over a window of frames."""
