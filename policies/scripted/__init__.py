"""Scripted players: they explore, dodge, forage, and walk away and back."""
