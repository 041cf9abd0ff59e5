"""Settings of `python -m training.learn`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from training.learn.before import Before
from training.learn.plan import SHARES
from worldsim.errors import WorldError
from worldsim.games.gym.game import name_of
from worldsim.games.registry import GAMES, find_game
from worldsim.settings import check_settings, setting
from worldsim.storage.files import user_path

SOURCES = ("scenario", "env", "data")
"""What a world can learn from."""


@dataclass(kw_only=True, slots=True)
class LearnConfig:
    """What to learn, and in what time."""

    scenario: str | None = setting(None, f"One of the games that this project knows: {', '.join(GAMES)}.")
    env: str | None = setting(
        None, "Instead of it: id of a Gymnasium environment, as training.collect takes it."
    )
    data: str | None = setting(
        None,
        "Instead of both: folder of gameplay video, with train and heldout inside, or of recordings in "
        "another format that training.ingest reads.",
    )
    init: str | None = setting(
        None,
        "A world to go on from, a shipped name or a folder: its network learns on, with the codec that it "
        "has, from fresh video of its own game. Its file says which that is, and who played; else "
        "scenario, env or data beside it.",
    )
    out: str | None = setting(
        None,
        "Folder of all that is made; null is runs/learn- and the game's name, with init the world's and the "
        "beginning of its checksum.",
    )
    minutes: float = setting(
        60.0,
        f"For all of it, counted from the start of this command: at most {SHARES['collect']:.0%} recording, "
        f"{SHARES['evaluate']:.0%} measuring, and as much for what comes between the last update and that; "
        "codec and world share the rest as 2 to 5, their starts and checkpoints included. With more of "
        "them the same command trains the world that it has made for longer.",
        above=0,
    )
    device: str = setting(
        "auto", "What the sizes are for; auto is gpu if PyTorch finds one.", choices=("auto", "cpu", "gpu")
    )
    num_frames: int | None = setting(
        None,
        "Training frames to record; null is what fits into the minutes, with init as many as the network "
        "sees ten times. collect=[num_frames=...] comes before it.",
        minimum=1,
    )
    must_pass: bool | None = setting(
        None,
        "Whether to end where training.check finds something wrong; null is true for data, false for what "
        "this command records itself (short games of few moves look like one another).",
    )
    collect: list[str] = setting(
        [],
        "More settings of training.collect, which come before those of this command: "
        "[own=my_game:play,game.frame_skip=2].",
    )
    ingest: list[str] = setting([], "More settings of training.ingest, the same way.")
    codec: list[str] = setting([], "More settings of training.codec.")
    pretrain: list[str] = setting([], "More settings of training.pretrain.")
    finetune: list[str] = setting([], "More settings of training.finetune, which trains on with init.")
    evaluate: list[str] = setting([], "More settings of training.evaluate.")

    def __post_init__(self) -> None:
        check_settings(self)
        given = [f"{name}=" for name in SOURCES if getattr(self, name) is not None]
        if len(given) > 1:
            raise WorldError(
                f"a world learns from one of scenario=, env= and data=, got {' and '.join(given)}"
            )
        if self.scenario is not None:
            find_game(self.scenario)
        if self.init is not None and (self.codec or self.pretrain):
            name = "codec" if self.codec else "pretrain"
            raise WorldError(f"{name}= is of a world from nothing: with init= give finetune=[...]")
        if self.init is None and self.finetune:
            raise WorldError("finetune= is of a world that goes on: give init=, or pretrain=[...]")

    @property
    def folder(self) -> Path:
        """Where everything goes.

        Raises:
            WorldError: If nothing says what to learn, or there is no world to go on from.
        """
        if self.init is None and all(getattr(self, name) is None for name in SOURCES):
            raise WorldError(
                "say what to learn: scenario=NAME, env=ID or data=FOLDER, or init=WORLD to go on from a world"
            )
        if self.out is not None:
            return user_path(self.out)
        if self.init is not None:
            before = Before.find(self.init)
            return Path(f"runs/learn-{name_of(before.config.name)}-{before.digest[:8]}")
        if self.env is not None:
            return Path(f"runs/learn-{name_of(self.env)}")
        return Path(f"runs/learn-{self.scenario or user_path(self.data or '').resolve().name}")
