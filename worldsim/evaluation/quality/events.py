"""Events in dreams: does a button do what it does in the game, do walls stop, does health go its way?

Each situation of held-out recordings is dreamt once. The same is measured of the recorded frames themselves,
as the ceiling of what the detectors see.
"""

# N situations, B batch, K frames, A action axes, H W frame size

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from worldsim.errors import WorldError
from worldsim.evaluation.inputs.clips import ClipBatch
from worldsim.evaluation.inputs.situations import LabelledRecordings, Situation, spread
from worldsim.evaluation.quality.features import FeatureNetwork
from worldsim.evaluation.quality.signs import Accuracy, Detector, view_change
from worldsim.evaluation.rollout import generate, join, progress
from worldsim.evaluation.statistics import Estimate, event_rate, rate, ratio_of_sums, resample
from worldsim.games.events import Count, Event, Measures
from worldsim.simulator import Simulator

PUSH_FRAMES, LONG_PUSH_FRAMES = 30, 60
LATE_FRAMES = 10
"""A wall has stopped the player if the view is the same in the last frame of a push and so many before it."""
BACK_FRAMES, TURN_FRAMES, WALK_FRAMES = 6, 26, 20
"""How a wall is left, and for how long the view is watched then; so long a turn is half a one."""
OPEN_SHARE = 0.5
"""Of the frames of that walk: in more of them the view is a room."""
METER_FRAMES = 64
AT_LEAST = 4


class Dreamer(Protocol):
    """Something that goes on from real frames under given actions: a world, or what it is compared with."""

    def dream(self, batch: ClipBatch, actions: Tensor) -> Tensor:
        """Return the frames that follow the clips under actions `[B, K, A]`: `[B, K, H, W, 3]` uint8."""
        ...


class WorldDreams(Dreamer):
    """A world that watches the clips and dreams on.

    Args:
        simulator: The world.
        seed: Of the noise.
    """

    def __init__(self, simulator: Simulator, seed: int) -> None:
        self._simulator, self._seed = simulator, seed

    def dream(self, batch: ClipBatch, actions: Tensor) -> Tensor:
        """Return what it dreams."""
        state = batch.begin_dreams(self._simulator, batch.frames.shape[1], self._seed)
        with progress("dreams", actions.shape[0] * actions.shape[1]) as bar:
            return generate(self._simulator, state, actions, bar).cpu()


@dataclass(frozen=True, kw_only=True, slots=True)
class EventScores:
    """Of an event: shares of situations, 0 to 1.

    Attributes:
        count: Situations.
        seen: Dreams that show it.
        of_recorded: Recorded frames that show it, by the same detector.
        game: Situations in which the game says that it happened.
        over_game: Dreams that show it, over the recorded frames that do.
        unasked: Dreams that show it though the button is not pressed; None where it may happen without.
    """

    count: int
    seen: Estimate
    of_recorded: Estimate
    game: Estimate
    over_game: Estimate
    unasked: Estimate | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class WallScores:
    """Shares of situations, 0 to 1: walls that stop, ways that are free, views that open when one turns away.

    Attributes:
        threshold: Change of the view below which it has been stopped, in grey levels of 255.
        accuracy: On recorded frames that the threshold was not chosen by: `shown` is stopped.
    """

    threshold: float
    accuracy: Accuracy
    stopped: Estimate
    stopped_of_recorded: Estimate
    walks: Estimate
    walks_of_recorded: Estimate
    lets_go: Estimate


@dataclass(frozen=True, kw_only=True, slots=True)
class MeterScores:
    """How the player's meter goes, read from pictures.

    Attributes:
        reads: Share of recorded frames whose reading is off by less than the least change that counts.
        direction: Dreams whose meter goes up or down as the game's, of those in which the game's did.
        of_recorded: The same of the recorded frames.
        game_deaths, dream_deaths: A thousand frames.
        deaths_over_game: Their ratio.
    """

    reads: Estimate
    direction: Estimate
    of_recorded: Estimate
    game_deaths: Estimate
    dream_deaths: Estimate
    deaths_over_game: Estimate


class EventMeasures:
    """Measures of what happens in dreams of a game, against its recordings.

    Args:
        dreamer: What is measured.
        recordings: Held out, with labels.
        measures: What the game says of itself.
        network: Gives frames features.
        count: Situations of each measure, or as many as there are.
        batch_size: Dreams at a time.
        seed: Of the situations.
    """

    def __init__(
        self,
        dreamer: Dreamer,
        recordings: LabelledRecordings,
        measures: Measures,
        network: FeatureNetwork,
        *,
        count: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self._dreamer, self._recordings, self._measures = dreamer, recordings, measures
        self._network, self._count, self._batch_size, self._seed = network, count, batch_size, seed
        self._detectors: dict[str, Detector] = {}

    def of(self, dreamer: Dreamer) -> EventMeasures:
        """Return the same measures of another dreamer, with the same situations and detectors."""
        other = copy(self)
        other._dreamer = dreamer
        return other

    @property
    def accuracies(self) -> dict[str, Accuracy]:
        """Of the detectors used so far, on recorded frames, by what they detect."""
        return {name: detector.accuracy for name, detector in self._detectors.items()}

    def event(self, event: Event) -> EventScores:
        """Press the button of an event, and where it needs the button, dream it once more without.

        Raises:
            WorldError: If there are too few situations.
        """
        situations = self._choose(self._recordings.events(event), event.name)
        axis, _ = self._recordings.value_of(event.axis, event.button)
        seen = []
        for batch, actions, frames in self._batches(situations, event.within):
            last = batch.frames[:, -1]
            found = {
                "seen": self._shows(event, last, self._dreamer.dream(batch, actions)),
                "recorded": self._shows(event, last, frames),
            }
            if event.needs_press:
                instead = actions.clone()
                instead[:, :, axis] = 0
                found["unasked"] = self._shows(event, last, self._dreamer.dream(batch, instead))
            seen.append(found)
        shares, names = join(seen), self._recordings.names(situations)
        happened = np.array([one.happened for one in situations])
        return EventScores(
            count=len(situations),
            seen=rate(shares["seen"], names),
            of_recorded=rate(shares["recorded"], names),
            game=rate(happened, names),
            over_game=ratio_of_sums(shares["seen"].astype(float), shares["recorded"].astype(float)),
            unasked=rate(shares["unasked"], names) if event.needs_press else None,
        )

    def walls(self) -> WallScores:
        """Push against walls, walk where the way is free, and leave a wall after a long push."""
        measures, recordings = self._measures, self._recordings
        pushes = self._choose(recordings.pushes(measures, PUSH_FRAMES), "pushing against a wall")
        walks = self._choose(recordings.walks(measures, PUSH_FRAMES), "walking ahead")
        change: dict[str, list[np.ndarray]] = {}
        for kind, situations in (("push", pushes), ("walk", walks)):
            for batch, actions, frames in self._batches(situations, PUSH_FRAMES):
                dreamt = self._dreamer.dream(batch, actions)
                change.setdefault(kind, []).append(self._late_change(dreamt))
                change.setdefault(f"recorded {kind}", []).append(self._late_change(frames))
        found = {name: np.concatenate(parts) for name, parts in change.items()}
        threshold, accuracy = self._fit_stop(found["recorded push"], found["recorded walk"], pushes, walks)
        names = {"push": recordings.names(pushes), "walk": recordings.names(walks)}
        return WallScores(
            threshold=threshold,
            accuracy=accuracy,
            stopped=rate(found["push"] < threshold, names["push"]),
            stopped_of_recorded=rate(found["recorded push"] < threshold, names["push"]),
            walks=rate(found["walk"] >= threshold, names["walk"]),
            walks_of_recorded=rate(found["recorded walk"] >= threshold, names["walk"]),
            lets_go=self._leave(pushes),
        )

    def meter(self) -> MeterScores:
        """Go on as recorded and read the meter."""
        meter, recordings = self._measures.meter, self._recordings
        changing = self._choose(recordings.changes(self._measures, METER_FRAMES), f"changes of {meter.label}")
        moves: list[dict[str, np.ndarray]] = []
        for batch, actions, frames in self._batches(changing, METER_FRAMES):
            before = meter.read(batch.frames[:, -1].numpy())
            dreamt = self._dreamer.dream(batch, actions)
            ends = {"dream": dreamt[:, -1], "recorded": frames[:, -1]}
            moves.append({name: meter.read(each.numpy()) - before for name, each in ends.items()})
        change, names = join(moves), recordings.names(changing)
        label = [np.clip(columns[meter.label], 0, 100) for columns in recordings.columns]
        true = np.array(
            [label[one.episode][one.frame + METER_FRAMES] - label[one.episode][one.frame] for one in changing]
        )
        right = {
            name: (np.sign(values) == np.sign(true)) & (np.abs(values) >= meter.least_change / 2)
            for name, values in change.items()
        }
        reads = np.abs(change["recorded"] - true) < meter.least_change
        game, dreams, exposure = self._deaths()
        return MeterScores(
            reads=rate(reads, names),
            direction=rate(right["dream"], names),
            of_recorded=rate(right["recorded"], names),
            game_deaths=event_rate(game, exposure["game"], 1000),
            dream_deaths=event_rate(dreams, exposure["dreams"], 1000),
            deaths_over_game=_rate_ratio(game, exposure["game"], dreams, exposure["dreams"]),
        )

    def _deaths(self) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Return whether game and dreams ended, `[N]` both, and how long each was watched."""
        meter, tables = self._measures.meter, self._recordings.tables
        places = self._choose(self._recordings.anywhere(), "frames")
        game, dreams = [], []
        watched: dict[str, list[int]] = {"game": [], "dreams": []}
        for batch, actions, _ in self._batches(places, METER_FRAMES):
            shown = meter.read(self._dreamer.dream(batch, actions).numpy())  # [B, K]
            for clip, values in zip(batch.clips, shown, strict=True):
                frame = clip.begin + self._recordings.context_frames - 1
                label = self._recordings.columns[clip.episode][meter.label]
                length = min(METER_FRAMES, len(tables[clip.episode].actions) - 1 - frame)
                over = np.flatnonzero(values[:length] <= meter.empty)
                game.append(bool((label[frame + 1 : frame + 1 + length] <= 0).any()))
                dreams.append(bool(len(over)))
                watched["game"].append(length)
                watched["dreams"].append(int(over[0]) + 1 if len(over) else length)
        exposure = {name: np.array(values, dtype=float) for name, values in watched.items()}
        return np.array(game, dtype=float), np.array(dreams, dtype=float), exposure

    def _leave(self, pushes: Sequence[Situation]) -> Estimate:
        """Return how often the view is a room after a long push, steps back and half a turn."""
        detector = self._detector_of(self._measures)
        actions = self._way_off()
        opened = []
        for batch, *_ in self._batches(pushes, 1):
            frames = self._dreamer.dream(batch, actions.expand(len(batch.clips), -1, -1))
            late, earlier = frames[:, -WALK_FRAMES:], frames[:, -WALK_FRAMES - 1 : -1]
            shown = detector.detect(late.flatten(0, 1), earlier.flatten(0, 1)).unflatten(0, late.shape[:2])
            opened.append((shown.float().mean(dim=1) > OPEN_SHARE).numpy())
        return rate(np.concatenate(opened), self._recordings.names(pushes))

    def _way_off(self) -> Tensor:
        measures, layout = self._measures, self._recordings.layout

        def hold(pressed: tuple[str, str], count: int) -> list[np.ndarray]:
            action = layout.noop()
            axis, value = self._recordings.value_of(*pressed)
            action[axis] = value
            return [action] * count

        rows = [*hold(measures.forward, LONG_PUSH_FRAMES), *hold(measures.backward, BACK_FRAMES)]
        rows += [*hold(measures.turn, TURN_FRAMES), *hold(measures.forward, WALK_FRAMES)]
        return torch.from_numpy(np.stack(rows))

    def _late_change(self, frames: Tensor) -> np.ndarray:
        return view_change(frames[:, -1], frames[:, -1 - LATE_FRAMES], self._measures.num_rows)

    def _fit_stop(
        self,
        stopped: np.ndarray,
        walking: np.ndarray,
        pushes: Sequence[Situation],
        walks: Sequence[Situation],
    ) -> tuple[float, Accuracy]:
        """Choose the threshold by every other episode, check it on the rest."""
        odd = [np.array([one.episode % 2 for one in each], dtype=bool) for each in (pushes, walks)]
        fitting = [values[~is_odd] for values, is_odd in zip((stopped, walking), odd, strict=True)]
        if not all(map(len, fitting)):
            fitting = [stopped, walking]
        bounds = np.sort(np.concatenate(fitting))
        errors = [(fitting[0] >= bound).mean() + (fitting[1] < bound).mean() for bound in bounds]
        best = np.flatnonzero(np.array(errors) == min(errors))
        threshold = float(bounds[best[len(best) // 2]])
        shares = []
        for values, is_odd, chosen, sign in (
            (stopped, odd[0], pushes, -1),
            (walking, odd[1], walks, 1),
        ):
            rows = is_odd if is_odd.any() else ~is_odd
            names = [name for name, kept in zip(self._recordings.names(chosen), rows, strict=True) if kept]
            is_right = values[rows] < threshold if sign < 0 else values[rows] >= threshold
            shares.append(rate(is_right, names))
        return threshold, Accuracy(shown=shares[0], hidden=shares[1])

    def _shows(self, event: Event, before: Tensor, frames: Tensor) -> np.ndarray:
        """Return whether frames `[B, K, H, W, 3]` show an event, `[B]` bool, given the frame before them."""
        shows = event.shows
        if isinstance(shows, Count):
            return shows.read(frames[:, -1].numpy()) > shows.read(before.numpy())
        detector = self._detector(
            shows.name, lambda: Detector(shows, self._network, self._recordings, self._seed)
        )
        earlier = torch.cat([before[:, None], frames[:, :-1]], dim=1)
        found = detector.detect(frames.flatten(0, 1), earlier.flatten(0, 1))
        return found.unflatten(0, frames.shape[:2]).sum(dim=1).numpy() >= event.least_frames

    def _detector_of(self, measures: Measures) -> Detector:
        sign = measures.open_view
        return self._detector(sign.name, lambda: Detector(sign, self._network, self._recordings, self._seed))

    def _detector(self, name: str, build: Callable[[], Detector]) -> Detector:
        if name not in self._detectors:
            self._detectors[name] = build()
        return self._detectors[name]

    def _choose(self, situations: Sequence[Situation], what: str) -> list[Situation]:
        if len({one.episode for one in situations}) < AT_LEAST:
            raise WorldError(
                f"{self._recordings.recordings.folder}: {what}: {len(situations)} situations, in fewer than "
                f"{AT_LEAST} episodes; record more"
            )
        return spread(situations, self._count, self._seed)

    def _batches(
        self, situations: Sequence[Situation], num_frames: int
    ) -> Iterator[tuple[ClipBatch, Tensor, Tensor]]:
        return self._recordings.batches(situations, num_frames, self._batch_size)


def _rate_ratio(game: np.ndarray, watched: np.ndarray, dreams: np.ndarray, dreamt: np.ndarray) -> Estimate:
    """Return the dreams' events over their time, over the game's."""

    def ratio(rows: np.ndarray) -> np.ndarray:
        ours = dreams[rows].sum(axis=-1) / dreamt[rows].sum(axis=-1)
        return ours / (game[rows].sum(axis=-1) / watched[rows].sum(axis=-1))

    return resample(ratio, len(game))
