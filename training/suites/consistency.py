"""Consistency suite: what worlds remember, `python -m training.evaluate suite=consistency`.

Writes OUT/report.json anew after each part and OUT/report.html at the end: a stopped run keeps what it has,
and parts or worlds that another run measured on the same episodes stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from training.suites.consistency_inputs import REPORT_FILE, Inputs
from training.suites.settings import CONSISTENCY_PARTS, EvaluateConfig
from worldsim.errors import WorldError
from worldsim.evaluation.cost.step_time import EARLY, MARKS, measure_growth
from worldsim.evaluation.inputs.out_and_back import ReturnSet
from worldsim.evaluation.memory import continuation, recall
from worldsim.evaluation.memory.comparison import compare_worlds, zeroed_name
from worldsim.evaluation.memory.interventions import (
    INTERVENTIONS,
    IntervenedSimulator,
    Intervention,
    can_intervene,
)
from worldsim.evaluation.memory.pairs import measure_pairs, summarize_pairs
from worldsim.evaluation.memory.probe import collect_samples, probe
from worldsim.evaluation.memory.tiles import absences, summarize_absences
from worldsim.evaluation.quality import fidelity, long_rollouts
from worldsim.evaluation.quality.idle import idle_hold
from worldsim.evaluation.report.page import FILMS_FOLDER, PAGE_FILE, write_page
from worldsim.evaluation.report.pictures import write_strips
from worldsim.evaluation.report.report import describe_run
from worldsim.evaluation.report.targets import check_memory
from worldsim.evaluation.report.text import format_targets
from worldsim.simulator import Simulator

MIN_PROBED = 5
"""Episodes that a probe needs: three kinds of them, and two to be tested on."""


def _skip(part: dict[str, Any], why: str) -> None:
    part["skipped"] = why
    print(why, flush=True)


def measure_recall(inputs: Inputs, part: dict[str, Any]) -> None:
    """Measure return recall against the gap."""
    for gap in inputs.recall_gaps:
        returns = inputs.recall_sets[gap]
        scores = recall.measure_returns(inputs.simulators, returns, [Intervention.NONE], inputs.settings)
        _put_recall(part, str(gap), returns, scores)
        strips = write_strips(inputs.report.path.parent / FILMS_FOLDER, gap, scores.films)
        films = inputs.report.data.setdefault("films", {}).setdefault(str(gap), {"strips": {}})
        films["frames"] = recall.film_frames(gap)
        films["strips"] |= strips


def _put_recall(part: dict[str, Any], gap: str, returns: ReturnSet, scores: recall.GapScores) -> None:
    first = scores.dreams[next(iter(scores.dreams))][Intervention.NONE]
    described = returns.describe() | {"metrics": list(first)}
    known = part.setdefault("episodes", {}).get(gap)
    if known is not None and known["names"] != described["names"]:
        raise WorldError(f"the episodes of gap {gap} are others than before; choose another out= folder")
    part["episodes"][gap] = described
    for name, ways in scores.dreams.items():
        found = recall.summarize(ways[Intervention.NONE], scores.seen, scores.names)
        found["memory_bytes"] = scores.memory_bytes[name]
        if name in scores.right:
            right = scores.right[name]
            absent = [absences(poses, returns.turn, right.shape[2:]) for poses in returns.poses()]
            found["absent_tiles"] = summarize_absences(right, np.stack(absent), scores.names)
        part["worlds"].setdefault(name, {})[gap] = found
    for method in (recall.COPY, recall.CODEC):
        found = recall.summarize(scores.references[method], scores.seen, scores.names)
        part.setdefault("references", {}).setdefault(method, {})[gap] = found


def measure_interventions(inputs: Inputs, part: dict[str, Any]) -> None:
    """Empty, freeze and swap the states at the turn."""
    able = {name: s for name, s in inputs.simulators.items() if can_intervene(s)}
    without = [name for name in inputs.simulators if name not in able]
    part.setdefault("skipped", {}).update(dict.fromkeys(without, "has no recurrent states that stay"))
    for gap in inputs.intervention_gaps if able else ():
        returns = inputs.recall_sets[gap].first(inputs.config.num_turns)
        scores = recall.measure_returns(able, returns, [Intervention.NONE, *INTERVENTIONS], inputs.settings)
        for name, by_way in scores.dreams.items():
            found: dict[str, Any] = {}
            kept, of = by_way[Intervention.NONE], (scores.seen, scores.names)
            for way, values in by_way.items():
                found[str(way)] = recall.summarize(values, *of)
                if way != Intervention.NONE:
                    found[str(way)]["change"] = recall.summarize_changes(values, kept, *of)
            part["worlds"].setdefault(name, {})[str(gap)] = found


def measure_paired(inputs: Inputs, part: dict[str, Any]) -> None:
    """Exchange what the two episodes of a pair remember."""
    for gap, pairs in inputs.pair_sets.items():
        for name, simulator in inputs.announced():
            found = summarize_pairs(measure_pairs(simulator, pairs, inputs.settings))
            part["worlds"].setdefault(name, {})[str(gap)] = found


def measure_control(inputs: Inputs, part: dict[str, Any]) -> None:
    """Hold opposite buttons early and late in long dreams."""
    layout, count = inputs.actions, inputs.config.num_episodes
    part.pop("skipped", None)
    if not long_rollouts.pairs_of(layout):
        _skip(part, "of no two buttons is it known that they move the picture in opposite ways")
    part["calibration"] = long_rollouts.control_calibration(inputs.starts, layout, count, inputs.seed)
    for name, _ in inputs.announced():
        part["worlds"][name] = long_rollouts.summarize_control(inputs.long_dreams(name), layout)


def measure_drift(inputs: Inputs, part: dict[str, Any]) -> None:
    """Compare the pictures of long dreams with those of the real game."""
    for name, _ in inputs.announced():
        part["worlds"][name] = long_rollouts.summarize_drift(inputs.long_dreams(name))


def measure_fidelity(inputs: Inputs, part: dict[str, Any]) -> None:
    """Compare the frames of dreams under recorded actions with real ones, as distributions."""
    config, network = inputs.config, inputs.feature_network
    found = inputs.recall_sets[inputs.fidelity_gap]
    returns = found.first(max(2, config.num_fidelity))
    segments = fidelity.cut_segments(min(config.fidelity_frames, 2 * returns.gap))
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
    settings = fidelity.FidelitySettings(segments=segments, **inputs.how)
    real = fidelity.real_features(returns, network, settings)
    part["real"] = fidelity.summarize_fidelity(real, real, segments)
    for name, simulator in inputs.announced():
        dreamt, decoded = fidelity.dream_features(simulator, returns, network, settings)
        part["worlds"][name] = {
            "dream": fidelity.summarize_fidelity(dreamt, real, segments),
            "codec": fidelity.summarize_fidelity(decoded, real, segments),
        }


def measure_idle(inputs: Inputs, part: dict[str, Any]) -> None:
    """Press nothing for a long time."""
    config = inputs.config
    for name, simulator in inputs.announced():
        part["worlds"][name] = idle_hold(
            on_cpu(simulator),
            inputs.starts.recordings,
            num_starts=config.num_idle,
            num_frames=config.idle_frames,
            context_frames=inputs.starts.turn,
            **inputs.how,
        )


def on_cpu(simulator: Simulator) -> Simulator:
    """Return a simulator of the same kind that returns its frames where NumPy can have them."""
    plain = Simulator(simulator.world, simulator.sampler)
    if isinstance(simulator, IntervenedSimulator):
        return IntervenedSimulator(plain, simulator.on_commit)
    return plain


def measure_masked(inputs: Inputs, part: dict[str, Any]) -> None:
    """Score parts that the context shows and parts that it does not apart."""
    pixels = inputs.config.tile_pixels
    part.pop("skipped", None)
    for gap in inputs.intervention_gaps:
        returns, most_frames = inputs.recall_sets[gap].first(inputs.config.num_turns), 0
        if pixels:
            find = continuation.seen_tiles((inputs.size[0] // pixels, inputs.size[1] // pixels), pixels)
        elif returns.recordings.info.name == continuation.FRESH_ROOMS:
            find, most_frames = continuation.seen_rooms(inputs.size), continuation.ROOM_FRAMES
        else:
            known = f"tiles (set consistency.tile_pixels) and of {continuation.FRESH_ROOMS} only"
            _skip(part, f"which parts were in view before is known of {known}")
            return
        masks = continuation.find_masks(returns, find, most_frames)
        for name, simulator in inputs.announced():
            scores = continuation.measure_continuation(simulator, returns, masks, **inputs.how)
            summary = continuation.summarize_continuation(scores) | {"frames_an_episode": len(masks.frames)}
            part["worlds"].setdefault(name, {})[str(gap)] = summary


def measure_probe(inputs: Inputs, part: dict[str, Any]) -> None:
    """Read position and past pictures out of the states."""
    gap = next(iter(inputs.intervention_gaps))
    returns = inputs.recall_sets[gap]
    if len(returns) < MIN_PROBED:
        _skip(part, f"{len(returns)} episodes are too few for a probe, which takes {MIN_PROBED}")
        return
    for name, simulator in inputs.announced():
        if simulator.world.config.denoiser.layer_counts["full"]:
            print("not measured: its memory grows, and all that was seen lies in it", flush=True)
            continue
        samples = collect_samples(simulator, returns, **inputs.how)
        part["worlds"][name] = {"gap": gap, "targets": probe(samples, inputs.seed)}


def measure_cost(inputs: Inputs, part: dict[str, Any]) -> None:
    """Measure whether a step costs the same at any frame."""
    marks = [mark for mark in MARKS if mark <= max(EARLY, inputs.config.cost_frames)]
    batch = next(inputs.starts.batches(2))
    for name, simulator in inputs.announced():
        if name in inputs.zeroed:
            continue  # it would cost the same
        state = batch.clips.begin_dreams(simulator, 1, inputs.seed).rows([0])
        part["worlds"][name] = measure_growth(simulator, state, marks=marks, seed=inputs.seed)


MEASURES: Mapping[str, Callable[[Inputs, dict[str, Any]], None]] = {
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


def measure_consistency(config: EvaluateConfig, out: Path) -> None:
    """Measure the parts that were asked for, write the report after each, print where the worlds stand."""
    inputs = Inputs(config, out)
    report = inputs.report
    run = describe_run(inputs.device.device, inputs.device.dtype) | {"settings": asdict(config)}

    def measure(part: str) -> None:
        print(f"\n{part}", flush=True)
        report.data.get("skipped", {}).pop(part, None)  # by a run on other terms
        found = report.data.setdefault(part, {})
        found.setdefault("worlds", {})
        MEASURES[part](inputs, found)

    def store(part: str, _: None, seconds: float) -> None:
        made = report.data["runs"].setdefault(part, {})
        made |= {name: run | {"measured_in_seconds": seconds} for name in inputs.simulators}
        compare(inputs)

    chosen = [part for part in CONSISTENCY_PARTS if part in inputs.parts]
    try:
        report.measure({part: partial(measure, part) for part in chosen}, store)
    finally:  # also of what was measured when somebody ends it
        if report.data["runs"]:
            write_page(report)
    for name, rows in report.data.get("goals", {}).items():
        print(f"\n{name}\n{format_targets(rows)}")
    print(f"\nwritten to {out}: {REPORT_FILE}, {PAGE_FILE}")


def compare(inputs: Inputs) -> None:
    """Compare the worlds by what is in the report so far, with each other and with the targets."""
    config, data = inputs.config, inputs.report.data
    if "recall" in data:
        data["comparisons"] = compare_worlds(data["recall"], window=config.window, full=config.full)
    # Those that it is compared with have nothing to reach.
    others = {config.window, config.full, *map(zeroed_name, data["worlds"])}
    data["goals"] = {
        name: check_memory(data, name, config.window) for name in data["worlds"] if name not in others
    }
