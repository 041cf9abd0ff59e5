"""The depth estimator that players walk by, trained on the engine of Doom: `python -m training.depth`."""

from training.depth.train import main

__all__ = ["main"]
