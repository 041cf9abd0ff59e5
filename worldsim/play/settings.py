"""Settings of `python play.py`."""

from __future__ import annotations

from dataclasses import dataclass

from worldsim.games.gym.apart import STEP_TIMEOUT
from worldsim.games.gym.config import GymConfig
from worldsim.runtime.config import RuntimeSettings
from worldsim.seeds import find_seed
from worldsim.settings import setting


@dataclass(kw_only=True, slots=True)
class PlayConfig(RuntimeSettings):
    """What to play and how."""

    world: str | None = setting(
        None,
        "A shipped world's name, a folder, or a Hugging Face id. null lets you choose among the worlds that "
        "ship and their start moments in a window; where nobody is asked (no display, or steps, start or a "
        "program to play are given), it is the first.",
    )
    env: str | None = setting(
        None,
        "Instead of a world: play the id of a Gymnasium environment, or MODULE:NAME of what makes one, in a "
        "window, and record it so that training.learn data=FOLDER can learn from it; FOLDER is record=, or "
        "data/NAME-played.",
    )
    game: GymConfig = setting(GymConfig, "Of env: how it is made, seen and pressed.")
    step_timeout: float = setting(
        STEP_TIMEOUT,
        "Of env: seconds that it may take for a step before it counts as hung; to be made, and to begin an "
        "episode, it has a minute at least.",
        above=0,
    )
    start: str | None = setting(
        None,
        "Start moment, by number or name, or a picture of yours, FILE.png; null draws one with the seed.",
    )
    seed: int | str = setting(
        0,
        "Of the start moment, the frames and the players; today is that of the date in UTC, and each game "
        "begins with it: everybody plays the same dream.",
    )
    policy: str = setting(
        "auto",
        "auto (you, or without a display the scripted player; where none fits, a policy that ships with the "
        "world, or else random), keyboard, scripted, random, ppo (a learned player), still, to-and-fro, "
        "recorded, or a recording's FILE.jsonl.",
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
        "without a display, unless a recording is replayed, and nothing with one; '' never records. Of env "
        "a folder, in which train and heldout are made, or added to.",
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
        "be `mouse left`, `mouse right`, `mouse up` and `mouse down`.",
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
    best: str = setting(
        "best",
        "Folder of the best games of each world that counts a score: the table and a recording of each; '' "
        "keeps none.",
    )
    clips: str = setting("clips", "Folder of clips, the last 15 seconds of play.")

    def __post_init__(self) -> None:
        RuntimeSettings.__post_init__(self)
        find_seed(self.seed)
