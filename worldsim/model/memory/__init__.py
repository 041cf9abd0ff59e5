"""The memory across frames: its state as a value, the window of past frames, and phases of motion."""
