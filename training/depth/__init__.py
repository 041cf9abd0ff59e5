"""The sense of depth that players walk by, taught by the engine of Doom: `python -m training.depth`."""

from training.depth.train import main

__all__ = ["main"]
