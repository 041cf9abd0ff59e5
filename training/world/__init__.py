"""Training of a world: clips, the loop around its objective, validation, export."""
