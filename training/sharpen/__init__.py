"""Sharpening of a world on roll-outs of its own: `python -m training.sharpen init=WORLD`."""

from training.sharpen.command import main

__all__ = ["main"]
