"""The exception for what a user can put right."""


class WorldError(ValueError):
    """Something the user gave (a path, a world, an action, a setting) is wrong; the message names it."""
