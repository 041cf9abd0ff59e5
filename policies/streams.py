"""The random streams of an episode: what is drawn with `(seed, stream)` beside the seed itself.

Players and games share a seed, and each draws from a stream of its own, so that none depends on what another
one draws. Numbers in use never change: recordings of the same seed would become others. A new
stream gets the next number.
"""

MIXED = 1
"""Who of several players plays."""
RETURNING = 2
"""Where a player turns back."""
OUT_AND_BACK = 3
"""What is played on a grid. The generator of rooms has the same number: no game has both."""
TOURS = 4
SKIRMISH = 6
EXCURSIONS = 7
FIGHT, CHARGE, DOORS, PUSH, TURN_ROUND, IDLE = range(8, 14)
"""What the players of a level do."""
WANDER = 14
GAMES = {"worldsim.games.rooms.generate": 3, "worldsim.games.doom_level": 5}
"""Streams that games draw from: `STREAM` of each of these modules, which do not know of this one."""
