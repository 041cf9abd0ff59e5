"""Gameplay video in formats of others: `python -m training.export data=... out=... format=lerobot`."""

from training.export.command import main

__all__ = ["main"]
