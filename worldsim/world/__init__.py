"""A world as a folder: its description, weights, start moments and card; loaded, saved, rewritten."""

from worldsim.world.config import WorldConfig
from worldsim.world.world import World

__all__ = ["World", "WorldConfig"]
