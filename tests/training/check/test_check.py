"""`python -m training.check`: faults put into recordings are found, and sound recordings are let pass."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.public_runs import run_command
from training.check.findings import Finding, find_all, repeated_every
from training.check.measures import Measured, changes_of, explained, longest_run, measure_episode
from worldsim.actions import ActionAxis, ActionLayout
from worldsim.data.episodes import DatasetInfo, Episode, EpisodeWriter, read_episode
from worldsim.data.sequences import EpisodeReference

TURN = ActionAxis(name="turn", buttons=("left", "right"), keys=(("left",), ("right",)))
JUMP = ActionAxis(name="jump", buttons=("jump",), keys=(("space",),))
LAYOUT = ActionLayout((TURN, JUMP))
INFO = DatasetInfo(name="panorama", width=64, height=32, frame_rate=10.0, actions=LAYOUT, licence="none")
RANDOM = np.random.default_rng(0)
PANORAMA = np.kron(RANDOM.integers(0, 255, (4, 64, 3)), np.ones((8, 8, 1))).astype(np.uint8)
"""What a player sees who turns around, `[32, 512, 3]`."""


def play(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return frames `[T, H, W, 3]` and actions `[T, 2]` of somebody who looks around."""
    random = np.random.default_rng(seed)
    actions = np.stack(
        [np.repeat(random.integers(0, 3, count), 4)[:count], random.integers(0, 2, count)], axis=1
    )
    speed = np.array([1, -3, 3])[actions[:, 0]]
    places = 100 * seed + np.concatenate([[0], np.cumsum(speed[:-1])])
    columns = (places[:, None] + np.arange(64)) % PANORAMA.shape[1]
    return PANORAMA[:, columns].transpose(1, 0, 2, 3), actions


def measured(seed: int, count: int = 150, **changes: np.ndarray) -> Measured:
    frames, actions = play(seed, count)
    frames, actions = changes.get("frames", frames), changes.get("actions", actions)
    reference = EpisodeReference(Path("data"), f"episode-{seed}", count, INFO)
    return measure_episode(reference, Episode(name=reference.name, frames=frames, actions=actions))


def split(num_episodes: int = 8) -> dict[str, list[Measured]]:
    episodes = [measured(seed) for seed in range(num_episodes)]
    return {"train": episodes[1:], "heldout": episodes[:1]}


def found(splits: dict[str, list[Measured]], layout: ActionLayout = LAYOUT) -> dict[str, Finding]:
    findings, _ = find_all(layout, splits, [])
    return {each.about: each for each in findings if each.about != "little video"}


def changed(splits: dict[str, list[Measured]], **changes: object) -> dict[str, list[Measured]]:
    return {role: [replace(each, **changes) for each in episodes] for role, episodes in splits.items()}


def test_sound_recordings_have_no_findings_but_their_number() -> None:
    assert found(split()) == {}
    findings, shares = find_all(LAYOUT, split(), [])
    assert [each.told for each in findings] == [
        "there are 1,050 frames to train on; a first world wants 20,000 or more"
    ]
    assert shares is not None
    assert shares.best == 0
    assert shares.shares[0] > 0.9 > 0.8 > shares.shares[1]


def test_movement_is_measured_in_pixels() -> None:
    column = np.sin(np.arange(80) / 8)[None, :] * 100
    pictures = np.stack([np.repeat(column[:, shift : shift + 60], 40, axis=0) for shift in (0, 1, 2)])
    vertical, horizontal, _ = changes_of(pictures.astype(np.float32))[0, :3]
    assert horizontal == pytest.approx(-1, abs=0.05)
    assert vertical == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("shift", [-4, -2, 1, 3])
def test_a_shift_between_actions_and_pictures_is_found(shift: int) -> None:
    splits = {
        role: [replace(each, actions=np.roll(each.actions, shift, axis=0)) for each in episodes]
        for role, episodes in split().items()
    }
    finding = found(splits)["early actions" if shift < 0 else "late actions"]
    frames = f"{abs(shift)} frame{'s' if abs(shift) > 1 else ''} ({abs(shift) / 10:.2f} s)"
    expected = (
        f"pictures follow the actions {frames} later" if shift < 0 else f"actions are told {frames} too late"
    )
    assert finding.told.startswith(expected)
    # Only what moves before its cause, and sooner than anybody could answer it, is certainly wrong.
    assert finding.is_wrong == (shift == 1)


def test_an_action_that_shows_a_frame_later_is_no_fault() -> None:
    splits = changed(split())
    for each in splits["train"] + splits["heldout"]:
        each.actions[:] = np.roll(each.actions, -1, axis=0)
    assert found(splits) == {}


def test_a_drift_is_found() -> None:
    def drifting(seed: int) -> Measured:
        each = measured(seed, 400)
        late = np.minimum((np.arange(400) * 1.012).astype(int), 399)
        return replace(each, actions=each.actions[late])

    finding = found({"data": [drifting(seed) for seed in range(6)]})["actions and pictures drift apart"]
    assert finding.is_wrong


def test_buttons_that_are_not_or_always_pressed_are_named() -> None:
    def calm(each: Measured) -> Measured:
        actions = each.actions.copy()
        actions[:, 1], actions[:, 0] = 1, np.where(actions[:, 0] == 2, 0, actions[:, 0])
        return replace(each, actions=actions)

    findings = found({role: [calm(each) for each in episodes] for role, episodes in split().items()})
    assert findings["unused buttons"].told.startswith("never pressed: turn/right;")
    assert not findings["unused buttons"].is_wrong
    assert findings["held all the time"].told.startswith("jump/jump is held in 100.0%")
    nothing = changed(split())
    for each in nothing["train"] + nothing["heldout"]:
        each.actions[:] = 0
    assert found(nothing)["unused buttons"].is_wrong


def test_dead_empty_and_doubled_episodes_and_cuts_are_named_and_shown() -> None:
    splits = split()
    frames, actions = play(3, 150)
    standing = frames.copy()
    standing[40:90] = standing[40]
    cut = frames.copy()
    cut[70:] //= 4
    splits["train"] += [
        measured(20, frames=np.repeat(frames[:1], 150, axis=0)),
        measured(21, frames=standing),
        measured(22, frames=np.where(np.arange(150)[:, None, None, None] < 20, 0, frames).astype(np.uint8)),
        measured(23, frames=cut),
        replace(splits["heldout"][0], reference=replace(splits["heldout"][0].reference, name="again")),
    ]
    findings = found(splits)
    assert findings["dead episodes"].episodes == ["data/episode-20"]
    assert findings["dead frames"].episodes == ["data/episode-21"]
    assert findings["empty frames"].episodes == ["data/episode-22"]
    assert findings["empty frames"].frames[0].max() == 0
    assert "data/episode-23 at 70" in findings["cuts"].told
    before, after = findings["cuts"].frames[-1]
    assert before.mean() > 3 * after.mean()
    assert findings["duplicates"].told == (
        "data/episode-0 is the same recording as data/again, so what is held out was trained on"
    )
    assert findings["duplicates"].is_wrong
    assert len(findings["duplicates"].frames) == 2


def test_frames_that_repeat_tell_the_frame_rate_of_the_game() -> None:
    episodes = [measured(seed, frames=np.repeat(play(seed, 75)[0], 2, axis=0)) for seed in range(4)]
    finding = found({"data": episodes})["repeated frames"]
    assert "the game has 5 frames a second, not 10: import it with frame_rate=5" in finding.told
    assert repeated_every(np.arange(300) % 3 > 0) == 3
    assert repeated_every(np.arange(300) % 3 == 0) is None
    assert longest_run(np.array([0, 1, 1, 0, 1, 1, 1], bool)) == (4, 3)
    assert longest_run(np.zeros(3, bool)) == (0, 0)


def test_episodes_that_are_too_short_are_wrong_if_all_are() -> None:
    splits = {"train": [measured(seed, 20) for seed in range(3)], "heldout": [measured(9, 40)]}
    findings, _ = find_all(LAYOUT, splits, ["a.mp4 is damaged"])
    assert [each.told for each in findings if each.is_wrong] == [
        "a.mp4 is damaged",
        "train has no episode of at least 24 frames, the longest has 20",
        "heldout has no episode of at least 48 frames, the longest has 40",
    ]
    assert explained(splits["train"], LAYOUT.num_values) is None
    with warnings.catch_warnings(action="error"):
        findings, _ = find_all(LAYOUT, {"train": [measured(0, 1)]}, [])
    assert findings[0].told == "train has no episode of at least 24 frames, the longest has 1"


def record(folder: Path, seeds: range, count: int = 60) -> None:
    for seed in seeds:
        frames, actions = play(seed, count)
        with EpisodeWriter(folder, f"episode-{seed}", INFO) as writer:
            for index, frame in enumerate(frames):
                writer.add(np.ascontiguousarray(frame), None if index == count - 1 else actions[index])


def check(data: Path, out: Path, *settings: str) -> None:
    run_command("check", f"data={data}", f"out={out}", "num_workers=1", *settings)


def test_the_command_writes_a_page_and_exits_by_what_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    record(data / "train", range(1, 4))
    record(data / "heldout", range(4, 5))
    check(data, out)
    assert "0 things wrong, 1 unusual" in capsys.readouterr().out
    numbers = json.loads((out / "check.json").read_text())
    assert numbers["frames"]["train"] == {f"episode-{seed}": 60 for seed in range(1, 4)}
    assert sum(numbers["buttons"]["turn"].values()) == pytest.approx(1)
    page = (out / "check.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert "turn/right" in page and "<svg" in page
    with pytest.raises(SystemExit):
        check(data, out, "strict=true")
    check(data / "train", out)
    assert json.loads((out / "check.json").read_text())["frames"].keys() == {"recordings"}
    lines = (data / "train/episode-2.jsonl").read_text().splitlines(keepends=True)
    (data / "train/episode-2.jsonl").write_text("".join(lines[:-3]))
    (data / "train/episode-3.mp4").write_bytes((data / "train/episode-3.mp4").read_bytes()[:900])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        check(data, out)
    said = capsys.readouterr()
    assert ended.value.code == 1
    assert (
        "WRONG: " in said.out and "episode-2.mp4 has 60 frames but episode-2.jsonl has 57 lines" in said.out
    )
    assert "episode-3.mp4 is not a readable video" in said.out
    assert said.err.splitlines()[-1].startswith("error: 2 things wrong, 1 unusual in ")
    assert len(read_episode(data / "train", "episode-1")) == 60


def test_what_is_no_recording_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        check(tmp_path, tmp_path / "out")
    assert "holds no gameplay video" in capsys.readouterr().err
    record(tmp_path / "train", range(1))
    replace(INFO, frame_rate=20.0).save(tmp_path / "heldout")
    with pytest.raises(SystemExit):
        check(tmp_path, tmp_path / "out")
    assert "has other sizes, buttons or frame rates than" in capsys.readouterr().err
