"""Any Gymnasium environment as a game that can be recorded, played and learned."""
