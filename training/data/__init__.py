"""Training data: recording games, encoded video and its cache, sampling of sequences, carried memory."""
