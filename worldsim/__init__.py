"""A learned game: dream it frame by frame, step it as a Gymnasium environment, play it.

Importing this package registers the environments `ARL2World-v0`, a world, and `DoomGame-v0`, the real game
beside it, and loads nothing else: PyTorch comes with the modules that compute.
"""

from gymnasium.envs.registration import register, registry

from worldsim.runtime import (
    forks as forks,  # from now on, so that nothing hangs in a process that is forked later
)

__all__ = ["ENV_ID", "GAME_ID", "__version__"]

__version__ = "0.1.0"
ENV_ID = "ARL2World-v0"
GAME_ID = "DoomGame-v0"

if ENV_ID not in registry:
    register(
        id=ENV_ID,
        entry_point="worldsim.envs.single:ARL2WorldEnv",
        vector_entry_point="worldsim.envs.vector:ARL2WorldVectorEnv",
        # The environment raises ResetNeeded itself. Gymnasium's wrappers for it know of no `set_state`: they
        # would ask for a reset that is not needed.
        order_enforce=False,
        disable_env_checker=True,
    )

if GAME_ID not in registry:
    register(id=GAME_ID, entry_point="worldsim.games.env:RealGameEnv")
