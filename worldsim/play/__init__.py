"""Playing a world: the session, players, history, slots, recordings and replay."""
