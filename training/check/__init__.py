"""Check of gameplay video before a training: `python -m training.check data=data/my-game`."""

from training.check.command import main

__all__ = ["main"]
