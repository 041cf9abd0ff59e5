"""Only the outcome heads of a finished world are trained, on recorded and drawn frames; its pictures stay."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from tests.fakes import tiny_world, write_outcome_dataset, write_tiny_dataset
from training import outcome_heads
from training.calibrate import CalibrateConfig, HeldoutConfig
from training.calibrate import main as calibrate_main
from training.data.latents import DataConfig, choose_episodes, latent_video
from training.outcome_heads import (
    HeadsTrainingConfig,
    OutcomeHeadsConfig,
    end_frequency,
    main,
    train_heads,
)
from training.outcomes.calibrate_world import CalibrationConfig
from training.outcomes.frames import OutcomeFrames, SequencesConfig, draw_along
from worldsim.errors import WorldError
from worldsim.model import belief
from worldsim.outcome import OutcomeConfig
from worldsim.simulator import Simulator
from worldsim.world.world import World, read_config

pytestmark = pytest.mark.usefixtures("one_thread")

BEFORE = OutcomeConfig(reward_mean=0.6, reward_scale=0.9)
SEQUENCES = SequencesConfig(num=12, watched=3, length=5, depth=2)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("worlds") / "tiny"
    tiny_world(outcome=BEFORE).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("data")
    train = write_outcome_dataset(folder / "train", episodes=6, frames=12)
    return train, write_outcome_dataset(folder / "heldout", episodes=4, frames=6, seed=1)


def config_of(world: Path, out: Path, folders: tuple[Path, Path], **changes: object) -> OutcomeHeadsConfig:
    config = OutcomeHeadsConfig(
        world=str(world),
        out=str(out),
        data=DataConfig(train=[str(folders[0])], heldout=[str(folders[1])], num_workers=1),
        sequences=SEQUENCES,
        training=HeadsTrainingConfig(num_steps=60, frames=16, learning_rate=5e-3),
        frames="given",  # those that a world of random weights draws look like nothing that ends
        num_dreams=0,
        device="cpu",
        dtype="float32",
        threads=1,
    )
    return replace(config, **changes)


def kept_frames(world: World, folder: Path, sequences: SequencesConfig = SEQUENCES) -> OutcomeFrames:
    video = latent_video(world.codec, choose_episodes([str(folder)], 0), torch.device("cpu"), num_workers=1)
    return draw_along(world, video, sequences, seed=0)


def end_loss(world: World, frames: OutcomeFrames, column: int) -> float:
    heads = world.denoiser.outcome
    assert heads is not None
    logits = heads(heads.pool(frames.tokens[:, column].float()))[1]
    return functional.binary_cross_entropy_with_logits(logits, frames.ends.float()).item()


def test_only_the_heads_change_and_they_learn_from_drawn_frames(
    world: Path, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    main.run(config_of(world, tmp_path / "new", folders))
    old, new = (load_file(folder / "model.safetensors") for folder in (world, tmp_path / "new"))
    assert old.keys() == new.keys()
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed
    assert all(name.startswith("outcome.") for name in changed)
    assert all(old[name].dtype is new[name].dtype for name in old)
    names = ("codec.safetensors", "starts/start-00.mp4")
    assert all((world / name).read_bytes() == (tmp_path / "new" / name).read_bytes() for name in names)
    before, after = World.from_pretrained(world), World.from_pretrained(tmp_path / "new")
    assert before.identity != after.identity
    drawn = []
    for each in (before, after):
        simulator = Simulator(each)
        state = simulator.start([each.starts[0]], [3])
        drawn.append(simulator.step(state, torch.ones(1, 3, dtype=torch.int64))[0])
    assert torch.equal(*drawn)
    frames = kept_frames(before, folders[0])
    assert end_loss(after, frames, 0) < 0.5 * end_loss(before, frames, 0)
    assert end_loss(after, frames, 1) < end_loss(before, frames, 1)
    (entry,) = read_config(tmp_path / "new")[0].provenance["training"]
    assert "outcome heads alone: 60 updates on " in entry
    assert after.config.outcome is not None
    assert after.config.outcome.reward_mean == BEFORE.reward_mean


def test_the_same_command_gives_the_same_heads(
    world: Path, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    for name in ("one", "again"):
        main.run(config_of(world, tmp_path / name, folders))
    assert (
        World.from_pretrained(tmp_path / "one").identity == World.from_pretrained(tmp_path / "again").identity
    )


@pytest.mark.parametrize("has_odometry", [False, True], ids=["", "poses"])
def test_what_is_kept_is_what_the_heads_see_in_play(has_odometry: bool, folders: tuple[Path, Path]) -> None:
    """Drawn frames that follow recorded ones are those of the simulator, and so is what is said of them."""
    loaded = tiny_world(outcome=BEFORE, has_odometry=has_odometry)
    video = latent_video(
        loaded.codec, choose_episodes([str(folders[0])], 1), torch.device("cpu"), num_workers=1
    )
    length = video.lengths[0]
    sequences = SequencesConfig(num=1, watched=length - 2, length=2, depth=2, end_share=0.0)
    frames = draw_along(loaded, video, sequences, seed=5)
    heads = loaded.denoiser.outcome
    assert heads is not None
    assert type(heads).__name__ == "OutcomeHeads", "put back"
    simulator = Simulator(loaded)
    memory, follows = loaded.initial_memory(1), (loaded.denoiser, loaded.odometry)
    with torch.inference_mode():
        for index in range(length):
            context = belief.observe(*follows, video.leading[index : index + 1], memory)
            if index == length - 2:
                state = simulator.start([loaded.starts[0]], [5])
                state = replace(state, memory=memory)
                for number in (0, 1):
                    action = video.leading[index + number : index + number + 1]
                    state = simulator.step(state, action)[1]
                    assert state.memory.summary is not None
                    kept = heads.pool(frames.tokens[number, 1].float())
                    torch.testing.assert_close(kept, state.memory.summary[0], rtol=0.02, atol=0.02)
            latents = video.latents[index : index + 1].float()
            memory = belief.commit(*follows, latents, torch.zeros(1), context, memory)
        assert memory.summary is not None
        kept = heads.pool(frames.tokens[1, 0].float())
    torch.testing.assert_close(kept, memory.summary[0], rtol=0.02, atol=0.02)
    assert frames.ends.tolist() == [False, True]
    assert frames.is_before_end.tolist() == [True, False]


def test_drawn_frames_just_before_an_end_are_no_examples_of_its_absence(
    world: Path, folders: tuple[Path, Path]
) -> None:
    frames = kept_frames(World.from_pretrained(world), folders[0])
    ends = frames.ends.nonzero().flatten()
    assert len(ends) >= 3
    targets = frames.targets(torch.arange(len(frames)))
    assert targets.is_real[:, 0].all(), "recorded ones are"
    assert torch.equal(targets.is_real[:, 1], ~frames.is_before_end)
    assert targets.ends[ends].all()
    assert targets.is_real[ends].all()
    assert frames.is_before_end.sum() > 0
    assert not (frames.is_before_end & frames.ends).any()


def test_ends_are_said_to_be_as_rare_as_they_were_recorded(world: Path, folders: tuple[Path, Path]) -> None:
    loaded = World.from_pretrained(world)
    video = latent_video(
        loaded.codec, choose_episodes([str(folders[0])], 0), torch.device("cpu"), num_workers=1
    )
    frames = draw_along(loaded, video, SEQUENCES, seed=0)
    expected = 4 / (sum(video.lengths) - len(video.lengths)) / float(np.mean(frames.ends.numpy()))
    assert end_frequency(frames, video) == pytest.approx(expected)


def test_what_cannot_be_learned_from_is_named(
    world: Path, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    tiny_world().save_pretrained(tmp_path / "plain")
    out = tmp_path / "new"
    with pytest.raises(WorldError, match="'tiny' has no outcome heads; python -m training.finetune"):
        main.run(config_of(tmp_path / "plain", out, folders))
    with pytest.raises(WorldError, match="exists already"):
        main.run(config_of(world, world, folders))
    silent = write_tiny_dataset(tmp_path / "silent")
    with pytest.raises(WorldError, match=r"silent/episode-000\.jsonl records no reward"):
        main.run(config_of(world, out, (silent, folders[1])))
    endless = write_outcome_dataset(tmp_path / "endless", episodes=2, frames=12, ends=False)
    with pytest.raises(WorldError, match="no episode to learn from ends"):
        main.run(config_of(world, out, (endless, folders[1])))
    with pytest.raises(WorldError, match="no episode in .*endless ends"):
        main.run(config_of(world, out, (folders[0], endless)))
    with pytest.raises(WorldError, match="no episode is as long as a sequence of 105 frames"):
        main.run(config_of(world, out, folders, sequences=replace(SEQUENCES, watched=100)))
    assert not out.exists()


def test_a_piece_that_holds_no_end_is_found_before_anything_is_encoded(
    world: Path, folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcome_heads, "latent_video", lambda *_, **__: pytest.fail("was encoded"))
    with pytest.raises(WorldError, match="no episode is as long as a sequence of 105 frames"):
        main.run(config_of(world, tmp_path / "new", folders, sequences=replace(SEQUENCES, watched=100)))
    # The longest episode is cut off and the second longest ended: one more frame than that one has.
    with pytest.raises(WorldError, match="no episode to learn from ends and is as long as a piece of 17"):
        main.run(config_of(world, tmp_path / "new", folders, sequences=replace(SEQUENCES, watched=12)))
    with pytest.raises(WorldError, match="context_frames=99"):
        main.run(config_of(world, tmp_path / "new", folders, num_dreams=4, context_frames=99))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stop", [WorldError("no threshold tells them apart"), KeyboardInterrupt()])
def test_heads_that_cannot_be_calibrated_are_kept(
    world: Path,
    folders: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: BaseException,
) -> None:
    def refuse(*_: object) -> None:
        raise stop

    out, kept = tmp_path / "new", tmp_path / "new-uncalibrated"
    with monkeypatch.context() as patched:
        patched.setattr(outcome_heads, "calibrate_ends", refuse)
        with pytest.raises(type(stop)) as caught:
            main.run(config_of(world, out, folders))
    if isinstance(stop, WorldError):
        assert str(caught.value).startswith(f"{stop}. The trained heads are kept, in {kept}: ")
    assert [path.name for path in tmp_path.iterdir()] == [kept.name]
    left = World.from_pretrained(kept)
    assert left.config.outcome == BEFORE
    assert "none since the outcome heads were trained" in left.config.provenance["calibration"][-1]
    with pytest.raises(WorldError, match="new-uncalibrated exists already"):
        main.run(config_of(world, out, folders))
    if isinstance(stop, WorldError):
        # Calibrated on their own they are those of a run that was not refused.
        calibration = config_of(kept, out, folders)
        names = [each.name for each in fields(CalibrationConfig)]
        data = HeldoutConfig(heldout=calibration.data.heldout)
        settings = {name: getattr(calibration, name) for name in names}
        calibrate_main.run(CalibrateConfig(data=data, **settings))
        main.run(config_of(world, tmp_path / "whole", folders))
        again, whole = World.from_pretrained(out), World.from_pretrained(tmp_path / "whole")
        assert again.identity == whole.identity
        assert again.config.outcome is not None
        assert whole.config.outcome is not None
        # Apart from the rounding of weights on disk.
        assert asdict(again.config.outcome) == pytest.approx(asdict(whole.config.outcome), rel=0.01)


def test_a_loss_that_is_no_number_is_refused(world: Path, folders: tuple[Path, Path]) -> None:
    loaded = World.from_pretrained(world)
    frames = kept_frames(loaded, folders[0])
    frames.tokens[:] = torch.nan
    with pytest.raises(WorldError, match="loss of the heads is NaN or inf"):
        train_heads(loaded, frames, HeadsTrainingConfig(num_steps=2), 1.0, 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SequencesConfig(depth=0), r"sequences\.depth must be at least 1, got 0"),
        (lambda: SequencesConfig(end_share=1.5), r"sequences\.end_share must lie in \[0, 1\], got 1\.5"),
        (lambda: HeadsTrainingConfig(frames=0), r"training\.frames must be at least 1, got 0"),
        (lambda: HeadsTrainingConfig(drawn_weight=-1.0), r"training\.drawn_weight must lie in \[0, 1\]"),
        (lambda: HeadsTrainingConfig(learning_rate=0.0), r"training\.learning_rate must be above 0"),
    ],
)
def test_wrong_settings_are_named(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(WorldError, match=message):
        make()
