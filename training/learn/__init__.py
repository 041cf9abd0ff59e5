"""A game to a world that can be played: `python -m training.learn env=CarRacing-v3 minutes=60`."""

from training.learn.command import main

__all__ = ["main"]
