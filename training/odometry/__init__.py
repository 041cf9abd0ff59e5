"""Teaching of odometry on recorded poses: `python -m training.odometry world=WORLD`."""

from training.odometry.train import main

__all__ = ["main"]
