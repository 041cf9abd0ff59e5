"""A world as a Gymnasium environment: one, or many in a batch."""
