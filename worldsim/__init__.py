"""A learned game: dream it frame by frame, step it as a Gymnasium environment, play it.

Importing this package registers the environment `ARL2World-v0` and loads nothing else: PyTorch comes with the
modules that compute.
"""

from gymnasium.envs.registration import register, registry

__all__ = ["ENV_ID", "__version__"]

__version__ = "0.1.0"
ENV_ID = "ARL2World-v0"

if ENV_ID not in registry:
    register(
        id=ENV_ID,
        entry_point="worldsim.env:ARL2WorldEnv",
        vector_entry_point="worldsim.vector_env:ARL2WorldVectorEnv",
    )
