"""Recordings in formats of others, made into gameplay video: `python -m training.ingest path=... out=...`."""

from training.ingest.command import main

__all__ = ["main"]
