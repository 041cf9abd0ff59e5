"""Stress test of play under random input, in which nothing may grow or break: `python -m training.long_play`.

Random keys, saves, rewinds, branches and settings, without a window. The same command goes on where it was
stopped; OUT/day.json says how it went so far.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import policies
from training.cli.entry import entry
from training.engine.lock import locked_folder
from training.engine.long_run import begin_or_resume, run_on
from worldsim import state as states
from worldsim.envs.single import ARL2WorldEnv
from worldsim.evaluation.cost.random_play import SoakTest, play_at_random
from worldsim.evaluation.report.report import Report
from worldsim.play.game import Game
from worldsim.play.session import PlaySession
from worldsim.play.settings import PlayConfig
from worldsim.runtime.config import RuntimeSettings
from worldsim.runtime.cuda_graphs import COMPILE_MODES
from worldsim.runtime.device import set_threads
from worldsim.settings import setting
from worldsim.ui.bindings import bind

DAY_FILE, STATE_FILE = "day.json", "last.safetensors"
SLOTS, RECORDINGS = "day-slots", "day-recordings"
"""Names that no player's own folders have: what is in them is overwritten and removed."""


@dataclass(kw_only=True, slots=True)
class LongPlayConfig(RuntimeSettings):
    """How long, and in which world."""

    world: str | None = setting(
        None, "A shipped world's name, a folder, or a Hugging Face id; null is the first that ships."
    )
    out: str = setting(
        "outputs/long_play",
        "Folder of day.json and of the state to go on from; the same command goes on there. Its folders "
        "day-slots and day-recordings are written to at random, and emptied of recordings now and then.",
    )
    num_frames: int = setting(100_000, "Frames in all, those of earlier runs included.", minimum=1)
    seed: int = setting(0, "Of the play and of the frames.", minimum=0)
    rewind_megabytes: int = setting(128, "Room for the states to rewind to, in 10^6 bytes.", minimum=1)
    compile: str = setting("auto", "How a GPU is given its kernels (docs/agents.md).", choices=COMPILE_MODES)


@entry("long_play", LongPlayConfig)
def main(config: LongPlayConfig) -> None:
    """Play on until there are enough frames, and say how it went."""
    out = Path(config.out)
    with locked_folder(out):
        play(config, out)


def play(config: LongPlayConfig, out: Path) -> None:
    """Play into a folder that is this process's own."""
    game, keys = build_game(config, out)
    env, report, state_file = game.session.env, Report.open(out / DAY_FILE, {}), out / STATE_FILE
    game.restart(None)
    day, state = begin_or_resume(report, state_file, SoakTest, world=env.world.identity)
    first_sample = len(day.samples)
    if state is not None:
        game.session.go_to(state)

    def save() -> None:
        states.save(env.get_state(), state_file, world=env.world.identity)
        report.update(day)
        report.update({"memory_growth": day.growth(first_sample)})
        report.write()

    played = play_at_random(
        game, keys, config.num_frames, seed=config.seed, recordings=out / RECORDINGS, test=day
    )
    frames = (so_far.num_frames for so_far in played)
    run_on(frames, save, begin=day.num_frames, end=config.num_frames, unit="frame")
    game.session.stop_recording()
    growth = day.growth(first_sample)
    grown = "too early to say" if growth is None else f"x {growth:.3f}"
    print(f"{day.num_frames} frames, all numbers finite; memory of the process: {grown}")
    print(f"written to {report.path}")


def build_game(config: LongPlayConfig, out: Path) -> tuple[Game, list[str]]:
    """Return a game without a window, and the names of the keys that play it."""
    num_threads = set_threads(config.threads)
    env = ARL2WorldEnv(config.world, device=config.device, dtype=config.dtype, compile=config.compile)
    print(f"world {env.world.identity}, on {env.device_choice}", flush=True)
    actions = env.world.config.actions
    bindings = bind(actions)
    person = policies.KeyboardPolicy(actions.num_values, bindings.buttons)
    game = Game(
        PlaySession(env, seed=config.seed, rewind_bytes=config.rewind_megabytes * 10**6),
        person,
        {"random": policies.RandomPolicy(actions.num_values)},
        bindings,
        PlayConfig(
            fps=0,
            threads=num_threads,
            slots=str(out / SLOTS),
            recordings=str(out / RECORDINGS),
            screenshots=str(out),
        ),
    )
    return game, sorted(person.keys)


if __name__ == "__main__":
    main()
