"""Inputs of measurements: clips, places that come back into view, start states, motion of the picture."""
