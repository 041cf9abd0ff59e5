"""A game from its settings: the session, and the window, page or program that plays it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from worldsim.envs.single import ARL2WorldEnv
from worldsim.errors import WorldError
from worldsim.play.recording import Recording, free_recording
from worldsim.play.replay import Replay, recorded_world
from worldsim.play.session import Player, PlaySession
from worldsim.play.settings import PlayConfig
from worldsim.runtime.cores import usable_cores
from worldsim.runtime.device import set_threads
from worldsim.runtime.interrupt import StopRequest
from worldsim.runtime.timing import steady_memory
from worldsim.seeds import TODAY, find_seed
from worldsim.starts import is_picture
from worldsim.ui.bindings import bind
from worldsim.ui.display import has_display
from worldsim.world import WorldConfig

HEADLESS_FRAMES = 300

Say = Callable[[str], None]


@contextmanager
def open_session(
    config: PlayConfig, *, headless: bool, waited: float, say: Say
) -> Iterator[tuple[PlaySession, PlayConfig]]:
    """Give what is played and recorded; however it ends, finish the recording, and say what was measured.

    With it comes the configuration, in which `start` is a start moment of the world and `seed` a number.

    Args:
        headless: Whether there is no window, and nobody to go back or to change keys.
        waited: Seconds that a person took to choose.

    Raises:
        WorldError: If something of it is not there or not valid.
    """
    if config.world is None and config.policy == "recorded" and config.recording:
        config = replace(config, world=recorded_world(Path(config.recording)))
    replay = Replay(Path(config.recording)) if config.policy == "recorded" and config.recording else None
    if replay is not None:
        config = as_recorded(config, replay.opening.settings)
    env = open_env(config, say)
    world = env.world.config
    if headless and bind(world.actions, config.keys, config.buttons) != bind(world.actions):
        from worldsim.ui.input import check_without_window  # pygame, for which only changed keys wait

        check_without_window(bind(world.actions, config.keys, config.buttons))
    if config.start is not None and is_picture(config.start, env.start_names):
        config = replace(config, start=env.add_start_picture(Path(config.start)))
    path = recording_path(config, world, headless=headless)
    if replay is not None:
        replay.check_world(env)
    repeats_seed, config = config.seed == TODAY, replace(config, seed=find_seed(config.seed))
    session = PlaySession(
        env,
        Recording(path, world) if path else None,
        seed=int(config.seed),
        repeats_seed=repeats_seed,
        # Without a window nobody goes back; with one, a player who takes over is shown the latest moments.
        rewind_bytes=0 if headless else max(1, config.rewind_megabytes * 10**6),
        replay=replay,
        waited_seconds=waited,
    )
    try:
        with session:
            yield session, config
    finally:
        env.close()
        if session.num_frames:
            say(session.summary())
            for path in session.recorded:
                say(f"recorded           {path}")
        if replay is not None and session.num_frames:
            say(replay.result(env))


def as_recorded(config: PlayConfig, then: Mapping[str, str]) -> PlayConfig:
    """Return settings in which what is not given is as it was recorded: a replay gives the same bytes then.

    Args:
        then: See `play_settings`; no numbers, and more threads than there are cores, are left.
    """
    threads, steps, noise = (then.get(name, "") for name in ("threads", "denoising_steps", "noise_scale"))
    if not config.threads and threads.isdecimal() and int(threads) <= usable_cores():
        config = replace(config, threads=int(threads))
    if config.denoising_steps is None and steps.isdecimal():
        config = replace(config, denoising_steps=int(steps))
    if config.noise_scale is None:
        with suppress(ValueError):
            config = replace(config, noise_scale=float(noise))
    return config


def open_env(config: PlayConfig, say: Say) -> ARL2WorldEnv:
    """Load the world and say where it computes, and why."""
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
    say(f"world {world.name}: {size}, {steps} denoising {'step' if steps == 1 else 'steps'}")
    if env.action_repeat > 1:
        say(f"an action is held for {env.action_repeat} displayed frames, {world.frame_rate:g} a second")
    say(f"computing on {env.device_choice}, {num_threads} threads")
    return env


def recording_path(config: PlayConfig, world: WorldConfig, *, headless: bool) -> Path | None:
    """Return the video to write, None for none; of a replay only on request, and never over the original."""
    if config.record is None:
        is_wanted = headless and config.policy != "recorded"
        return free_recording(Path(config.recordings), world) if is_wanted else None
    if not config.record:
        return None
    path = Path(config.record)
    source = config.policy if config.policy.endswith(".jsonl") else config.recording
    if source and path.with_suffix("").resolve() == Path(source).with_suffix("").resolve():
        raise WorldError(f"record={path} would overwrite {source}, which is played: choose another name")
    return path


def run_headless(config: PlayConfig, session: PlaySession, name: str, player: Player, say: Say) -> None:
    """Let a player play, as fast as it goes."""
    from tqdm import tqdm

    num_frames = config.steps or (session.replay.num_frames if session.replay else HEADLESS_FRAMES)
    why = "headless" if has_display() else "no display found"
    written = "" if session.recording is None else f" and {session.recording.path} is written"
    say(f"{why}: the {name} player plays {num_frames} frames{written}")
    session.reset(config.start)
    player.reset(session.seed)
    for _ in tqdm(play_headless(session, player, num_frames, name), total=num_frames, unit="frame"):
        pass


def play_headless(
    session: PlaySession, player: Player, num_frames: int, name: str | None = None
) -> Iterator[int]:
    """Let a player play a session that was reset; yields the number of frames so far.

    Where the world ends an episode, the next begins at a start moment that is drawn. A request to stop ends
    it between two frames, as `KeyboardInterrupt`. `name` is what recordings call the player.
    """
    with StopRequest() as stop, steady_memory():
        for count in range(1, num_frames + 1):
            if stop.requested:
                return
            session.begin(player.act(session.observation), name)
            session.finish()
            if session.ended and count < num_frames:
                session.reset()
                player.reset(count)
            yield count
