"""Worlds and episodes of the consistency suite, checked before anything is measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from training.suites.settings import CONSISTENCY, COUNTS_OF_PARTS, EvaluateConfig
from worldsim.errors import WorldError
from worldsim.evaluation.inputs.clips import Recordings
from worldsim.evaluation.inputs.out_and_back import (
    MIN_EPISODES,
    PAIRS,
    RECALL,
    ReturnSet,
    choose_sets,
    find_recordings,
    find_sets,
)
from worldsim.evaluation.inputs.revisits import REVISITS, RevisitSet
from worldsim.evaluation.inputs.start_states import StartStates
from worldsim.evaluation.memory.continuation import FRESH_ROOMS, FindSeen, seen_rooms, seen_tiles
from worldsim.evaluation.memory.conversion import chosen_sampler, describe
from worldsim.evaluation.memory.interventions import check_can_forget, zeroed, zeroed_name
from worldsim.evaluation.memory.pairs import paired
from worldsim.evaluation.memory.recall import RecallSettings
from worldsim.evaluation.memory.revisits import recognise
from worldsim.evaluation.memory.tiles import TileReader, find_kinds
from worldsim.evaluation.quality.features import SHIPPED_FEATURES, load_features
from worldsim.evaluation.quality.long_rollouts import LongDreams, dream_long
from worldsim.evaluation.report.report import Report, as_json
from worldsim.evaluation.report.targets import TRAINED_GAP
from worldsim.simulator import Simulator, open_world
from worldsim.world import World
from worldsim.world.world import shipped_worlds

REPORT_FILE = "report.json"
AT_TURNS = ("interventions", "continuation", "probe")
"""Parts that are measured at one gap."""
FROM_STARTS = ("controllability", "drift", "idle", "cost")
"""Parts that need start states, and no way back."""
NEED_NO_GAP = ("pairs", REVISITS)
"""Parts that need no folder of a gap."""
TILE_EPISODES = 16
"""Whose real frames tell which kinds of tiles there are."""


class Inputs:
    """The worlds, the episodes, and the report that they are measured into.

    Attributes:
        parts: Those to measure that can be.
        simulators: By name of the world; those in `zeroed` forget before every frame.
        recall_gaps: Gaps at which recall is measured.
        intervention_gaps: Gaps at whose turns something is done to the memory: 50, or the least without it.
        fidelity_gap: The least gap in whose episodes dreams go on long enough, or the greatest of all.
        recall_sets: The episodes that are needed, by gap.
        feature_network: What FID and KID are computed with, if they are.
        pair_sets: Those of paired histories.
        revisits: Where poses come back, if it is measured.
        how: Batch size and seed of all that is dreamt.
        report: Becomes `report.json`; parts that other runs measured on the same data are in it.
    """

    def __init__(self, config: EvaluateConfig, out: Path) -> None:
        self.config, self.parts = config.consistency, config.chosen_parts
        self.data, self.seed, self._runtime = Path(config.data), config.seed, config.runtime()
        self._starts: StartStates | None = None
        self.revisits: RevisitSet | None = None
        self.simulators: dict[str, Simulator] = {}
        self.zeroed: list[str] = []
        self._long: dict[str, LongDreams] = {}
        self._head: dict[str, Any] = {"suite": CONSISTENCY, "worlds": {}, "runs": {}}
        self._load_worlds(config.worlds or {name_of(config.world): config.world})
        self._find_episodes()
        self.how: dict[str, Any] = {
            "batch_size": config.batch_size or (128 if self.device.device.type == "cuda" else 32),
            "seed": config.seed,
        }
        self.settings = RecallSettings(**self.how, tiles=self._tiles(), num_films=self.config.num_films)
        self.report = self._open_report(out / REPORT_FILE)

    def _load_worlds(self, worlds: Mapping[str, str | None]) -> None:
        if unknown := [name for name in self.config.zeroed if name not in worlds]:
            raise WorldError(f"consistency.zeroed names {', '.join(unknown)}, which worlds does not")
        for name, place in worlds.items():
            world, self.device = open_world(place, self._runtime)
            self._add(name, world)
            if name in self.config.zeroed:
                check_can_forget(name, world)
                self.zeroed.append(zeroed_name(name))
                self._add(zeroed_name(name), world, is_zeroed=True)
        described = {name: simulator.world.config for name, simulator in self.simulators.items()}
        first = next(iter(described.values()))
        self.actions, self.size = first.actions, (first.height, first.width)
        for name, own in described.items():
            if (own.actions.buttons, own.height, own.width) != (self.actions.buttons, *self.size):
                raise WorldError(f"{name} has other buttons or frames than {next(iter(described))}")
        print(f"{', '.join(self.simulators)} on {self.device}", flush=True)

    def _add(self, name: str, world: World, *, is_zeroed: bool = False) -> None:
        sampler = chosen_sampler(world, self._runtime.denoising_steps, None)
        simulator = Simulator(world, sampler, frames_device=world.device)
        self.simulators[name] = zeroed(simulator) if is_zeroed else simulator
        self._head["worlds"][name] = as_json(describe(world, sampler, str(world.folder)))

    def announced(self) -> Iterator[tuple[str, Simulator]]:
        """Yield the worlds by name, and say which is measured."""
        for name, simulator in self.simulators.items():
            print(name, flush=True)
            yield name, simulator

    def _find_episodes(self) -> None:
        """Find out now, and not after an hour, what can be measured."""
        self._find_starts()
        if {"fidelity", REVISITS} & set(self.parts):
            features = Path(self.config.features) if self.config.features else SHIPPED_FEATURES
            self.feature_network = load_features(features, self.device.device)
        self._find_revisits()
        data, asked, parts = self.data, self.config, self.parts
        gaps: set[int] = set()
        need_gaps = self._starts is None and set(parts) - set(NEED_NO_GAP)
        known = choose_sets(data, RECALL, []) if need_gaps else {}
        if "recall" in parts:
            self.recall_gaps = list(self._within_max_gap(RECALL, asked.gaps))
            gaps |= {*self.recall_gaps}
        if set(AT_TURNS) & set(parts):
            default = TRAINED_GAP if TRAINED_GAP in known else next(iter(known))
            self.intervention_gaps = list(choose_sets(data, RECALL, asked.intervention_gaps or [default]))
            gaps |= {*self.intervention_gaps}
        if "fidelity" in parts:
            within = self._up_to_max_gap(known) or [min(known)]
            long_enough = (gap for gap in within if 2 * gap >= asked.fidelity_frames)
            self.fidelity_gap = next(long_enough, max(within))
            gaps |= {self.fidelity_gap}
        if set(FROM_STARTS) & set(parts) and self._starts is None:
            gaps |= {next(iter(known))}
        self.recall_sets = {gap: self._open(known[gap], gap) for gap in sorted(gaps)}
        self.pair_sets: dict[int, ReturnSet] = {}
        if "pairs" in parts:
            # Recorded apart, or among the episodes of a gap.
            kind = PAIRS if find_sets(data, PAIRS) else RECALL
            folders = self._within_max_gap(kind, asked.pair_gaps)
            try:
                self.pair_sets = {gap: paired(self._open(folder, gap)) for gap, folder in folders.items()}
            except WorldError as error:
                if parts == ["pairs"] or asked.pair_gaps:
                    raise
                self._skip(["pairs"], str(error))
        starts = [] if self._starts is None else [self._starts]
        sets = [*self.recall_sets.values(), *self.pair_sets.values(), *starts]
        self._print_sets(sets, known)
        if self.revisits is not None:
            print(self.revisits.summary, flush=True)
            sets.append(self.revisits)
        self.pair_sets = {gap: s.first(2 * asked.num_pairs) for gap, s in self.pair_sets.items()}
        # What has to be alike in runs that are put side by side.
        settings = {
            "seed": self.seed,
            "num_episodes": asked.num_episodes,
            "context_frames": asked.context_frames,
            "distance": asked.distance,
            "angle_degrees": asked.angle_degrees,
        }
        source = sets[0].source if sets else ""
        self._head["data"] = {"folder": str(data), "source": source, "settings": settings}

    def _find_starts(self) -> None:
        """Where the data are ordinary recordings, leave out what needs episodes that come back."""
        data, config, parts = self.data, self.config, self.parts
        asked = [part for part in parts if part in FROM_STARTS]
        folder = find_recordings(data)
        named = [*config.gaps, *config.intervention_gaps, *config.pair_gaps]
        if not asked or folder is None or named or find_sets(data, RECALL):
            return
        self._starts = StartStates(
            folder,
            self.actions,
            self.size,
            context_frames=max(1, config.context_frames),
            count=config.num_episodes or MIN_EPISODES,
            seed=self.seed,
        )
        kept = [*asked, *(["pairs"] if "pairs" in parts and find_sets(data, PAIRS) else [])]
        kept += [REVISITS] if REVISITS in parts else []
        why = f"{data} holds no folder {RECALL}-NNN of episodes that come back (docs/consistency.md)"
        self._skip([part for part in parts if part not in kept], why)

    def _find_revisits(self) -> None:
        """Find poses that come back: in a folder of their own, or where the data are ordinary recordings."""
        if REVISITS not in self.parts:
            return
        folder = find_recordings(self.data / REVISITS) or find_recordings(self.data)
        try:
            if folder is None:
                raise WorldError(
                    f"{self.data} holds no folder {REVISITS} of recordings (docs/consistency.md)"
                )
            recordings = Recordings(folder, self.actions, self.size)
            own = self.config
            is_clear = partial(recognise, self.feature_network)
            self.revisits = RevisitSet(
                recordings, own.revisits, own.num_revisits, self.seed, rungs=own.rungs, is_clear=is_clear
            )
        except WorldError as error:
            if self.parts == [REVISITS]:
                raise
            self._skip([REVISITS], str(error))

    def find_seen(self, game: str) -> FindSeen | None:
        """Return what tells which parts of a game's frames were in view before, where it is known."""
        if pixels := self.config.tile_pixels:
            return seen_tiles((self.size[0] // pixels, self.size[1] // pixels), pixels)
        return seen_rooms(self.size) if game == FRESH_ROOMS else None

    def _skip(self, parts: Sequence[str], why: str) -> None:
        """Leave parts out, and say so here and in the report."""
        if parts:
            self.parts = [part for part in self.parts if part not in parts]
            self._head.setdefault("skipped", {}).update(dict.fromkeys(parts, why))
            print(f"not measured: {', '.join(parts)}; {why}", flush=True)

    def _print_sets(self, sets: Iterable[ReturnSet | StartStates], known: Iterable[int]) -> None:
        """Say which episodes there are, and which of them are left out."""
        config, parts = self.config, self.parts
        for found in sets:
            few = len(found) < MIN_EPISODES
            print(found.summary + f"; reported numbers need {MIN_EPISODES}" * few, flush=True)
        if "recall" in parts and (beyond := sorted(set(known) - set(self.recall_gaps))):
            print(f"left out of recall, beyond consistency.max_gap={config.max_gap}: {beyond}")
        if config.num_turns and {"interventions", "continuation"} & set(parts):
            print(f"interventions and continuation: the first {config.num_turns} episodes of a gap at most")
        if config.num_pairs and "pairs" in parts:
            print(f"pairs: the first {config.num_pairs} at most")

    def _within_max_gap(self, kind: str, named: Sequence[int]) -> dict[int, Path]:
        """Return the folders of named gaps, or of all up to `max_gap`."""
        found = choose_sets(self.data, kind, named)
        kept = list(found) if named else self._up_to_max_gap(found)
        if not kept:
            there = ", ".join(f"{kind}-{gap:03d}" for gap in found)
            names = "gaps" if kind == RECALL else "pair_gaps"
            raise WorldError(
                f"consistency.max_gap={self.config.max_gap} leaves nothing of {self.data}, which has "
                f"{there}; raise it or name the gaps in consistency.{names}"
            )
        return {gap: found[gap] for gap in kept}

    def _up_to_max_gap(self, gaps: Iterable[int]) -> list[int]:
        return [gap for gap in gaps if not self.config.max_gap or gap <= self.config.max_gap]

    @property
    def starts(self) -> ReturnSet | StartStates:
        """Episodes to begin at: those of the least gap, or frames of ordinary ones."""
        return next(iter(self.recall_sets.values())) if self._starts is None else self._starts

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
        (height, width), pixels = self.size, self.config.tile_pixels
        if not pixels or not self.recall_sets:
            return None
        if height % pixels or width % pixels:
            raise WorldError(f"tiles of {pixels} pixels do not fill frames of {width} x {height}")
        first = next(iter(self.recall_sets.values()))
        tiles = find_kinds(next(first.batches(TILE_EPISODES)).real.flatten(0, 1), pixels)
        print(f"{len(tiles.pictures)} kinds of tiles", flush=True)
        return tiles

    def long_dreams(self, name: str) -> LongDreams:
        """Return the long dreams of a world, which two parts look at."""
        if name not in self._long:
            starts, num_frames = self.starts.first(max(2, self.config.num_long)), self.config.long_frames
            self._long[name] = dream_long(self.simulators[name], starts, num_frames=num_frames, **self.how)
        return self._long[name]

    def _open_report(self, path: Path) -> Report:
        """Open the report; raises `WorldError` if another run measured other data, or worlds otherwise."""
        head, data = self._head, self._head["data"]
        settings: dict[tuple[str, ...], Any] = {
            ("suite",): CONSISTENCY,
            ("data", "folder"): data["folder"],
            **{("data", "settings", name): value for name, value in data["settings"].items()},
        }
        if data["source"]:
            settings["data", "source"] = data["source"]
        for name, world in head["worlds"].items():
            settings |= {("worlds", name, key): world[key] for key in ("identity", "denoising_steps")}
        report = Report.open(path, head, settings, objects=("worlds", "runs", "data"))
        asked = asdict(self.config)
        for part in self.parts:
            for name in set(report.data["runs"].get(part, {})) - set(self.simulators):
                keys = ("runs", part, name, "settings", CONSISTENCY)
                report.require({(*keys, count): asked[count] for count in COUNTS_OF_PARTS.get(part, ())})
        return report


def name_of(place: str | None) -> str:
    """Return what a world is called that nobody named: training leaves it in RUN/world."""
    path = Path(place or next(iter(shipped_worlds()), ""))
    return path.parent.name if path.name == "world" and path.parent.name else path.name
