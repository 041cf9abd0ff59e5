"""Gameplay video: episodes on disk, reading them for training, recording them from a real game."""
