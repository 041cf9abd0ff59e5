"""The moving picture of the README, made of worlds by their names: `python -m training.film`."""

from training.film.make import main

__all__ = ["main"]
