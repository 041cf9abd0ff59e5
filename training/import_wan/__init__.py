"""Checkpoints of the Wan family, made into worlds: `python -m training.import_wan checkpoint=... out=...`."""

from training.import_wan.command import main

__all__ = ["main"]
