"""Environments by their id or import path, with their wrappers; what goes wrong is told in a sentence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from typing import Any

import gymnasium as gym

from worldsim.errors import WorldError

Env = gym.Env[Any, Any]
PROVIDERS = {"ALE/": "ale_py", "MiniGrid-": "minigrid", "BabyAI-": "minigrid"}
"""Packages that register environments when they are imported, by how their ids begin."""


@contextmanager
def told(what: str) -> Iterator[None]:
    """Turn any error of somebody else's code into one sentence.

    Raises:
        WorldError: `WHAT: KIND: REASON`.
    """
    try:
        yield
    except WorldError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise WorldError(f"{what}: {type(error).__name__}{': ' if reason else ''}{reason[:300]}") from error


def open_env(env_id: str, kwargs: dict[str, Any], wrappers: Sequence[str], *, renders: bool) -> Env:
    """Return an environment.

    Args:
        env_id: As `gymnasium.make` takes it, `MODULE:ID` to import a module first, or `MODULE:NAME` of a
            class or function that returns one.
        kwargs: For it.
        wrappers: Import paths, from the inside out.
        renders: Whether `render` is to return pictures.

    Raises:
        WorldError: If there is none, or it or a wrapper fails.
    """
    kwargs = kwargs | ({"render_mode": "rgb_array"} if renders else {})
    with told(f"env={env_id} cannot be made"):
        env = _make(env_id, kwargs)
        for path in wrappers:
            env = imported(path, "a wrapper")(env)
    if not isinstance(env, gym.Env):
        raise WorldError(f"env={env_id} is no environment of Gymnasium, but a {type(env).__name__}")
    return env


def _make(env_id: str, kwargs: dict[str, Any]) -> Any:
    module, _, name = env_id.rpartition(":")
    module = module or next((each for start, each in PROVIDERS.items() if env_id.startswith(start)), "")
    found = import_module(module) if module else None
    if name not in gym.registry and callable(made := getattr(found, name, None)):
        return made(**kwargs)
    return gym.make(name, disable_env_checker=True, **kwargs)


def imported(path: str, what: str) -> Any:
    """Return what `MODULE:NAME` names.

    Raises:
        WorldError: If there is no such thing, or it cannot be called.
    """
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        raise WorldError(f"{what} is named MODULE:NAME, got {path!r}")
    with told(f"{what}, {path}, cannot be imported"):
        found = getattr(import_module(module), name)
    if not callable(found):
        raise WorldError(f"{what}, {path}, cannot be called: it is a {type(found).__name__}")
    return found


def version_of(env: Env) -> str:
    """Return the versions of Gymnasium and of the package that an environment is from, if that is another."""
    package = type(env.unwrapped).__module__.partition(".")[0]
    told_version = f"Gymnasium {gym.__version__}"
    if package == "gymnasium":
        return told_version
    for distribution in packages_distributions().get(package, [package])[:1]:
        try:
            return f"{distribution} {version(distribution)}, {told_version}"
        except PackageNotFoundError:
            break  # a module of somebody's own
    return told_version
