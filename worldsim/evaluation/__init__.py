"""Measurements of a world against the real game: metrics, roll-outs, tests of control, drift and cost."""
