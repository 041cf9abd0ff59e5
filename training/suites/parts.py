"""The parts of the consistency suite: each measures all worlds and puts what it found into the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from worldsim.errors import WorldError
from worldsim.evaluation.cost.step_time import EARLY, MARKS, measure_growth
from worldsim.evaluation.inputs.out_and_back import ReturnSet
from worldsim.evaluation.memory.continuation import (
    FRESH_ROOMS,
    ROOM_FRAMES,
    find_masks,
    measure_continuation,
    seen_rooms,
    seen_tiles,
    summarize_continuation,
)
from worldsim.evaluation.memory.interventions import INTERVENTIONS, Way, can_intervene
from worldsim.evaluation.memory.pairs import measure_pairs, summarize_pairs
from worldsim.evaluation.memory.probe import collect_samples, probe
from worldsim.evaluation.memory.recall import (
    CODEC,
    COPY,
    GapScores,
    film_frames,
    measure_returns,
    summarize,
    summarize_changes,
)
from worldsim.evaluation.memory.tiles import absences, summarize_absences
from worldsim.evaluation.quality.fidelity import (
    FidelitySettings,
    cut_segments,
    dream_features,
    real_features,
    summarize_fidelity,
)
from worldsim.evaluation.quality.idle import idle_hold
from worldsim.evaluation.quality.long_rollouts import (
    control_calibration,
    pairs_of,
    summarize_control,
    summarize_drift,
)
from worldsim.evaluation.report.films import write_strips
from worldsim.evaluation.report.page import FILMS_FOLDER
from worldsim.simulator import Simulator

if TYPE_CHECKING:
    from training.suites.consistency import Suite

LEAST_PROBED = 5
"""Episodes that a probe needs: three kinds of them, and two to be tested on."""


def measure_recall(suite: Suite, part: dict[str, Any]) -> None:
    """Measure return recall against the gap."""
    for gap in suite.recall_gaps:
        returns = suite.recall_sets[gap]
        scores = measure_returns(suite.simulators, returns, [Way.KEPT], suite.settings)
        _put_recall(part, str(gap), returns, scores)
        strips = write_strips(suite.out / FILMS_FOLDER, gap, scores.films)
        films = suite.report.setdefault("films", {}).setdefault(str(gap), {"strips": {}})
        films["frames"] = film_frames(gap)
        films["strips"] |= strips


def _put_recall(part: dict[str, Any], gap: str, returns: ReturnSet, scores: GapScores) -> None:
    first = scores.dreams[next(iter(scores.dreams))][Way.KEPT]
    described = returns.describe() | {"metrics": list(first)}
    known = part.setdefault("episodes", {}).get(gap)
    if known is not None and known["names"] != described["names"]:
        raise WorldError(f"the episodes of gap {gap} are others than before; choose another out= folder")
    part["episodes"][gap] = described
    for name, ways in scores.dreams.items():
        found = summarize(ways[Way.KEPT], scores.seen, scores.names)
        found["memory_bytes"] = scores.memory_bytes[name]
        if name in scores.right:
            right = scores.right[name]
            absent = [absences(poses, returns.turn, right.shape[2:]) for poses in returns.poses()]
            found["absent_tiles"] = summarize_absences(right, np.stack(absent), scores.names)
        part["worlds"].setdefault(name, {})[gap] = found
    for method in (COPY, CODEC):
        found = summarize(scores.references[method], scores.seen, scores.names)
        part.setdefault("references", {}).setdefault(method, {})[gap] = found


def measure_interventions(suite: Suite, part: dict[str, Any]) -> None:
    """Empty, freeze and swap the states at the turn."""
    able = {name: s for name, s in suite.simulators.items() if can_intervene(s)}
    without = [name for name in suite.simulators if name not in able]
    part.setdefault("skipped", {}).update(dict.fromkeys(without, "has no recurrent states that stay"))
    for gap in suite.intervention_gaps if able else ():
        returns = suite.recall_sets[gap].first(suite.config.num_turns)
        scores = measure_returns(able, returns, [Way.KEPT, *INTERVENTIONS], suite.settings)
        for name, by_way in scores.dreams.items():
            found: dict[str, Any] = {}
            for way, values in by_way.items():
                found[str(way)] = summarize(values, scores.seen, scores.names)
                if way != Way.KEPT:
                    change = summarize_changes(values, by_way[Way.KEPT], scores.seen, scores.names)
                    found[str(way)]["change"] = change
            part["worlds"].setdefault(name, {})[str(gap)] = found


def measure_paired(suite: Suite, part: dict[str, Any]) -> None:
    """Exchange what the two episodes of a pair remember."""
    for gap, pairs in suite.pair_sets.items():
        for name, simulator in suite.announced():
            found = summarize_pairs(measure_pairs(simulator, pairs, suite.settings))
            part["worlds"].setdefault(name, {})[str(gap)] = found


def measure_control(suite: Suite, part: dict[str, Any]) -> None:
    """Hold opposite buttons early and late in long dreams."""
    layout, config = suite.actions, suite.config
    part.pop("skipped", None)
    if not pairs_of(layout):
        part["skipped"] = "of no two buttons is it known that they move the picture in opposite ways"
        print(part["skipped"], flush=True)
    part["calibration"] = control_calibration(suite.starts, layout, config.num_episodes, suite.run.seed)
    for name, _ in suite.announced():
        part["worlds"][name] = summarize_control(suite.long_dreams(name), layout)


def measure_drift(suite: Suite, part: dict[str, Any]) -> None:
    """Compare the pictures of long dreams with those of the real game."""
    for name, _ in suite.announced():
        part["worlds"][name] = summarize_drift(suite.long_dreams(name))


def measure_fidelity(suite: Suite, part: dict[str, Any]) -> None:
    """Compare the frames of dreams under recorded actions with real ones, as distributions."""
    config, network = suite.config, suite.feature_network
    found = suite.recall_sets[suite.fidelity_gap]
    returns = found.first(max(2, config.num_fidelity))
    segments = cut_segments(min(config.fidelity_frames, 2 * returns.gap))
    described = {
        "gap": returns.gap,
        "names": returns.names,
        "frames": [segment.frames for segment in segments],
        "frames_a_side": len(returns) // 2 * len(segments[0].frames),
        "num_features": network.num_features,
        "feature_network": network.digest(),
    }
    if part.setdefault("episodes", described) != described:
        raise WorldError(
            "fidelity was measured on other episodes or frames, or by another feature network, before; "
            "choose another out= folder"
        )
    settings = FidelitySettings(
        segments=segments, batch_size=suite.settings.batch_size, seed=suite.run.seed, show_progress=True
    )
    real = real_features(returns, network, settings)
    part["real"] = summarize_fidelity(real, real, segments)
    for name, simulator in suite.announced():
        dreamt, decoded = dream_features(simulator, returns, network, settings)
        part["worlds"][name] = {
            "dream": summarize_fidelity(dreamt, real, segments),
            "codec": summarize_fidelity(decoded, real, segments),
        }


def measure_idle(suite: Suite, part: dict[str, Any]) -> None:
    """Press nothing for a long time."""
    config = suite.config
    for name, simulator in suite.announced():
        part["worlds"][name] = idle_hold(
            on_cpu(simulator),
            suite.starts.recordings,
            num_starts=config.num_idle,
            num_frames=config.idle_frames,
            context_frames=suite.starts.turn,
            batch_size=suite.settings.batch_size,
            seed=suite.run.seed,
            show_progress=True,
        )


def on_cpu(simulator: Simulator) -> Simulator:
    """Return a simulator of the same kind that returns its frames where NumPy can have them."""
    return type(simulator)(simulator.world, simulator.sampler)


def measure_masked(suite: Suite, part: dict[str, Any]) -> None:
    """Score parts that the context shows and parts that it does not apart."""
    pixels = suite.config.tile_pixels
    part.pop("skipped", None)
    for gap in suite.intervention_gaps:
        returns, most_frames = suite.recall_sets[gap].first(suite.config.num_turns), 0
        if pixels:
            find = seen_tiles((suite.size[0] // pixels, suite.size[1] // pixels), pixels)
        elif returns.recordings.info.name == FRESH_ROOMS:
            find, most_frames = seen_rooms(suite.size), ROOM_FRAMES
        else:
            part["skipped"] = (
                f"which parts were in view before is known of tiles (set consistency.tile_pixels) and of "
                f"{FRESH_ROOMS} only"
            )
            print(part["skipped"], flush=True)
            return
        masks = find_masks(returns, find, most_frames, show_progress=True)
        for name, simulator in suite.announced():
            scores = measure_continuation(
                simulator,
                returns,
                masks,
                batch_size=suite.settings.batch_size,
                seed=suite.run.seed,
                show_progress=True,
            )
            summary = summarize_continuation(scores) | {"frames_an_episode": len(masks.frames)}
            part["worlds"].setdefault(name, {})[str(gap)] = summary


def measure_probe(suite: Suite, part: dict[str, Any]) -> None:
    """Read position and past pictures out of the states."""
    gap = next(iter(suite.intervention_gaps))
    returns = suite.recall_sets[gap]
    if len(returns) < LEAST_PROBED:
        part["skipped"] = f"{len(returns)} episodes are too few for a probe, which takes {LEAST_PROBED}"
        print(part["skipped"], flush=True)
        return
    for name, simulator in suite.announced():
        if simulator.world.config.denoiser.layer_counts["full"]:
            print("not measured: its memory grows, and all that was seen lies in it", flush=True)
            continue
        samples = collect_samples(
            simulator,
            returns,
            batch_size=suite.settings.batch_size,
            seed=suite.run.seed,
            show_progress=True,
        )
        part["worlds"][name] = {"gap": gap, "targets": probe(samples, suite.run.seed)}


def measure_cost(suite: Suite, part: dict[str, Any]) -> None:
    """Measure whether a step costs the same at any frame."""
    marks = [mark for mark in MARKS if mark <= max(EARLY, suite.config.cost_frames)]
    batch = next(suite.starts.batches(2))
    for name, simulator in suite.announced():
        if name in suite.zeroed:
            continue  # it would cost the same
        state = batch.clips.begin_dreams(simulator, 1, suite.run.seed).rows([0])
        part["worlds"][name] = measure_growth(
            simulator, state, marks=marks, seed=suite.run.seed, show_progress=True
        )


MEASURES: Mapping[str, Callable[[Suite, dict[str, Any]], None]] = {
    "recall": measure_recall,
    "interventions": measure_interventions,
    "pairs": measure_paired,
    "controllability": measure_control,
    "drift": measure_drift,
    "fidelity": measure_fidelity,
    "idle": measure_idle,
    "continuation": measure_masked,
    "probe": measure_probe,
    "cost": measure_cost,
}
"""By the name of the part, in the order in which they are measured."""
