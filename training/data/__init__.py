"""Training data: recording games, listing, decoding and encoding clips, and batches of them."""
