"""Findings about gameplay video: what a training would stumble over, and what is unusual."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from training.check.measures import SHIFTS, Explained, Measured, explained, longest_run
from worldsim.actions import ActionLayout

MIN_TRAIN, MIN_HELDOUT = 24, 48
"""Frames that an episode has to have for a training of the usual settings: docs/your-game.md."""
FEW_FRAMES = 20_000
RARE = 0.005
COMMON = 0.98
STILL_SECONDS = 2.0
STILL_SHARE = 0.25
FLAT_SHARE = 0.02
FITTING = (0, -1)
"""Shifts that are as they should be: a game may show a frame later what was pressed."""
REACTION_SECONDS = 0.2
"""Within which nobody answers what they see."""
MIN_PIECES = 4
EXPLAINED, AGREEMENT = 0.02, 0.6
"""Shares, of the variance and of the recordings, from which on a shift counts."""
DRIFT_FRAMES = 2
MAX_SHOWN = 5
SAME_LEVELS = 3.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something about the recordings.

    Attributes:
        is_wrong: Whether a training would fail or be misled; else it is unusual.
        about: What it is, a short heading.
        told: One sentence.
        episodes: Names of episodes where it shows, to look at.
        frames: Frames to look at, `[N, H, W, 3]` uint8 for each of these.
    """

    is_wrong: bool
    about: str
    told: str
    episodes: Sequence[str] = ()
    frames: Sequence[np.ndarray] = field(default=())


def find_all(
    layout: ActionLayout, splits: dict[str, list[Measured]], broken: Sequence[str]
) -> tuple[list[Finding], Explained | None]:
    """Return what is wrong, then what is unusual, and what actions explain at each shift.

    Args:
        layout: Buttons of the recordings.
        splits: Episodes that can be read, by `train` and `heldout` or the name of the one folder.
        broken: Sentences about those that cannot.
    """
    episodes = [each for split in splits.values() for each in split]
    found = [_finding(True, "cannot be read", sentence) for sentence in broken]
    shares = explained(episodes, layout.num_values) if episodes else None
    found += _lengths(splits)
    if episodes:
        found += [*_doubled(splits), *_buttons(layout, episodes), *_pictures(episodes)]
        found += _shift(layout, episodes, shares)
    return sorted(found, key=lambda each: not each.is_wrong), shares


def _finding(
    is_wrong: bool, about: str, told: str, episodes: Sequence[Measured] = (), strip: str = "strip"
) -> Finding:
    """Return a finding with the strips of some episodes, by the name of their attribute."""
    shown = episodes[:MAX_SHOWN]
    return Finding(
        is_wrong=is_wrong,
        about=about,
        told=told,
        episodes=[each.name for each in shown],
        frames=[operator.attrgetter(strip)(each) for each in shown],
    )


def _lengths(splits: dict[str, list[Measured]]) -> Iterator[Finding]:
    for name, episodes in splits.items():
        least = MIN_HELDOUT if name == "heldout" else MIN_TRAIN
        short = [each for each in episodes if len(each) < least]
        if len(short) == len(episodes):
            longest = max(map(len, episodes), default=0)
            told = f"{name} has no episode of at least {least} frames, the longest has {longest}"
            yield _finding(True, "too short", told, short)
        elif short:
            told = f"{len(short)} of {len(episodes)} episodes of {name} have fewer than {least} frames"
            yield _finding(False, "short episodes", f"{told}, and will hardly be used", short)
    num_frames = sum(len(each) for name, split in splits.items() if name != "heldout" for each in split)
    if num_frames < FEW_FRAMES:
        told = f"there are {num_frames:,} frames to train on; a first world wants {FEW_FRAMES:,} or more"
        yield _finding(False, "little video", told)
    if "train" in splits and "heldout" not in splits:
        yield _finding(False, "nothing held out", "there is no folder heldout, which training needs")


def _doubled(splits: dict[str, list[Measured]]) -> Iterator[Finding]:
    first: dict[tuple[int, bytes], list[tuple[str, Measured]]] = {}
    for split, episodes in splits.items():
        for each in episodes:
            alike = first.setdefault((len(each), each.actions.tobytes()), [])
            twin = next((pair for pair in alike if _same(pair[1], each)), None)
            alike.append((split, each))
            if twin is not None:
                is_leak = twin[0] != split
                why = ", so what is held out was trained on" if is_leak else ""
                told = f"{each.name} is the same recording as {twin[1].name}{why}"
                yield _finding(is_leak, "duplicates", told, [twin[1], each])


def _same(one: Measured, other: Measured) -> bool:
    if one.strip.shape != other.strip.shape:
        return False
    return float(np.abs(one.strip.astype(np.float32) - other.strip).mean()) < SAME_LEVELS


def _buttons(layout: ActionLayout, episodes: Sequence[Measured]) -> Iterator[Finding]:
    actions = np.concatenate([each.actions[:-1] for each in episodes])
    if not len(actions):
        return
    never, rare = [], []
    for column, axis in enumerate(layout.axes):
        shares = np.bincount(actions[:, column], minlength=len(axis.buttons) + 1) / len(actions)
        for button, share in zip(axis.buttons, shares[1:], strict=True):
            name = f"{axis.name}/{button}"
            never += [name] if not share else []
            rare += [f"{name} ({share:.2%})"] if 0 < share < RARE else []
        value = int(shares.argmax())
        if shares[value] > COMMON and value:
            held = f"{axis.name}/{axis.buttons[value - 1]} is held in {shares[value]:.1%} of all frames"
            yield _finding(False, "held all the time", f"{held}: a world cannot learn what comes without it")
    if never:
        told = f"never pressed: {_listed(never)}; a world cannot learn what they do"
        yield _finding(len(never) == len(layout.buttons), "unused buttons", told)
    if rare:
        yield _finding(
            False, "rare buttons", f"pressed in fewer than {RARE:.1%} of all frames: {_listed(rare)}"
        )
    idle = float((actions == 0).all(axis=1).mean())
    if COMMON < idle < 1:
        yield _finding(False, "nobody plays", f"no button is pressed in {idle:.1%} of all frames")


def _listed(names: Sequence[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _pictures(episodes: Sequence[Measured]) -> Iterator[Finding]:
    still = np.concatenate([each.is_still for each in episodes])
    stuck = np.concatenate([each.is_stuck for each in episodes])  # empty where all have one frame
    dead = [each for each in episodes if each.is_still.all() and len(each) > 1]
    if dead:
        yield _finding(False, "dead episodes", f"{len(dead)} of {len(episodes)} episodes never change", dead)
    frozen = [
        each
        for each in episodes
        if not each.is_still.all() and longest_run(each.is_stuck)[1] >= _frames(each)
    ]
    if frozen:
        told = (
            f"{len(frozen)} of {len(episodes)} episodes stand still for {STILL_SECONDS:g} s or more though "
            "buttons are pressed"
        )
        yield _finding(False, "dead frames", told, frozen, "stuck_strip")
    if (every := repeated_every(still)) is not None:
        rate = episodes[0].reference.info.frame_rate
        told = (
            f"every frame is shown {every} times, so that the game has {rate / every:g} frames a second, not "
            f"{rate:g}: import it with frame_rate={rate / every:g}"
        )
        yield _finding(False, "repeated frames", told)
    elif len(stuck) and (share := stuck.mean()) > STILL_SHARE and not dead:
        told = f"{share:.0%} of all frames are as the one before, though a button was pressed"
        yield _finding(False, "repeated frames", told)
    flat = [each for each in episodes if each.is_flat.mean() > FLAT_SHARE]
    if flat:
        told = (
            f"{len(flat)} of {len(episodes)} episodes show a single colour in {FLAT_SHARE:.0%} or more frames"
        )
        yield _finding(False, "empty frames", told, flat, "flat_strip")
    jumping = [each for each in episodes if each.jumps]
    if jumping:
        where = "; ".join(f"{each.name} at {_listed(list(map(str, each.jumps)), 4)}" for each in jumping[:3])
        told = f"{len(jumping)} of {len(episodes)} episodes have cuts, where another one may begin: {where}"
        yield _finding(False, "cuts", told, jumping, "cut_strip")


def _frames(each: Measured) -> float:
    return STILL_SECONDS * each.reference.info.frame_rate


def repeated_every(still: np.ndarray) -> int | None:
    """Return how often each frame is shown, where that is regular: 2 for a game at half the frame rate."""
    for every in (2, 3, 4) if len(still) else ():
        share = 1 - 1 / every
        if abs(still.mean() - share) < 0.1:
            # Episodes begin anywhere in the pattern, so new frames need not be at one phase throughout.
            steps = np.diff(np.flatnonzero(~still))
            if len(steps) and (steps % every == 0).mean() > 0.9:
                return every
    return None


def _shift(layout: ActionLayout, episodes: Sequence[Measured], found: Explained | None) -> Iterator[Finding]:
    if found is None:
        return
    best, shares = found.best, found.shares
    delay = abs(best) / episodes[0].reference.info.frame_rate
    moved = f"{abs(best)} frame{'s'[: abs(best) > 1]} ({delay:.2f} s)"
    explains = f"they explain {shares[0]:.1%} of what moves as they are, {shares[best]:.1%} if moved by that"
    if best not in FITTING and is_clear(found, FITTING):
        if best > 0:
            # Nothing moves before its cause; but a player may answer what moved, after a while.
            yield _finding(
                delay < REACTION_SECONDS, "late actions", f"actions are told {moved} too late: {explains}"
            )
        else:
            told = f"pictures follow the actions {moved} later: {explains}"
            told += "; the game answers so late, or actions are told too early"
            yield _finding(False, "early actions", told)
    long = [each for each in episodes if len(each) >= 3 * (2 * max(SHIFTS) + 20)]
    ends = [explained(long, layout.num_values, part) for part in ((0.0, 1 / 3), (2 / 3, 1.0))]
    begin, end = (each.best if each is not None and is_clear(each) else None for each in ends)
    if begin is not None and end is not None and abs(begin - end) >= DRIFT_FRAMES:
        told = (
            f"actions fit best at a shift of {begin:+} frames early in episodes, and of {end:+} late in them"
        )
        yield _finding(True, "actions and pictures drift apart", told)


def is_clear(found: Explained, others: Sequence[int] = ()) -> bool:
    """Return whether the best shift is no chance: it explains something, and most recordings agree on it.

    Args:
        found: What actions explain.
        others: Shifts that do not agree, however near.
    """
    agreeing = [abs(each - found.best) <= 1 and each not in others for each in found.bests]
    is_inside = abs(found.best) < max(SHIFTS) and len(agreeing) >= MIN_PIECES
    return is_inside and found.shares[found.best] > EXPLAINED and float(np.mean(agreeing)) >= AGREEMENT
