"""Calibrate a finished world's ends on frames that it draws itself: `python -m training.calibrate`.

Writes a new world: the same weights with another `outcome`, of which its card tells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from training.cli.entry import entry
from training.engine.lock import locked_folder
from training.engine.train_world import add_provenance
from training.outcomes.calibration import fit_ends
from worldsim.errors import WorldError
from worldsim.evaluation.inputs.clips import Recordings
from worldsim.evaluation.quality.end_rate import DreamtEpisode, dream_along, end_rates, ends_along, match_rate
from worldsim.evaluation.quality.outcome import format_outcomes, summarize_outcomes
from worldsim.evaluation.quality.outcome_predictions import (
    DRAWN,
    GIVEN,
    HeardEpisode,
    hear_recordings,
    why_not_judged,
)
from worldsim.outcome import OutcomeConfig
from worldsim.runtime.config import RuntimeSettings
from worldsim.runtime.cuda_graphs import COMPILE_MODES
from worldsim.settings import REQUIRED, setting
from worldsim.simulator import Simulator, open_simulator
from worldsim.world.rewrite import check_described, save_described

FEW_ENDS = 20
"""With fewer of them a threshold is chosen by chance; that is said."""


@dataclass(kw_only=True, slots=True)
class HeldoutConfig:
    """Dataset folders of episodes that the world has not learned from."""

    heldout: list[str] = setting(
        REQUIRED, "Episodes with rewards and ends that the world has not learned from; some must end."
    )


@dataclass(kw_only=True, slots=True)
class CalibrationConfig(RuntimeSettings):
    """How a world's ends are calibrated."""

    world: str = setting(
        REQUIRED,
        "A shipped world's name, a folder, or a Hugging Face id; it stays as it is, and must have outcome "
        "heads.",
    )
    out: str = setting(
        REQUIRED,
        "A new folder for the world: the same start moments, another calibration. Heads that were trained "
        "are kept in OUT-uncalibrated until they are calibrated.",
    )
    frames: str = setting(
        DRAWN,
        "What is judged in the place of each recorded frame: drawn, the one that the world draws there, as "
        "in play; or given, the recorded one (as at the end of a training).",
        choices=(DRAWN, GIVEN),
    )
    num_dreams: int = setting(
        128,
        "The threshold is then chosen so that so many dreams end as often as the game. 0 takes the one that "
        "finds most ends at 90 % precision among the frames above.",
        minimum=0,
    )
    context_frames: int = setting(32, "Recorded frames before each dream.", minimum=1)
    horizon: int = setting(64, "Frames of each dream, under the recorded actions.", minimum=1)
    num_episodes: int = setting(
        0, "Use only the first so many held-out episodes of each folder; 0 is all.", minimum=0
    )
    batch_size: int = setting(
        0, "Episodes at a time; 0 is 16 on a CPU and 64 on a GPU, fewer where they are long.", minimum=0
    )
    seed: int = setting(
        0, "Of the noise that frames are drawn from, and of all else that is drawn.", minimum=0
    )
    compile: str = setting("auto", "How a GPU is given its kernels (docs/agents.md).", choices=COMPILE_MODES)


@dataclass(kw_only=True, slots=True)
class CalibrateConfig(CalibrationConfig):
    """Settings of `python -m training.calibrate`."""

    data: HeldoutConfig = setting(lambda: HeldoutConfig(heldout=[]), "Recorded play.")


@entry("calibrate", CalibrateConfig)
def main(config: CalibrateConfig) -> None:
    """Hear what the world says of held-out episodes, fit what it means, write the world."""
    simulator = load_simulator(config)
    world, out = simulator.world, Path(config.out)
    check_described(world, out)
    with locked_folder(out, is_new=True):
        recordings = open_recordings(config, simulator, config.data.heldout)
        after, entry = calibrate_ends(config, simulator, recordings)
        provenance = add_provenance(world.config.provenance, "calibration", entry)
        save_described(world, replace(world.config, outcome=after, provenance=provenance), out)
    print(f"\nworld in {out}")


def calibrate_ends(
    config: CalibrationConfig, simulator: Simulator, opened: Sequence[Recordings]
) -> tuple[OutcomeConfig, str]:
    """Hear what a world says of held-out episodes and fit what it means; prints what that changes.

    Args:
        config: How.
        simulator: Of the world.
        opened: The episodes, from `open_recordings`.

    Returns:
        What the heads' numbers mean, and a sentence for the world's card.

    Raises:
        WorldError: If nothing can be fitted; see `fit` and `match_rate`.
    """
    heard = hear_all(config, simulator, opened)
    before = simulator.world.config.outcome
    assert before is not None, "was looked for"
    after = fit(heard[config.frames], before)
    dreamt = dream_all(config, simulator, opened)
    if dreamt:
        after = match_rate(dreamt, after)
    print(f"\n{format_change(heard, before, after)}")
    for when, meaning in (("before", before), ("after", after)):
        if dreamt:
            print(f"\ndreams {when}: {describe_rates(dreamt, meaning)}")
    entry = describe_calibration(config, opened, heard[config.frames], before, after)
    if dreamt:
        entry += f"; the threshold chosen by dreams: {describe_rates(dreamt, after)}"
    return after, entry


def load_simulator(config: CalibrationConfig) -> Simulator:
    """Load the world, to draw its frames in its own way."""
    simulator = open_simulator(config.world, config.runtime())
    how = f"on {simulator.device_choice}, {simulator.compile_choice}"
    print(f"world {simulator.world.identity}, {simulator.sampler.num_steps} denoising steps, {how}")
    return simulator


def open_recordings(
    config: CalibrationConfig, simulator: Simulator, heldout: Sequence[str]
) -> list[Recordings]:
    """Return the held-out episodes, folder by folder, after looking whether they can be calibrated on.

    Raises:
        WorldError: If the world has no outcome heads, or the episodes have other buttons, do not record
            rewards and ends, or hold no end; see also `check_dreams`.
    """
    described, folders = simulator.world.config, [Path(folder) for folder in heldout]
    if described.outcome is None:
        raise WorldError(f"world {described.name!r} has no outcome heads: there is nothing to calibrate")
    if not folders:
        raise WorldError("data.heldout names no folder of held-out episodes")
    size = (described.height, described.width)
    opened = [Recordings(folder, described.actions, size, config.num_episodes) for folder in folders]
    num_ends = 0
    for recordings in opened:
        if problem := why_not_judged(simulator, recordings):
            raise WorldError(problem)
        ends = [table.terminated for table in recordings.tables()]
        num_ends += sum(int(ended[1:].sum()) for ended in ends if ended is not None)
    if not num_ends:
        raise WorldError(f"no episode in {', '.join(map(str, folders))} ends: none can be calibrated on")
    check_dreams(config, opened)
    if num_ends < FEW_ENDS:
        print(f"only {num_ends} ends to calibrate on: the threshold owes much to chance")
    return opened


def hear_all(
    config: CalibrationConfig, simulator: Simulator, opened: Sequence[Recordings]
) -> dict[str, list[HeardEpisode]]:
    """Return what the world says of all episodes, of recorded frames and of drawn ones."""
    batch_size = config.batch_size or (64 if simulator.world.device.type == "cuda" else 16)
    heard: dict[str, list[HeardEpisode]] = {GIVEN: [], DRAWN: []}
    for recordings in opened:
        print(f"{len(recordings.episodes)} episodes, {sum(recordings.lengths)} frames in {recordings.folder}")
        found = hear_recordings(
            simulator,
            recordings,
            batch_size=batch_size,
            with_drawn=True,
            seed=config.seed,
            show_progress=True,
        )
        for kind, episodes in found.items():
            heard[kind] += episodes
    return heard


def dream_all(
    config: CalibrationConfig, simulator: Simulator, opened: Sequence[Recordings]
) -> list[DreamtEpisode]:
    """Dream along held-out episodes, equally often in each folder."""
    batch_size = config.batch_size or (64 if simulator.world.device.type == "cuda" else 16)
    dreamt: list[DreamtEpisode] = []
    if config.num_dreams:
        for recordings in opened:
            dreamt += dream_along(
                simulator,
                recordings,
                num_dreams=-(-config.num_dreams // len(opened)),
                context_frames=config.context_frames,
                horizon=config.horizon,
                batch_size=batch_size,
                seed=config.seed,
                show_progress=True,
            )
    return dreamt


def check_dreams(config: CalibrationConfig, opened: Sequence[Recordings]) -> None:
    """Make sure, before an hour of work, that dreams along these episodes can choose a threshold.

    Raises:
        WorldError: If they fit into no episode of a folder, or the game ends in no place that is dreamt from.
    """
    if not config.num_dreams:
        return
    ended: list[bool] = []
    for recordings in opened:
        if (longest := max(recordings.lengths)) <= config.context_frames:
            raise WorldError(
                f"context_frames={config.context_frames}: dreams begin after so many recorded "
                f"frames, and the longest episode in {recordings.folder} has {longest}"
            )
        ended += ends_along(
            recordings,
            num_dreams=-(-config.num_dreams // len(opened)),
            context_frames=config.context_frames,
            horizon=config.horizon,
            seed=config.seed,
        )
    if not any(ended):
        raise WorldError(
            f"in none of the {len(ended)} places that are dreamt from does the game end within "
            f"{config.horizon} frames: give a larger num_dreams or horizon"
        )


def describe_rates(dreamt: Sequence[DreamtEpisode], meaning: OutcomeConfig) -> str:
    """Return how often dreams end beside the game."""
    rates = end_rates(dreamt, meaning)
    per_thousand = f"{1000 * rates.dreams:.2f} and {1000 * rates.game:.2f} ends in 1,000 frames"
    return (
        f"at {meaning.end_threshold:.4g} {rates.num_dreams} of {len(dreamt)} end, the game in "
        f"{rates.num_game} of these places ({per_thousand})"
    )


def fit(heard: Sequence[HeardEpisode], before: OutcomeConfig) -> OutcomeConfig:
    """Return the new calibration.

    Raises:
        WorldError: If the head does not tell ends apart: the world could only never end.
    """
    if not all(episode.logits.isfinite().all() for episode in heard):
        raise WorldError(
            "the termination head returned NaN or inf for some frames: cannot fit the calibration"
        )
    after, point = fit_ends(heard, before)
    if point is None:
        raise WorldError(
            "what the world's head says of ends and of other frames is no different: a calibration cannot "
            "help, it needs training (python -m training.outcome_heads)"
        )
    return after


def format_change(
    heard: Mapping[str, Sequence[HeardEpisode]], before: OutcomeConfig, after: OutcomeConfig
) -> str:
    """Return how well ends are found before and after, on drawn and on recorded frames, in some lines."""
    paragraphs = []
    for kind, episodes in heard.items():
        for when, meaning in (("before", before), ("after", after)):
            report = summarize_outcomes([one.judged(meaning) for one in episodes], meaning.end_threshold)
            paragraphs.append(f"frames that were {kind}, {when}\n{format_outcomes(report)}")
    return "\n\n".join(paragraphs)


def describe_calibration(
    config: CalibrationConfig,
    opened: Sequence[Recordings],
    heard: Sequence[HeardEpisode],
    before: OutcomeConfig,
    after: OutcomeConfig,
) -> str:
    """Return a sentence for the world's card: on what it was calibrated, and what that changed."""
    point: dict[str, Any] = summarize_outcomes([one.judged(after) for one in heard], after.end_threshold)[
        "ends"
    ]["at_threshold"]
    names = ", ".join(recordings.info.name for recordings in opened)
    num_frames, num_ends = sum(len(one.ends) for one in heard), sum(int(one.ends.sum()) for one in heard)
    what = (
        "frames that the world drew in the place of recorded ones"
        if config.frames == DRAWN
        else "frames that were recorded"
    )
    old, new = asdict(before), asdict(after)
    changes = ", ".join(
        f"{name} {old[name]:.4g} to {new[name]:.4g}" for name in new if name.startswith("end_")
    )
    counts = f"{len(heard)} episodes, {num_ends} ends, seed {config.seed}"
    return (
        f"ends, on {num_frames:,} {what} ({names}; {counts}): "
        f"{changes}; {point['found']} ends found there, {point['false_alarms']} false alarms"
    )


if __name__ == "__main__":
    main()
