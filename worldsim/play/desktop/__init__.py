"""Play in a window of this machine."""
