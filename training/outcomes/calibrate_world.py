"""Calibration of a finished world's ends on held-out episodes and on its own dreams along them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from training.outcomes.calibration import fit_ends
from worldsim.errors import WorldError
from worldsim.evaluation.inputs.clips import Recordings
from worldsim.evaluation.quality.end_rate import DreamtEpisode, dream_along, end_rates, ends_along, match_rate
from worldsim.evaluation.quality.outcome import summarize_outcomes
from worldsim.evaluation.quality.outcome_predictions import (
    DRAWN,
    GIVEN,
    EpisodePredictions,
    missing_outcome_requirements,
    predict_recordings,
)
from worldsim.evaluation.report.text import format_outcomes
from worldsim.outcome import OutcomeConfig
from worldsim.runtime.config import RuntimeSettings
from worldsim.runtime.cuda_graphs import COMPILE_MODES
from worldsim.settings import REQUIRED, setting
from worldsim.simulator import Simulator, open_simulator

FEW_ENDS = 20
"""With fewer of them a threshold is chosen by chance; that is said."""


@dataclass(kw_only=True, slots=True)
class CalibrationConfig(RuntimeSettings):
    """How a world's ends are calibrated."""

    world: str = setting(
        REQUIRED, "A shipped world's name, a folder, or a hub id, with outcome heads; it stays as it is."
    )
    out: str = setting(
        REQUIRED,
        "A new folder for the world: the same start moments, another calibration. Heads that were trained "
        "are kept in OUT-uncalibrated until they are calibrated.",
    )
    frames: str = setting(
        DRAWN,
        "Frames that outcomes are predicted from: drawn, those that the world draws in the place of recorded "
        "ones, as in play; or given, the recorded ones (as at the end of a training).",
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
    num_episodes: int = setting(0, "Held-out episodes of each folder; 0 is all.", minimum=0)
    batch_size: int = setting(0, "Episodes at a time; 0 is 16 on a CPU, 64 on a GPU, or fewer.", minimum=0)
    seed: int = setting(0, "Of the noise and of all else that is drawn.", minimum=0)
    compile: str = setting("auto", "How a GPU is given its kernels (docs/agents.md).", choices=COMPILE_MODES)


def load_simulator(config: CalibrationConfig) -> Simulator:
    """Load the world, to draw its frames in its own way."""
    simulator = open_simulator(config.world, config.runtime())
    how = f"on {simulator.device_choice}, {simulator.compile_choice}"
    print(f"world {simulator.world.identity}, {simulator.sampler.num_steps} denoising steps, {how}")
    return simulator


def open_recordings(
    config: CalibrationConfig, simulator: Simulator, heldout: Sequence[str]
) -> list[Recordings]:
    """Return the held-out episodes, folder by folder, after checking that they can be calibrated on.

    Raises:
        WorldError: If the world has no outcome heads, or the episodes have other buttons, do not record
            rewards and ends, or hold no end; see also `_check_dreams`.
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
        if problem := missing_outcome_requirements(simulator, recordings):
            raise WorldError(problem)
        ends = [table.terminated for table in recordings.tables()]
        num_ends += sum(int(ended[1:].sum()) for ended in ends if ended is not None)
    if not num_ends:
        raise WorldError(f"no episode in {', '.join(map(str, folders))} ends: none can be calibrated on")
    if config.num_dreams:
        _check_dreams(config, opened)
    if num_ends < FEW_ENDS:
        print(f"only {num_ends} ends to calibrate on: the threshold owes much to chance")
    return opened


def _check_dreams(config: CalibrationConfig, opened: Sequence[Recordings]) -> None:
    """Make sure, before an hour of work, that dreams along these episodes can choose a threshold.

    Raises:
        WorldError: If they fit into no episode of a folder, or the game ends in no place that is dreamt from.
    """
    ended: list[bool] = []
    for recordings in opened:
        if (longest := max(recordings.lengths)) <= config.context_frames:
            raise WorldError(
                f"context_frames={config.context_frames}: dreams begin after so many recorded "
                f"frames, and the longest episode in {recordings.folder} has {longest}"
            )
        ended += ends_along(recordings, **_dream_counts(config, opened))
    if not any(ended):
        raise WorldError(
            f"in none of the {len(ended)} places that are dreamt from does the game end within "
            f"{config.horizon} frames: give a larger num_dreams or horizon"
        )


def _dream_counts(config: CalibrationConfig, opened: Sequence[Recordings]) -> dict[str, int]:
    """Return number, lengths and seed of the dreams along each folder: equally many in each."""
    return {
        "num_dreams": -(-config.num_dreams // len(opened)),
        "context_frames": config.context_frames,
        "horizon": config.horizon,
        "seed": config.seed,
    }


def calibrate_ends(
    config: CalibrationConfig, simulator: Simulator, opened: Sequence[Recordings]
) -> tuple[OutcomeConfig, str]:
    """Fit the meaning of the heads' numbers on held-out episodes; prints what that changes.

    Args:
        config: How.
        simulator: Of the world.
        opened: The episodes, from `open_recordings`.

    Returns:
        What the heads' numbers mean, and a sentence for the world's card.

    Raises:
        WorldError: If nothing can be fitted; see `fit` and `match_rate`.
    """
    before = simulator.world.config.outcome
    assert before is not None, "was looked for"
    batch_size = config.batch_size or (64 if simulator.world.device.type == "cuda" else 16)
    predictions: dict[str, list[EpisodePredictions]] = {GIVEN: [], DRAWN: []}
    for recordings in opened:
        print(f"{len(recordings.episodes)} episodes, {sum(recordings.lengths)} frames in {recordings.folder}")
        options = {"batch_size": batch_size, "seed": config.seed, "with_drawn": True}
        for kind, episodes in predict_recordings(simulator, recordings, **options).items():
            predictions[kind] += episodes
    after = fit(predictions[config.frames], before)
    dreamt: list[DreamtEpisode] = []
    if config.num_dreams:
        counts = _dream_counts(config, opened) | {"batch_size": batch_size}
        for recordings in opened:
            dreamt += dream_along(simulator, recordings, **counts)
        after = match_rate(dreamt, after)
    print(f"\n{format_change(predictions, before, after)}")
    entry = describe_calibration(config, opened, predictions[config.frames], before, after)
    if dreamt:
        print(f"\ndreams before: {describe_rates(dreamt, before)}")
        rates = describe_rates(dreamt, after)
        print(f"\ndreams after: {rates}")
        entry += f"; the threshold chosen by dreams: {rates}"
    return after, entry


def describe_rates(dreamt: Sequence[DreamtEpisode], meaning: OutcomeConfig) -> str:
    """Return the rate of ends in dreams and in the game, in words."""
    rates = end_rates(dreamt, meaning)
    per_thousand = f"{1000 * rates.dreams:.2f} and {1000 * rates.game:.2f} ends in 1,000 frames"
    return (
        f"at {meaning.end_threshold:.4g} {rates.num_dreams} of {len(dreamt)} end, the game in "
        f"{rates.num_game} of these places ({per_thousand})"
    )


def fit(predictions: Sequence[EpisodePredictions], before: OutcomeConfig) -> OutcomeConfig:
    """Return the new calibration.

    Raises:
        WorldError: If the head does not tell ends apart: the world could only never end.
    """
    if not all(episode.logits.isfinite().all() for episode in predictions):
        raise WorldError(
            "the termination head returned NaN or inf for some frames: cannot fit the calibration"
        )
    after, point = fit_ends(predictions, before)
    if point is None:
        raise WorldError(
            "what the world's head says of ends and of other frames is no different: a calibration cannot "
            "help, it needs training (python -m training.outcome_heads)"
        )
    return after


def format_change(
    predictions: Mapping[str, Sequence[EpisodePredictions]], before: OutcomeConfig, after: OutcomeConfig
) -> str:
    """Return how well ends are found before and after, on drawn and on recorded frames, in some lines."""
    paragraphs = []
    for kind, episodes in predictions.items():
        for when, meaning in (("before", before), ("after", after)):
            report = summarize_outcomes([one.calibrated(meaning) for one in episodes], meaning.end_threshold)
            paragraphs.append(f"frames that were {kind}, {when}\n{format_outcomes(report)}")
    return "\n\n".join(paragraphs)


def describe_calibration(
    config: CalibrationConfig,
    opened: Sequence[Recordings],
    predictions: Sequence[EpisodePredictions],
    before: OutcomeConfig,
    after: OutcomeConfig,
) -> str:
    """Return a sentence for the world's card: on what it was calibrated, and what that changed."""
    report = summarize_outcomes([one.calibrated(after) for one in predictions], after.end_threshold)
    point = report.ends.at_threshold
    names = ", ".join(recordings.info.name for recordings in opened)
    num_frames = sum(len(one.ends) for one in predictions)
    num_ends = sum(int(one.ends.sum()) for one in predictions)
    drawn = "frames that the world drew in the place of recorded ones"
    what = drawn if config.frames == DRAWN else "frames that were recorded"
    old, new = asdict(before), asdict(after)
    changes = ", ".join(
        f"{name} {old[name]:.4g} to {new[name]:.4g}" for name in new if name.startswith("end_")
    )
    counts = f"{len(predictions)} episodes, {num_ends} ends, seed {config.seed}"
    return (
        f"ends, on {num_frames:,} {what} ({names}; {counts}): "
        f"{changes}; {point.found} ends found there, {point.false_alarms} false alarms"
    )
