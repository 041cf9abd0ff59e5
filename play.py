"""Play a world in a window, or without a display let a program play: `python play.py`.

Every setting (docs/settings.md) can be given as `name=value`; `--cfg job` lists them.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import policies
from training.cli.entry import entry
from worldsim.errors import WorldError
from worldsim.games.registry import GAMES
from worldsim.play.settings import PlayConfig

if TYPE_CHECKING:  # it brings PyTorch, which a wrong setting need not wait for
    from worldsim.play.session import PlaySession
    from worldsim.world.world import World


@entry("play", PlayConfig)
def main(config: PlayConfig) -> None:
    """Build the environment and the player, open the window or do without."""
    from worldsim.runtime.timing import seconds_since_start
    from worldsim.ui.display import choose_headless

    if config.env is not None:
        record_env(config)
        return
    if config.serve:
        require_server()
    headless = not config.serve and choose_headless(config.headless)
    if headless and config.policy == "keyboard":
        raise WorldError("policy=keyboard needs a window, and there is none")
    wants_choice, loaded = not headless and wants_picker(config), seconds_since_start()
    while True:
        if wants_choice:
            from worldsim.play.desktop.picker import choose_world

            if (chosen := choose_world(config.world)) is None:
                return
            config = replace(config, world=chosen[0], start=chosen[1])
        if not play(config, headless=headless, waited=seconds_since_start() - loaded):
            return
        # What was asked for at the beginning was about the world of the beginning.
        wants_choice, config = True, replace(config, policy="auto", recording=None, record=None)


def record_env(config: PlayConfig) -> None:
    """Let a person play an environment in a window, and record it.

    Raises:
        WorldError: If there is no window, the environment cannot be a game, or nothing can be recorded.
    """
    from training.engine.lock import locked_folder
    from worldsim.games.gym.apart import ApartGame
    from worldsim.play.desktop.dataset import PlayedDataset
    from worldsim.seeds import find_seed
    from worldsim.ui.bindings import bind
    from worldsim.ui.display import choose_headless

    assert config.env is not None
    is_of_worlds = config.world or config.start or config.recording or config.serve
    if is_of_worlds or config.policy not in ("auto", "keyboard"):
        raise WorldError(
            "env= is the game itself, which a person plays: without world, start, policy and serve"
        )
    if choose_headless(config.headless):
        raise WorldError(f"a person needs a window; programs record with training.collect env={config.env}")
    with ExitStack() as stack:
        game = stack.enter_context(ApartGame(config.env, config.game, config.step_timeout))
        entry, dataset = game.entry, None
        bindings = bind(entry.actions, config.keys, config.buttons)
        actions = entry.actions
        person = policies.KeyboardPolicy(actions.num_values, bindings.buttons, actions.centres)
        if config.record != "":
            folder = Path(config.record or f"data/{entry.name}-played")
            stack.enter_context(locked_folder(folder))
            source = f"{entry.engine_version()} {entry.game}, a person at the keys"
            dataset = PlayedDataset(folder, entry.dataset_info(source))
        from worldsim.play.desktop.recorder import RecorderWindow

        how = {"frame_rate": config.fps, "scale": config.scale, "full_screen": config.full_screen}
        window = RecorderWindow(game, person, bindings, dataset, seed=find_seed(config.seed), **how)
        print(f"{entry.name}: {entry.width} x {entry.height} at {entry.frame_rate:g} frames/s", flush=True)
        try:
            window.run(config.steps)
        finally:
            print("\n".join(dataset.summary() if dataset is not None else ()), flush=True)


def require_server() -> None:
    """Say what is missing before a world is loaded."""
    from importlib.util import find_spec

    if missing := [name for name in ("aiohttp", "PIL") if find_spec(name) is None]:
        raise WorldError(f"serve=true needs {' and '.join(missing)}: pip install -e '.[serve]'")


def wants_picker(config: PlayConfig) -> bool:
    """Whether there is a person to ask which world to play, and where to begin."""
    is_open = config.world is None and config.start is None and config.recording is None
    return is_open and not config.serve and config.policy in ("auto", "keyboard") and not config.steps


def play(config: PlayConfig, *, headless: bool, waited: float) -> bool:
    """Play one world; returns whether the person wants to choose another one then."""
    from worldsim.play.game import Game
    from worldsim.play.run import open_session, run_headless
    from worldsim.ui.bindings import bind

    say = partial(print, flush=True)
    with open_session(config, headless=headless, waited=waited, say=say) as (session, config):
        if headless:
            name = default_policy(session) if config.policy == "auto" else config.policy
            policy = make_policy(name, session, config.policy_folder, config.recording)
            run_headless(config, session, name, policy, say)
            return False
        actions = session.env.world.config.actions
        bindings = bind(actions, config.keys, config.buttons)
        person = policies.KeyboardPolicy(actions.num_values, bindings.buttons, actions.centres)
        programs = {
            name: make_policy(name, session, config.policy_folder, config.recording)
            for name in available_policies(config, session)
        }
        game = Game(session, person, programs, bindings, config)
        if config.serve:
            from worldsim.play.web.game import ServedGame

            served = ServedGame(game, host=config.host, port=config.port)
            served.run(config.steps, config.start, say=say)
            return False
        from worldsim.play.desktop.viewer import Viewer

        viewer = Viewer(game, scale=config.scale, full_screen=config.full_screen)
        viewer.run(config.steps, config.start)
        return game.wants_choice


def default_policy(session: PlaySession) -> str:
    """Return who plays when nobody else does: a scripted player, or else the world's own policy, if any."""
    world = session.env.world
    name = policies.usual_player(world.config.actions.num_values)
    return "ppo" if name == "random" and has_policy(world) else name


def has_policy(world: World) -> bool:
    """Whether a policy that learned to play it ships with a world."""
    return world.folder is not None and (world.folder / "policy").is_dir()


def available_policies(config: PlayConfig, session: PlaySession) -> list[str]:
    """Return the names of the programs that can play: those that fit the world, and those asked for."""
    names = [default_policy(session), "random"]
    if config.recording:
        names.append("recorded")
    if config.policy_folder or has_policy(session.env.world):
        names.append("ppo")
    if config.policy not in ("auto", "keyboard"):
        names.append(config.policy)
    return list(dict.fromkeys(names))


def make_policy(
    name: str, session: PlaySession, folder: str | None = None, recording: str | None = None
) -> policies.Policy:
    """Build a policy by its name, or from a recording; a learned one from its folder, or the world's own."""
    world = session.env.world.config
    num_values = world.actions.num_values
    if name.endswith(".jsonl"):
        return policies.make("recorded", num_values=num_values, path=name)
    if name == "recorded":
        if not recording:
            raise WorldError("policy=recorded needs recording=FILE, the .mp4 or .jsonl of an episode")
        return policies.make(name, num_values=num_values, path=Path(recording).with_suffix(".jsonl"))
    if name == "ppo":
        from worldsim.world.world import policy_folder

        found = policy_folder(folder, session.env.world.folder or world.name)
        return policies.make(name, num_values=num_values, folder=found)
    return policies.make(name, num_values=num_values, game=GAMES.get(world.name))


if __name__ == "__main__":
    main()
