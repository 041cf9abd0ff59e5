"""Outcome heads: the frames they are trained on, and the calibration of their probabilities."""
