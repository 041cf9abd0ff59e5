"""Training data: recording games, encoding video, and batches of sequences."""
