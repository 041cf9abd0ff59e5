"""The consistency suite of `training.evaluate`: does a world remember?

Writes OUT/report.json anew after each part and OUT/report.html at the end: a stopped run keeps what it has,
and parts or worlds that another run measured on the same episodes stay.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from training.suites.parts import MEASURES
from training.suites.settings import COUNTS_OF_PARTS, ConsistencyConfig
from worldsim.errors import WorldError
from worldsim.evaluation.inputs.out_and_back import (
    MIN_EPISODES,
    PAIRS,
    RECALL,
    ReturnSet,
    choose_sets,
    find_recordings,
    find_sets,
)
from worldsim.evaluation.inputs.start_states import Moments
from worldsim.evaluation.memory.comparison import compare_worlds, zeroed_name
from worldsim.evaluation.memory.conversion import (
    chosen_sampler,
    describe,
)
from worldsim.evaluation.memory.interventions import check_can_forget, zeroed
from worldsim.evaluation.memory.pairs import paired
from worldsim.evaluation.memory.recall import RecallSettings
from worldsim.evaluation.memory.tiles import TileReader, check_tiles, find_kinds
from worldsim.evaluation.quality.features import SHIPPED_FEATURES, load_features
from worldsim.evaluation.quality.long_rollouts import LongDreams, LongSettings, dream_long
from worldsim.evaluation.report.page import PAGE_FILE, write_page
from worldsim.evaluation.report.report import REPORT_FILE, describe_run, write_json
from worldsim.evaluation.report.suite_targets import format_goals, judge_world
from worldsim.runtime.device import DeviceChoice
from worldsim.simulator import Simulator
from worldsim.storage.tensors import read_object
from worldsim.world import World

SUITE = "consistency"
SUITE_PARTS = tuple(MEASURES)
TRAINED_GAP = 50
AT_TURNS = ("interventions", "continuation", "probe")
"""Parts that are measured at one gap."""
FROM_STARTS = ("controllability", "drift", "idle", "cost")
"""Parts that need moments to begin at, and no way back."""
TILE_EPISODES = 16
"""Whose real frames tell which kinds of tiles there are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteRun:
    """What `training.evaluate` was asked for beside the suite's own settings."""

    worlds: Mapping[str, str]
    data: Path
    parts: list[str]
    seed: int
    batch_size: int
    denoising_steps: int | None
    settings: Mapping[str, Any]


def measure_consistency(config: ConsistencyConfig, run: SuiteRun, choice: DeviceChoice, out: Path) -> None:
    """Measure the parts that were asked for, write the report after each, print where the worlds stand."""
    suite = Suite(config, run, choice, out)
    try:
        for part in [part for part in SUITE_PARTS if part in suite.run.parts]:
            suite.measure(part)
    finally:  # also of what was measured when somebody ends it
        if suite.report["runs"]:
            write_page(out, suite.report)
    for name, goals in suite.report["goals"].items():
        print(f"\n{name}\n{format_goals(goals)}")
    print(f"\nwritten to {out}: {REPORT_FILE}, {PAGE_FILE}")


def _shape(world: World) -> tuple[object, ...]:
    """Return what worlds that are compared must share."""
    return world.config.actions.buttons, world.config.height, world.config.width


class Suite:
    """The worlds, the episodes, and what was measured so far.

    Attributes:
        simulators: By name of the world; those in `zeroed` forget before every frame.
        recall_sets: The episodes that are needed, by gap.
        feature_network: What FID and KID are computed with, if they are.
        pair_sets: Those of paired histories.
        settings: How roll-outs are made.
        report: Becomes `report.json`.
    """

    def __init__(self, config: ConsistencyConfig, run: SuiteRun, choice: DeviceChoice, out: Path) -> None:
        self.config, self.run, self.out, self._device = config, run, out, choice.device
        self._moments: Moments | None = None
        self.simulators: dict[str, Simulator] = {}
        self.zeroed: list[str] = []
        command = ["python", *(shlex.quote(word) for word in sys.orig_argv[1:])]
        self._run = describe_run(command, choice.device, choice.dtype) | {"settings": dict(run.settings)}
        self._long: dict[str, LongDreams] = {}
        self.report: dict[str, Any] = {"suite": SUITE, "worlds": {}, "runs": {}}
        self._load_worlds(choice)
        self._find_episodes()
        self.settings = RecallSettings(
            batch_size=run.batch_size or (128 if choice.device.type == "cuda" else 32),
            seed=run.seed,
            tiles=self._tiles(),
            num_films=config.num_films,
        )
        self._keep(out / REPORT_FILE)

    def _load_worlds(self, choice: DeviceChoice) -> None:
        if unknown := [name for name in self.config.zeroed if name not in self.run.worlds]:
            raise WorldError(f"consistency.zeroed names {', '.join(unknown)}, which worlds does not")
        for name, place in self.run.worlds.items():
            world = World.from_pretrained(place, device=choice.device, dtype=choice.dtype)
            self._add(name, world)
            if name in self.config.zeroed:
                check_can_forget(name, world)
                self.zeroed.append(zeroed_name(name))
                self._add(zeroed_name(name), world, is_zeroed=True)
        first = next(iter(self.simulators.values()))
        for name, simulator in self.simulators.items():
            if _shape(simulator.world) != _shape(first.world):
                raise WorldError(f"{name} has other buttons or frames than {next(iter(self.simulators))}")
        described = first.world.config
        self.actions, self.size = described.actions, (described.height, described.width)
        print(f"{', '.join(self.simulators)} on {choice}", flush=True)

    def _add(self, name: str, world: World, *, is_zeroed: bool = False) -> None:
        sampler = chosen_sampler(world, self.run.denoising_steps, None)
        simulator = Simulator(world, sampler, frames_device=world.device)
        self.simulators[name] = zeroed(simulator) if is_zeroed else simulator
        self.report["worlds"][name] = describe(world, sampler) | {"folder": str(world.folder)}

    def announced(self) -> Iterator[tuple[str, Simulator]]:
        """Yield the worlds by name, and say which is measured."""
        for name, simulator in self.simulators.items():
            print(name, flush=True)
            yield name, simulator

    def _find_episodes(self) -> None:
        """Find out now, and not after an hour, what can be measured."""
        self._find_moments()
        data, parts = self.run.data, self.run.parts
        folders: dict[int, Path] = {}
        if "recall" in parts:
            folders |= {gap: self._known_gaps[gap] for gap in self.recall_gaps}
        if set(AT_TURNS) & set(parts):
            folders |= {gap: self._known_gaps[gap] for gap in self.intervention_gaps}
        if set(FROM_STARTS) & set(parts) and self._moments is None:
            folders.setdefault(*next(iter(self._known_gaps.items())))
        if "fidelity" in parts:
            folders[self.fidelity_gap] = self._known_gaps[self.fidelity_gap]
            folder = Path(self.config.features) if self.config.features else SHIPPED_FEATURES
            self.feature_network = load_features(folder, self._device)
        self.recall_sets = {gap: self._open(folders[gap], gap) for gap in sorted(folders)}
        self.pair_sets: dict[int, ReturnSet] = {}
        if "pairs" in parts:
            # Recorded apart, or among the episodes of a gap.
            kind = PAIRS if find_sets(data, PAIRS) else RECALL
            folders = self._within_max_gap(kind, self.config.pair_gaps)
            try:
                self.pair_sets = {gap: paired(self._open(folder, gap)) for gap, folder in folders.items()}
            except WorldError as error:
                if parts == ["pairs"] or self.config.pair_gaps:
                    raise
                self._skip(["pairs"], str(error))
        moments = [] if self._moments is None else [self._moments]
        sets = [*self.recall_sets.values(), *self.pair_sets.values(), *moments]
        self._tell(sets)
        self.pair_sets = {gap: s.first(2 * self.config.num_pairs) for gap, s in self.pair_sets.items()}
        asked = self.config
        # What has to be alike in runs that are put side by side.
        settings = {
            "seed": self.run.seed,
            "num_episodes": asked.num_episodes,
            "context_frames": asked.context_frames,
            "distance": asked.distance,
            "angle_degrees": asked.angle_degrees,
        }
        source = sets[0].source if sets else ""
        self.report["data"] = {"folder": str(data), "source": source, "settings": settings}

    def _find_moments(self) -> None:
        """Where the data are ordinary recordings, leave out what needs episodes that come back."""
        data, config, parts = self.run.data, self.config, self.run.parts
        asked = [part for part in parts if part in FROM_STARTS]
        folder = find_recordings(data)
        named = [*config.gaps, *config.intervention_gaps, *config.pair_gaps]
        if not asked or folder is None or named or find_sets(data, RECALL):
            return
        self._moments = Moments(
            folder,
            self.actions,
            self.size,
            context_frames=max(1, config.context_frames),
            count=config.num_episodes or MIN_EPISODES,
            seed=self.run.seed,
        )
        kept = [*asked, *(["pairs"] if "pairs" in parts and find_sets(data, PAIRS) else [])]
        why = f"{data} holds no folder {RECALL}-NNN of episodes that come back (docs/consistency.md)"
        self._skip([part for part in parts if part not in kept], why)

    def _skip(self, parts: Sequence[str], why: str) -> None:
        """Leave parts out, and say so here and in the report."""
        if parts:
            self.run = replace(self.run, parts=[part for part in self.run.parts if part not in parts])
            self.report.setdefault("skipped", {}).update(dict.fromkeys(parts, why))
            print(f"not measured: {', '.join(parts)}; {why}", flush=True)

    @property
    def _known_gaps(self) -> Mapping[int, Path]:
        return choose_sets(self.run.data, RECALL, [])

    def _tell(self, sets: Sequence[ReturnSet | Moments]) -> None:
        """Say which episodes there are, and which of them are left out."""
        config, parts = self.config, self.run.parts
        for found in sets:
            few = len(found) < MIN_EPISODES
            print(found.told + f"; reported numbers need {MIN_EPISODES}" * few, flush=True)
        if "recall" in parts and (beyond := sorted(set(self._known_gaps) - set(self.recall_gaps))):
            print(f"left out of recall, beyond consistency.max_gap={config.max_gap}: {beyond}")
        if config.num_turns and {"interventions", "continuation"} & set(parts):
            print(f"interventions and continuation: the first {config.num_turns} episodes of a gap at most")
        if config.num_pairs and "pairs" in parts:
            print(f"pairs: the first {config.num_pairs} at most")

    def _within_max_gap(self, kind: str, named: Sequence[int]) -> dict[int, Path]:
        """Return the folders of named gaps, or of all up to `max_gap`."""
        found = choose_sets(self.run.data, kind, named)
        kept = list(found) if named else self._up_to_max_gap(found)
        if not kept:
            there = ", ".join(f"{kind}-{gap:03d}" for gap in found)
            names = "gaps" if kind == RECALL else "pair_gaps"
            raise WorldError(
                f"consistency.max_gap={self.config.max_gap} leaves nothing of {self.run.data}, which has "
                f"{there}; raise it or name the gaps in consistency.{names}"
            )
        return {gap: found[gap] for gap in kept}

    def _up_to_max_gap(self, gaps: Iterable[int]) -> list[int]:
        return [gap for gap in gaps if not self.config.max_gap or gap <= self.config.max_gap]

    @property
    def recall_gaps(self) -> list[int]:
        """The gaps that recall is measured at."""
        return list(self._within_max_gap(RECALL, self.config.gaps))

    @property
    def intervention_gaps(self) -> list[int]:
        """The gaps at whose turns something is done to the memory: 50, or the least where there is no 50."""
        known = list(self._known_gaps)
        default = TRAINED_GAP if TRAINED_GAP in known else known[0]
        return list(choose_sets(self.run.data, RECALL, self.config.intervention_gaps or [default]))

    @property
    def fidelity_gap(self) -> int:
        """The gap in whose episodes dreams go on long enough: the least such one, or the greatest of all."""
        gaps = self._up_to_max_gap(self._known_gaps) or [min(self._known_gaps)]
        return next((gap for gap in gaps if 2 * gap >= self.config.fidelity_frames), max(gaps))

    @property
    def starts(self) -> ReturnSet | Moments:
        """Episodes to begin at: those of the least gap, or moments of ordinary ones."""
        if self._moments is not None:
            return self._moments
        return next(iter(self.recall_sets.values()))

    def _open(self, folder: Path, gap: int) -> ReturnSet:
        config = self.config
        return ReturnSet(
            folder,
            gap,
            self.actions,
            self.size,
            tolerance=config.tolerance,
            context_frames=config.context_frames,
            num_episodes=config.num_episodes,
        )

    def _tiles(self) -> TileReader | None:
        """Return what tells tiles apart; the kinds of tiles are those that real frames show."""
        pixels = self.config.tile_pixels
        if not pixels or not self.recall_sets:
            return None
        check_tiles(pixels, self.size)
        first = next(iter(self.recall_sets.values()))
        tiles = find_kinds(next(first.batches(TILE_EPISODES)).real.flatten(0, 1), pixels)
        print(f"{len(tiles.pictures)} kinds of tiles", flush=True)
        return tiles

    def long_dreams(self, name: str) -> LongDreams:
        """Return the long dreams of a world, which two parts look at."""
        if name not in self._long:
            settings = LongSettings(
                num_frames=self.config.long_frames,
                batch_size=self.settings.batch_size,
                seed=self.run.seed,
            )
            starts = self.starts.first(max(2, self.config.num_long))
            self._long[name] = dream_long(self.simulators[name], starts, settings)
        return self._long[name]

    def _keep(self, path: Path) -> None:
        """Take over what other runs measured on the same data; measuring a part of a world replaces it.

        Raises:
            WorldError: If the folder holds another report, or one of other data or of another world by the
                same name.
        """
        if not path.is_file():
            return
        known = read_object(path)
        if known.get("suite") != SUITE or known.get("data", {}).get("folder") != str(self.run.data):
            raise WorldError(f"{path} is a report of something else; choose another out= folder")
        before, now = known["data"].get("source", ""), self.report["data"]["source"]
        if before and now and before != now:
            raise WorldError(
                f"{path} was measured on other episodes ({before}; now: {now}); choose another out= folder"
            )
        for name, value in self.report["data"]["settings"].items():
            if (before := known["data"].get("settings", {}).get(name, value)) != value:
                raise WorldError(
                    f"{path} was measured with {name}={before}, now {value}; choose another out= folder"
                )
        for name, world in self.report["worlds"].items():
            before = known["worlds"].get(name, world)
            for key in ("identity", "denoising_steps"):
                if before[key] != world[key]:
                    raise WorldError(
                        f"{path} tells of another world by the name {name!r}: its {key} was {before[key]} "
                        f"and is {world[key]}; choose another out= folder"
                    )
        self._check_counts(path, known["runs"])
        worlds = known["worlds"] | self.report["worlds"]
        self.report = known | self.report | {"worlds": worlds, "runs": known["runs"]}

    def _check_counts(self, path: Path, runs: Mapping[str, Any]) -> None:
        """Raise `WorldError` if another world was measured on more or fewer episodes in a part."""
        asked = asdict(self.config)
        for part in self.run.parts:
            others = {name: run for name, run in runs.get(part, {}).items() if name not in self.simulators}
            for name, run in others.items():
                known = run["settings"]["consistency"]
                for setting in COUNTS_OF_PARTS.get(part, ()):
                    # Reports from before there were these two settings have all episodes.
                    before, now = known.get(setting, 0), asked[setting]
                    if before != now:
                        raise WorldError(
                            f"{path} has {part} of {name} with consistency.{setting}={before}, now {now}; "
                            "set it, or choose another out= folder"
                        )

    def measure(self, part: str) -> None:
        """Measure one part of all worlds and write the report so far."""
        began = time.perf_counter()
        print(f"\n{part}", flush=True)
        self.report.get("skipped", {}).pop(part, None)  # by a run on other terms
        found = self.report.setdefault(part, {})
        found.setdefault("worlds", {})
        MEASURES[part](self, found)
        seconds = round(time.perf_counter() - began, 1)
        made = self.report["runs"].setdefault(part, {})
        made |= {name: self._run | {"measured_in_seconds": seconds} for name in self.simulators}
        self._write()

    def _write(self) -> None:
        config, report = self.config, self.report
        if "recall" in report:
            report["comparisons"] = compare_worlds(report["recall"], window=config.window, full=config.full)
        # Those that it is compared with have nothing to reach.
        others = {config.window, config.full, *(zeroed_name(name) for name in report["worlds"])}
        candidates = [name for name in report["worlds"] if name not in others]
        report["goals"] = {name: judge_world(name, report, window=config.window) for name in candidates}
        write_json(self.out / REPORT_FILE, report)
