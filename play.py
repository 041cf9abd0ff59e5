"""Play a world in a window, or without a display let a program play: `python play.py`.

Every setting can be given as `name=value`; `--help` lists them with their meaning.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import policies
from training.cli.entry import entry
from worldsim.errors import WorldError
from worldsim.games.registry import GAMES
from worldsim.runtime.config import RuntimeSettings
from worldsim.settings import setting

if TYPE_CHECKING:  # they bring PyTorch, which a wrong setting need not wait for
    from worldsim.actions import ActionLayout
    from worldsim.envs.single import ARL2WorldEnv
    from worldsim.play.files import PlayFolders
    from worldsim.play.game import GameSettings
    from worldsim.play.session import PlaySession
    from worldsim.world import WorldConfig

HEADLESS_FRAMES = 300


@dataclass(kw_only=True, slots=True)
class PlayConfig(RuntimeSettings):
    """What to play and how."""

    world: str | None = setting(
        None,
        "A shipped world's name, a folder, or a Hugging Face id. null lets you choose among the worlds that "
        "ship and their start moments in a window; where nobody is asked (no display, or steps, start or a "
        "program to play are given), it is the first.",
    )
    start: str | None = setting(
        None,
        "Start moment, by number or name, or a picture of yours, FILE.png; null draws one with the seed.",
    )
    seed: int = setting(0, "Of the start moment, the frames and the players.", minimum=0)
    policy: str = setting(
        "auto",
        "auto (you, or the scripted player without a display), keyboard, scripted, random, ppo (a learned "
        "player), still, to-and-fro, recorded, or a recording's FILE.jsonl.",
    )
    policy_folder: str | None = setting(None, "Of policy=ppo; null is the policy that ships with the world.")
    recording: str | None = setting(
        None,
        "Of policy=recorded: FILE.mp4 or FILE.jsonl of an episode. Where no world is named, it is the one "
        "it was recorded in.",
    )
    steps: int = setting(
        0,
        "End after so many frames; 0 plays until the window is closed, and 300 frames without a display.",
        minimum=0,
    )
    headless: bool | None = setting(None, "Play without a window; null finds out whether there is a display.")
    record: str | None = setting(
        None,
        "FILE.mp4 to record to, which must not be there yet; null records to the folder of recordings "
        "without a display, unless a recording is replayed, and nothing with one; '' never records.",
    )
    denoising_steps: int | None = setting(
        None, "Denoising passes a frame; null is the world's own number. [ and ] change it while playing."
    )
    noise_scale: float | None = setting(
        None,
        "Standard deviation of the noise that frames are drawn from; null is the world's own. T changes it "
        "while playing.",
    )
    scale: int = setting(
        0,
        "Screen pixels per frame pixel to begin with; 0 chooses. Pixels stay whole in a window of any size.",
        minimum=0,
    )
    full_screen: bool = setting(False, "Begin on the full screen.")
    fps: float | None = setting(
        None,
        "Frames per second to hold in the window; null is the world's own rate, 0 is as many as possible.",
        minimum=0,
    )
    hold_rate: bool = setting(
        False, "Lower the denoising steps where this rate is not held otherwise. G changes it while playing."
    )
    keys: dict[str, list[str]] = setting(
        {}, "Keys for commands: keys.rewind=[e], or a file of yours beside conf/keys/default.yaml."
    )
    buttons: dict[str, list[str]] = setting(
        {},
        "Other keys for the world's buttons: '+buttons={turn/left:[left,j],turn/right:[right,y]}'; they may "
        "be `mouse left` and `mouse right`.",
    )
    threads: int = setting(
        0,
        "CPU threads to compute with; 0 chooses, and while a person plays takes fewer where another program "
        "keeps the cores busy.",
        minimum=0,
    )
    serve: bool = setting(False, 'Play in a browser instead of a window (pip install -e ".[serve]").')
    host: str = setting(
        "127.0.0.1",
        "Of serve. At any other host than loopback the page asks for a token, which is printed; 0.0.0.0 is "
        "all of this machine's addresses.",
    )
    port: int = setting(8765, "Of serve; 0 takes a free one.", minimum=0, maximum=65_535)
    rewind_megabytes: int = setting(
        512,
        "Room for the moments to rewind to, in 10^6 bytes; how far back that reaches is shown in the window.",
        minimum=0,
    )
    slots: str = setting("slots", "Folder of save slots; made when first needed.")
    recordings: str = setting(
        "recordings",
        "Folder of recordings that nobody named a file for: numbered, another world's in a folder of its "
        "own in there.",
    )
    screenshots: str = setting("screenshots", "Folder of screenshots.")


@entry("play", PlayConfig)
def main(config: PlayConfig) -> None:
    """Build the environment and the player, open the window or do without."""
    from worldsim.play.headless import choose_headless
    from worldsim.runtime.timing import seconds_since_start

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


def play(config: PlayConfig, *, headless: bool, waited: float) -> bool:
    """Play one world; returns whether the person wants to choose another one then."""
    if config.world is None and config.policy == "recorded" and config.recording:
        from worldsim.play.replay import recorded_world

        config = replace(config, world=recorded_world(Path(config.recording)))
    from worldsim.starts import is_picture

    env = build_env(config)
    if headless:
        check_bindings(config, env.world.config.actions)
    if config.start is not None and is_picture(config.start, env.start_names):
        config = replace(config, start=env.add_start_picture(Path(config.start)))
    with play_session(config, env, headless=headless, waited=waited) as session:
        if not headless and not config.serve:
            return run_window(config, session)
        run = run_headless if headless else run_server
        run(config, session)
    return False


def wants_picker(config: PlayConfig) -> bool:
    """Whether there is a person to ask which world to play, and where to begin."""
    is_open = config.world is None and config.start is None and config.recording is None
    return is_open and not config.serve and config.policy in ("auto", "keyboard") and not config.steps


def build_env(config: PlayConfig) -> ARL2WorldEnv:
    """Load the world and say where it computes, and why."""
    from worldsim.envs.single import ARL2WorldEnv
    from worldsim.runtime.device import set_threads

    num_threads = set_threads(config.threads)
    env = ARL2WorldEnv(
        config.world,
        device=config.device,
        dtype=config.dtype,
        denoising_steps=config.denoising_steps,
        noise_scale=config.noise_scale,
    )
    world, steps = env.world.config, env.simulator.sampler.num_steps
    size = f"{world.width} x {world.height} at {world.frame_rate:g} frames/s"
    print(f"world {world.name}: {size}, {steps} denoising steps")
    print(f"computing on {env.device_choice}, {num_threads} threads", flush=True)
    return env


def check_bindings(config: PlayConfig, actions: ActionLayout) -> None:
    """Refuse keys that a window would refuse; without one, settings for it are as right or wrong as ever."""
    from worldsim.ui.bindings import bind

    bindings = bind(actions, config.keys, config.buttons)
    if bindings != bind(actions):  # whoever left the keys alone need not wait for pygame
        from worldsim.ui.input import check_without_window

        check_without_window(bindings)


@contextmanager
def play_session(
    config: PlayConfig, env: ARL2WorldEnv, *, headless: bool, waited: float = 0.0
) -> Iterator[PlaySession]:
    """Give what is played and recorded; however it ends, finish the recording, and say what was measured."""
    from worldsim.play.recording import Recording
    from worldsim.play.replay import Replay
    from worldsim.play.session import PlaySession

    path = recording_path(config, env.world.config, headless=headless)
    replay = Replay(Path(config.recording)) if config.policy == "recorded" and config.recording else None
    if replay is not None:
        replay.check_world(env)
    recording = Recording(path, env.world.config) if path else None
    # Without a window nobody goes back; with one, a player who takes over is shown the latest moments.
    rewind_bytes = 0 if headless else max(1, config.rewind_megabytes * 10**6)
    session = PlaySession(
        env, recording, seed=config.seed, rewind_bytes=rewind_bytes, replay=replay, waited_seconds=waited
    )
    try:
        with session:
            yield session
    finally:
        env.close()
        if session.num_frames:
            print(session.summary())
            for path in session.recorded:
                print(f"recorded           {path}")
        if replay is not None and session.num_frames:
            print(replay.result(env))


def recording_path(config: PlayConfig, world: WorldConfig, *, headless: bool) -> Path | None:
    """Return the video to write, None for none; of a replay only on request, and never over the original."""
    from worldsim.play.recording import free_recording

    if config.record is None:
        is_wanted = headless and config.policy != "recorded"
        return free_recording(Path(config.recordings), world) if is_wanted else None
    if not config.record:
        return None
    path, source = (
        Path(config.record),
        config.policy if config.policy.endswith(".jsonl") else config.recording,
    )
    if source and path.with_suffix("").resolve() == Path(source).with_suffix("").resolve():
        raise WorldError(f"record={path} would overwrite {source}, which is played: choose another name")
    return path


def run_headless(config: PlayConfig, session: PlaySession) -> None:
    """Let the policy play, as fast as it goes."""
    from tqdm import tqdm

    from worldsim.play.headless import has_display, play_headless

    name = default_policy(session) if config.policy == "auto" else config.policy
    num_frames = config.steps or (session.replay.num_frames if session.replay else HEADLESS_FRAMES)
    why = "headless" if has_display() else "no display found"
    written = "" if session.recording is None else f" and {session.recording.path} is written"
    print(f"{why}: the {name} player walks {num_frames} frames{written}", flush=True)
    policy = make_policy(name, session, config.policy_folder, config.recording)
    session.reset(config.start)
    policy.reset(config.seed)
    for _ in tqdm(play_headless(session, policy, num_frames, name), total=num_frames, unit="frame"):
        pass


def run_window(config: PlayConfig, session: PlaySession) -> bool:
    """Play in a window until it is closed; returns whether the person wants to choose a world then."""
    from worldsim.play.desktop.viewer import Viewer
    from worldsim.ui.bindings import bind

    actions = session.env.world.config.actions
    bindings = bind(actions, config.keys, config.buttons)
    viewer = Viewer(
        session,
        policies.KeyboardPolicy(actions.num_values, bindings.buttons),
        programs(config, session),
        play_folders(config),
        game_settings(config),
        bindings=bindings,
        scale=config.scale,
        full_screen=config.full_screen,
    )
    viewer.run(config.steps, config.start)
    return viewer.game.wants_choice


def require_server() -> None:
    """Say what is missing before a world is loaded."""
    from importlib.util import find_spec

    if missing := [name for name in ("aiohttp", "PIL") if find_spec(name) is None]:
        raise WorldError(f"serve=true needs {' and '.join(missing)}: pip install -e '.[serve]'")


def run_server(config: PlayConfig, session: PlaySession) -> None:
    """Serve the game as a page; who opens it is the person."""
    from worldsim.play.web.game import ServedGame
    from worldsim.ui.bindings import bind
    from worldsim.ui.input import check_without_window

    actions = session.env.world.config.actions
    bindings = bind(actions, config.keys, config.buttons)
    check_without_window(bindings)
    game = ServedGame(
        session,
        policies.KeyboardPolicy(actions.num_values, bindings.buttons),
        programs(config, session),
        play_folders(config),
        bindings,
        game_settings(config),
        host=config.host,
        port=config.port,
    )
    game.run(config.steps, config.start, say=lambda sentence: print(sentence, flush=True))


def programs(config: PlayConfig, session: PlaySession) -> dict[str, policies.Policy]:
    """Return who can play instead of the person, by name."""
    return {
        name: make_policy(name, session, config.policy_folder, config.recording)
        for name in available_policies(config, session)
    }


def play_folders(config: PlayConfig) -> PlayFolders:
    from worldsim.play.files import PlayFolders

    return PlayFolders(
        slots=Path(config.slots),
        recordings=Path(config.recordings),
        screenshots=Path(config.screenshots),
    )


def game_settings(config: PlayConfig) -> GameSettings:
    from worldsim.play.game import HUMAN, GameSettings

    return GameSettings(
        first=HUMAN if config.policy in ("auto", "keyboard") else config.policy,
        frame_rate=config.fps,
        hold_rate=config.hold_rate,
        adapts_threads=config.threads == 0,
        seed=config.seed,
    )


def default_policy(session: PlaySession) -> str:
    """Return who plays when nobody else does."""
    world = session.env.world.config
    return "scripted" if policies.find_scripted(world.actions.num_values) else "random"


def available_policies(config: PlayConfig, session: PlaySession) -> list[str]:
    """Return the names of the programs that can play: those that fit the world, and those asked for."""
    world = session.env.world
    names = [default_policy(session), "random"]
    if config.recording:
        names.append("recorded")
    if config.policy_folder or (world.folder is not None and (world.folder / "policy").is_dir()):
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
