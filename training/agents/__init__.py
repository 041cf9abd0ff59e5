"""Agents of reinforcement learning: trained, measured and watched in a world or in its game."""
