"""Consistency suite: what worlds remember, `python -m training.evaluate suite=consistency`.

Writes OUT/report.json anew after each part and OUT/report.html at the end: a stopped run keeps what it has,
and parts or worlds that another run measured on the same episodes stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np

from training.suites.consistency_inputs import REPORT_FILE, Inputs
from training.suites.settings import CONSISTENCY_PARTS, EvaluateConfig
from worldsim.errors import WorldError
from worldsim.evaluation.cost.step_time import EARLY, MARKS, measure_growth
from worldsim.evaluation.inputs.out_and_back import ReturnSet
from worldsim.evaluation.memory import continuation, recall
from worldsim.evaluation.memory.interventions import (
    INTERVENTIONS,
    Intervention,
    can_intervene,
    zeroed_name,
)
from worldsim.evaluation.memory.pairs import measure_pairs, summarize_pairs
from worldsim.evaluation.memory.probe import collect_samples, probe
from worldsim.evaluation.memory.revisits import measure_revisits, summarize_revisits
from worldsim.evaluation.memory.tiles import absences, summarize_absences
from worldsim.evaluation.quality import fidelity, long_rollouts
from worldsim.evaluation.quality.idle import idle_hold
from worldsim.evaluation.report.comparison import compare_worlds
from worldsim.evaluation.report.page import FILMS_FOLDER, PAGE_FILE, write_page
from worldsim.evaluation.report.pictures import write_strips
from worldsim.evaluation.report.report import as_json, describe_run
from worldsim.evaluation.report.targets import check_memory, find
from worldsim.evaluation.report.text import format_targets

MIN_PROBED = 5
"""Episodes that a probe needs: three kinds of them, and two to be tested on."""


Put = Callable[..., None]
"""Stores entries into the object under some keys of a part: `put({gap: found}, "worlds", name)`."""


def _skip(put: Put, why: str) -> None:
    put({"skipped": why})
    print(why, flush=True)


def measure_recall(inputs: Inputs, put: Put) -> None:
    """Measure return recall against the gap."""
    report = inputs.report
    for gap in inputs.recall_gaps:
        returns = inputs.recall_sets[gap]
        scores = recall.measure_returns(inputs.simulators, returns, [Intervention.NONE], inputs.settings)
        first = scores.dreams[next(iter(scores.dreams))][Intervention.NONE]
        described = returns.describe() | {"metrics": list(first)}
        if find(report.data, ("recall", "episodes", str(gap), "names")) not in (None, described["names"]):
            raise WorldError(f"the episodes of gap {gap} are others than before; choose another out= folder")
        put({gap: described}, "episodes")
        for name in scores.dreams:
            put({gap: _summarize_recall(returns, scores, name)}, "worlds", name)
        for method in (recall.COPY, recall.CODEC):
            found = recall.summarize(scores.references[method], scores.seen, scores.names)
            put({gap: found}, "references", method)
        strips = write_strips(report.path.parent / FILMS_FOLDER, gap, scores.films)
        report.update({"frames": recall.film_frames(gap)}, "films", gap)
        report.update(strips, "films", gap, "strips")


def _summarize_recall(returns: ReturnSet, scores: recall.GapScores, name: str) -> recall.Recall:
    found = recall.summarize(scores.dreams[name][Intervention.NONE], scores.seen, scores.names)
    tiles = None
    if (right := scores.right.get(name)) is not None:
        absent = [absences(poses, returns.turn, right.shape[2:]) for poses in returns.poses()]
        tiles = summarize_absences(right, np.stack(absent), scores.names)
    return replace(found, memory_bytes=scores.memory_bytes[name], absent_tiles=tiles)


def measure_interventions(inputs: Inputs, put: Put) -> None:
    """Empty, freeze and swap the states at the turn."""
    able = {name: s for name, s in inputs.simulators.items() if can_intervene(s)}
    without = [name for name in inputs.simulators if name not in able]
    put(dict.fromkeys(without, "has no recurrent states that stay"), "skipped")
    for gap in inputs.intervention_gaps if able else ():
        returns = inputs.recall_sets[gap].first(inputs.config.num_turns)
        scores = recall.measure_returns(able, returns, [Intervention.NONE, *INTERVENTIONS], inputs.settings)
        for name, by_way in scores.dreams.items():
            kept = by_way[Intervention.NONE]
            found = {
                way: recall.summarize(
                    values, scores.seen, scores.names, None if way == Intervention.NONE else kept
                )
                for way, values in by_way.items()
            }
            put({gap: found}, "worlds", name)


def measure_paired(inputs: Inputs, put: Put) -> None:
    """Exchange what the two episodes of a pair remember."""
    for gap, pairs in inputs.pair_sets.items():
        for name, simulator in inputs.announced():
            put({gap: summarize_pairs(measure_pairs(simulator, pairs, inputs.settings))}, "worlds", name)


def measure_control(inputs: Inputs, put: Put) -> None:
    """Hold opposite buttons early and late in long dreams."""
    layout, count = inputs.actions, inputs.config.num_episodes
    if not long_rollouts.pairs_of(layout):
        _skip(put, "of no two buttons is it known that they move the picture in opposite ways")
    put({"calibration": long_rollouts.control_calibration(inputs.starts, layout, count, inputs.seed)})
    for name, _ in inputs.announced():
        put({name: long_rollouts.summarize_control(inputs.long_dreams(name), layout)}, "worlds")


def measure_drift(inputs: Inputs, put: Put) -> None:
    """Compare the pictures of long dreams with those of the real game."""
    for name, _ in inputs.announced():
        put({name: long_rollouts.summarize_drift(inputs.long_dreams(name))}, "worlds")


def measure_fidelity(inputs: Inputs, put: Put) -> None:
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
    if find(inputs.report.data, ("fidelity", "episodes")) not in (None, described):
        raise WorldError(
            "fidelity was measured on other episodes or frames, or by another feature network, before; "
            "choose another out= folder"
        )
    real = fidelity.real_features(returns, network, segments, batch_size=inputs.how["batch_size"])
    put({"episodes": described, "real": fidelity.summarize_fidelity(real, real, segments)})
    for name, simulator in inputs.announced():
        features = fidelity.dream_features(simulator, returns, network, segments, **inputs.how)
        dream, codec = (fidelity.summarize_fidelity(each, real, segments) for each in features)
        put({"dream": dream, "codec": codec}, "worlds", name)


def measure_idle(inputs: Inputs, put: Put) -> None:
    """Press nothing for a long time."""
    config = inputs.config
    for name, simulator in inputs.announced():
        found = idle_hold(
            simulator,
            inputs.starts.recordings,
            num_starts=config.num_idle,
            num_frames=config.idle_frames,
            context_frames=inputs.starts.turn,
            **inputs.how,
        )
        put({name: found}, "worlds")


def measure_masked(inputs: Inputs, put: Put) -> None:
    """Score parts that the context shows and parts that it does not apart."""
    for gap in inputs.intervention_gaps:
        returns = inputs.recall_sets[gap].first(inputs.config.num_turns)
        find_seen = inputs.find_seen(returns.recordings.info.name)
        if find_seen is None:
            known = f"tiles (set consistency.tile_pixels) and of {continuation.FRESH_ROOMS} only"
            _skip(put, f"which parts were in view before is known of {known}")
            return
        most_frames = 0 if inputs.config.tile_pixels else continuation.ROOM_FRAMES
        masks = continuation.find_masks(returns, find_seen, most_frames)
        for name, simulator in inputs.announced():
            scores = continuation.measure_continuation(simulator, returns, masks, **inputs.how)
            found = continuation.summarize_continuation(scores, len(masks.frames))
            put({gap: found}, "worlds", name)


def measure_rungs(inputs: Inputs, put: Put) -> None:
    """See whether places are known again to which the player comes back."""
    revisits, network = inputs.revisits, inputs.feature_network
    assert revisits is not None, "what cannot be measured is no part"
    find_seen = inputs.find_seen(revisits.game)
    for rung in revisits.by_rung:
        described = as_json(revisits.describe(rung)) | {"feature_network": network.digest()}
        if find(inputs.report.data, ("revisits", "rungs", rung)) not in (None, described):
            raise WorldError(f"the revisits of {rung} are others than before; choose another out= folder")
        put({rung: described}, "rungs")
        for name, simulator in inputs.announced():
            scores = measure_revisits(simulator, revisits, rung, network, find_seen, **inputs.how)
            put({rung: summarize_revisits(scores)}, "worlds", name)


def measure_probe(inputs: Inputs, put: Put) -> None:
    """Read position and past pictures out of the states."""
    gap = next(iter(inputs.intervention_gaps))
    returns = inputs.recall_sets[gap]
    if len(returns) < MIN_PROBED:
        _skip(put, f"{len(returns)} episodes are too few for a probe, which takes {MIN_PROBED}")
        return
    for name, simulator in inputs.announced():
        if simulator.world.config.denoiser.layer_counts["full"]:
            print("not measured: its memory grows, and all that was seen lies in it", flush=True)
            continue
        samples = collect_samples(simulator, returns, **inputs.how)
        put({"gap": gap, "targets": probe(samples, inputs.seed)}, "worlds", name)


def measure_cost(inputs: Inputs, put: Put) -> None:
    """Measure whether a step costs the same at any frame."""
    marks = [mark for mark in MARKS if mark <= max(EARLY, inputs.config.cost_frames)]
    batch = next(inputs.starts.batches(2))
    for name, simulator in inputs.announced():
        if name in inputs.zeroed:
            continue  # it would cost the same
        state = batch.clips.begin_dreams(simulator, 1, inputs.seed).rows([0])
        put({name: measure_growth(simulator, state, marks=marks, seed=inputs.seed)}, "worlds")


MEASURES: Mapping[str, Callable[[Inputs, Put], None]] = {
    "recall": measure_recall,
    "interventions": measure_interventions,
    "pairs": measure_paired,
    "controllability": measure_control,
    "drift": measure_drift,
    "fidelity": measure_fidelity,
    "idle": measure_idle,
    "continuation": measure_masked,
    "revisits": measure_rungs,
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
        if isinstance(find(report.data, (part, "skipped")), str):
            del report.data[part]["skipped"]
        report.update({}, part, "worlds")
        MEASURES[part](inputs, lambda values, *keys: report.update(values, part, *keys))

    def store(part: str, _: None, seconds: float) -> None:
        made = run | {"measured_in_seconds": seconds}
        report.update(dict.fromkeys(inputs.simulators, made), "runs", part)
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
    config, report, data = inputs.config, inputs.report, inputs.report.data
    if "recall" in data:
        found = compare_worlds(data["recall"], window=config.window, full=config.full)
        report.update({"comparisons": found})
    # Those that it is compared with have nothing to reach.
    others = {config.window, config.full, *map(zeroed_name, data["worlds"])}
    goals = {n: check_memory(data, n, config.window) for n in data["worlds"] if n not in others}
    report.update({"goals": goals})
