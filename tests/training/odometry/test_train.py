"""Teaching of odometry on disk, at toy size: what it writes, resumes exactly, measures by folder, refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.fakes import TINY_ACTIONS, save_tiny_world, tiny_world, write_turning_dataset
from training.data.latents import DataConfig, LatentVideo, fixed_starts, latent_video
from training.engine.fabric import FabricConfig
from training.engine.loop import LoopConfig
from training.odometry.dreams import dream_clips, taught_by_dreams
from training.odometry.footage import TaughtVideo, compared_of, read_displacements, split_at_leaps, taught_by
from training.odometry.measures import KINDS, measure_odometry
from training.odometry.settings import DreamsConfig, MeasureConfig, SightConfig, TrainOdometryConfig
from training.odometry.train import Lessons, main, make_batches, teach
from worldsim.codec import FrameCodec, load_codec, save_codec
from worldsim.data.sequences import load_episodes
from worldsim.envs.single import ARL2WorldEnv
from worldsim.errors import WorldError
from worldsim.model.memory.motion_energies import motion_energies
from worldsim.model.memory.odometry import (
    Odometry,
    OdometryConfig,
    load_odometry,
    save_odometry,
)
from worldsim.world.rewrite import encoder_digest
from worldsim.world.world import World

pytestmark = pytest.mark.usefixtures("one_thread")
ENERGIES = Odometry(OdometryConfig(latent_shape=[4, 4, 8], num_values=[1], hidden=1, features=1))
"""Compares frames by motion energies."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_world(tmp_path_factory.mktemp("world") / "tiny")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_turning_dataset(tmp_path_factory.mktemp("video"))


def config_of(out: Path, codec: Path, video: Path, /, **changed: Any) -> TrainOdometryConfig:
    settings: dict[str, Any] = {
        "out": str(out),
        "data": DataConfig(train=[str(video)], heldout=[str(video)], num_workers=1),
        "codec": str(codec),
        "hidden": 8,
        "features": 4,
        "sight": SightConfig(num_steps=3, max_frames=40),
        "sequence_length": 6,
        "summed_frames": 3,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "measure": MeasureConfig(watched_frames=2, frames=10, num_clips=4),
        "dreams": DreamsConfig(num_clips=3, watched_frames=2, frames=8),
        "loop": LoopConfig(
            num_steps=30, warmup_steps=1, decay_fraction=0, ema_decay=0.5, checkpoint_seconds=1e9
        ),
        "fabric": FabricConfig(accelerator="cpu", precision="32-true"),
    }
    return TrainOdometryConfig(**(settings | changed))


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, world: Path, video: Path) -> Path:
    out = tmp_path_factory.mktemp("run") / "odometry"
    teach(config_of(out, world, video))
    return out


def test_it_learns_a_turn_and_writes_what_it_measured(taught: Path, world: Path, video: Path) -> None:
    """The player turns by 30 degrees a frame: 300 in a path of 10 frames."""
    odometry = load_odometry(taught / "odometry")
    assert odometry.config.num_values == list(TINY_ACTIONS.num_values)
    assert odometry.config.encoder == encoder_digest(load_codec(world))
    measures = json.loads((taught / "measures.json").read_text())
    assert measures["steps"] == 30
    found = measures[str(video)]
    assert found["clips"] == 4 and found["walked"] == 0  # so places are not judged
    assert set(found) - {"clips", "walked"} == {
        f"{name}_heading_{label}_degrees" for name in KINDS for label in ("median", "p90")
    }
    assert found["shown_heading_median_degrees"] < 100


def test_a_resumed_teaching_equals_an_unbroken_one(
    taught: Path, world: Path, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it compares frames by is read, not taught again: a GPU would not teach the same to the bit."""
    config = config_of(tmp_path / "run", world, video)
    for steps in (7, 30):
        teach(replace(config, loop=replace(config.loop, num_steps=steps)))
        monkeypatch.delattr("training.odometry.train.teach_sight", raising=False)
    whole, parts = load_odometry(taught / "odometry"), load_odometry(tmp_path / "run" / "odometry")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, parts.state_dict()[name]), name
    (tmp_path / "run" / "sight.safetensors").unlink()  # like a run of before there was sight
    with pytest.raises(WorldError, match=r"motion energies; choose another out= folder, or .* init="):
        teach(config)


def test_it_goes_on_from_a_network_of_the_same_latents_and_buttons(
    taught: Path, world: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    init = str(taught)  # of the run, or of the network
    loop = LoopConfig(num_steps=1, warmup_steps=0, checkpoint_seconds=1e9)
    again = config_of(tmp_path / "again", world, video, init=init, learning_rate=1e-9, loop=loop)
    teach(again)
    assert "motion energies" not in capsys.readouterr().out
    before, after = load_odometry(taught / "odometry"), load_odometry(tmp_path / "again" / "odometry")
    for old, new in zip(before.parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(old, new, atol=1e-6, rtol=0)
    torch.manual_seed(1)
    save_codec(FrameCodec(load_codec(world).config), tmp_path / "codec")
    with pytest.raises(WorldError, match="another encoder"):
        teach(replace(again, codec=str(tmp_path / "codec"), out=str(tmp_path / "other")))
    told = json.loads((taught / "odometry" / "odometry.json").read_text())
    blind = Odometry(OdometryConfig(**(told["odometry"] | {"sight": False})))
    save_odometry(blind, tmp_path / "blind")
    capsys.readouterr()
    teach(replace(again, init=str(tmp_path / "blind"), out=str(tmp_path / "energies")))
    assert f"init={tmp_path / 'blind'} reads motion energies and goes on so" in capsys.readouterr().out
    assert not load_odometry(tmp_path / "energies" / "odometry").config.sight
    odometry = Odometry(OdometryConfig(**(told["odometry"] | {"num_values": [2, 2, 2]})))
    save_odometry(odometry, tmp_path / "buttons")
    with pytest.raises(WorldError, match="taught with actions"):
        teach(replace(again, init=str(tmp_path / "buttons"), out=str(tmp_path / "third")))


def pose_world(folder: Path, world: Path) -> Path:
    """Write a world whose keys are poses, which nothing follows yet, with the codec of another."""
    whole = tiny_world(has_odometry=True)
    bare = World(whole.config, whole.denoiser, load_codec(world))
    bare.save_pretrained(folder, starts=whole.starts, dtype=torch.float32)
    return folder


def test_a_world_is_written_with_what_it_learned_and_can_be_played(
    world: Path, video: Path, tmp_path: Path
) -> None:
    bare = pose_world(tmp_path / "bare", world)
    loop = LoopConfig(num_steps=1, warmup_steps=0, checkpoint_seconds=1e9)
    config = config_of(tmp_path / "run", Path("unread"), video, world=str(bare), loop=loop)
    teach(config)
    joined = World.from_pretrained(tmp_path / "run" / "world")
    env = ARL2WorldEnv(joined)
    env.reset(seed=0)
    env.step(TINY_ACTIONS.noop())
    own = load_odometry(tmp_path / "run" / "odometry")
    assert joined.odometry is not None
    for name, tensor in own.state_dict().items():
        assert torch.equal(joined.odometry.state_dict()[name], tensor), name
    for file in ("model.safetensors", "codec.safetensors"):
        assert (bare / file).read_bytes() == (tmp_path / "run" / "world" / file).read_bytes()
    (entry,) = joined.config.provenance["odometry"]
    assert "10 frames on the heading is off by" in entry and "4 held-out paths" in entry
    with pytest.raises(WorldError, match="exists already"):
        teach(config)


def test_dreams_of_the_world_are_learned_from_and_measured(world: Path, video: Path, tmp_path: Path) -> None:
    """The clips begin as recorded and go on as the world draws; the way is the recorded one."""
    bare = World.from_pretrained(pose_world(tmp_path / "bare", world))
    references = load_episodes([str(video)])
    told = latent_video(bare.codec, references, torch.device("cpu"), num_workers=1)
    config = DreamsConfig(num_clips=3, watched_frames=2, frames=8)
    dreamt = dream_clips(bare, told, config)
    starts = fixed_starts(told.lengths, 10, 3)
    recorded, actions = told.sequences(starts, 10)
    drawn = dreamt.latents.unflatten(0, (3, 10))
    assert dreamt.lengths == [10] * 3
    assert torch.equal(dreamt.leading, actions.flatten(0, 1))
    assert torch.equal(drawn[:, :2], recorded[:, :2])
    assert all(not torch.equal(drawn[:, f], recorded[:, f]) for f in range(2, 10))
    taught = taught_by_dreams(bare, told, ENERGIES, config, 0.3)
    moved = torch.cat(read_displacements(references))
    expected = torch.stack([moved[start : start + 10] for start in starts])
    expected[:, 0] = 0
    torch.testing.assert_close(taught.displacements.unflatten(0, (3, 10)), expected, atol=1e-3, rtol=0)


def test_a_share_of_the_clips_of_a_pass_is_dreamt(world: Path, video: Path, tmp_path: Path) -> None:
    def numbered(value: int) -> TaughtVideo:
        return TaughtVideo(
            torch.zeros(20, 2, dtype=torch.int64),
            torch.full((20, 3), float(value)),
            torch.full((2, 20, 3, 5, 4, 5), float(value)),
            [20],
        )

    parts = {0: Lessons(numbered(1), numbered(2))}
    for share, dreamt in ((0.0, 0), (0.25, 1), (1.0, 4)):
        dreams = DreamsConfig(num_clips=3, watched_frames=2, frames=8, share=share)
        config = config_of(tmp_path, world, video, dreams=dreams, mirrored=False, unseen_size=3)
        seen, unseen, _ = make_batches(parts, config, TINY_ACTIONS, torch.device("cpu"))(0, 0)
        assert seen.compared is not None
        assert seen.displacements[:, 0, 0].tolist() == [1.0] * (4 - dreamt) + [2.0] * dreamt
        assert seen.compared[:, 0, 0, 0, 0, 0].tolist() == [1.0] * (4 - dreamt) + [2.0] * dreamt
        assert unseen.displacements[:, 0, 0].tolist() == [1.0] * 3


def test_a_teaching_goes_on_with_dreams_of_the_same_world_alone(
    world: Path, video: Path, tmp_path: Path
) -> None:
    """What was dreamt is dreamt again when a run is resumed; another world's dreams would be other video."""
    bare = pose_world(tmp_path / "bare", world)
    settings = {"world": str(bare), "init": "", "loop": LoopConfig(num_steps=2, checkpoint_seconds=1e9)}
    config = config_of(tmp_path / "run", Path("unread"), video, **settings)
    whole = replace(config, out=str(tmp_path / "whole"))
    found = teach(whole)
    assert set(found) == {str(video), f"{video}, dreamt"}
    assert found[f"{video}, dreamt"]["clips"] == 3
    teach(replace(config, loop=replace(config.loop, num_steps=1)))
    shutil.rmtree(tmp_path / "run" / "world")
    teach(config)
    first, second = (load_odometry(tmp_path / run / "odometry") for run in ("whole", "run"))
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    shutil.rmtree(tmp_path / "run" / "world")
    other = World.from_pretrained(bare)
    with torch.no_grad():
        next(other.denoiser.parameters()).add_(1)
    starts = other.starts
    shutil.rmtree(bare)
    other.save_pretrained(bare, starts=starts, dtype=torch.float32)
    with pytest.raises(WorldError, match="inputs"):
        teach(replace(config, loop=replace(config.loop, num_steps=3)))


def test_what_was_taught_before_is_joined_without_video(
    taught: Path, world: Path, video: Path, tmp_path: Path
) -> None:
    bare, init = pose_world(tmp_path / "bare", world), str(taught)
    settings = {"world": str(bare), "init": init, "teach": False}
    main.run(config_of(tmp_path / "run", Path("unread"), tmp_path / "none", **settings))
    joined = World.from_pretrained(tmp_path / "run" / "world")
    assert joined.odometry is not None and "10 frames on" in joined.config.provenance["odometry"][-1]
    again = settings | {"world": str(tmp_path / "run" / "world")}  # in the place of the one that it has
    main.run(config_of(tmp_path / "other", Path("unread"), tmp_path / "none", **again))
    assert World.from_pretrained(tmp_path / "other" / "world").num_parameters
    with pytest.raises(WorldError, match="of memory_keys pose, but these are axes"):
        main.run(config_of(tmp_path / "third", world, video, **(settings | {"world": str(world)})))
    with pytest.raises(WorldError, match="name both, init= and world="):
        config_of(tmp_path / "third", world, video, teach=False, init=init)
    torch.manual_seed(1)
    odometry = load_odometry(taught / "odometry")
    odometry.config.encoder = "another"
    save_odometry(odometry, tmp_path / "foreign")
    with pytest.raises(WorldError, match="another encoder"):
        main.run(
            config_of(tmp_path / "third", world, video, **(settings | {"init": str(tmp_path / "foreign")}))
        )
    (tmp_path / "measures.json").write_text("[1]")
    save_odometry(load_odometry(taught / "odometry"), tmp_path / "measured")
    with pytest.raises(WorldError, match="not a JSON object"):
        main.run(
            config_of(tmp_path / "third", world, video, **(settings | {"init": str(tmp_path / "measured")}))
        )
    (tmp_path / "measures.json").write_text('{"steps": 1}')
    with pytest.raises(WorldError, match="holds no measures of odometry"):
        main.run(
            config_of(tmp_path / "third", world, video, **(settings | {"init": str(tmp_path / "measured")}))
        )
    assert not (tmp_path / "third" / "world").exists()


def test_the_digest_is_of_the_encoder_alone(world: Path) -> None:
    codec = load_codec(world)
    before = encoder_digest(codec)
    with torch.no_grad():
        next(codec.decoder.parameters()).add_(1)
    assert encoder_digest(codec) == before
    codec.latent_mean.add_(1)
    assert encoder_digest(codec) != before


def test_video_without_poses_is_refused_before_it_is_encoded(world: Path, tmp_path: Path) -> None:
    video = write_turning_dataset(tmp_path / "video", has_poses=False)
    with pytest.raises(WorldError, match=r"episode-000\.jsonl records no poses"):
        teach(config_of(tmp_path / "run", world, video))
    assert not (video / "latents").exists()


def test_clips_that_fit_into_no_episode_are_refused(world: Path, video: Path, tmp_path: Path) -> None:
    with pytest.raises(WorldError, match=r"measure\.frames: .* sequence of 63 frames"):
        teach(config_of(tmp_path, world, video, measure=MeasureConfig(watched_frames=2, frames=60)))
    with pytest.raises(WorldError, match="sequence_length: .* sequence of 81 frames"):
        teach(config_of(tmp_path, world, video, sequence_length=80))
    bare = str(pose_world(tmp_path / "bare", world))
    long = DreamsConfig(num_clips=3, watched_frames=2, frames=60)
    with pytest.raises(WorldError, match=r"dreams\.frames: data\.train: .* sequence of 62 frames"):
        teach(config_of(tmp_path / "long", world, video, world=bare, dreams=long))
    short = DreamsConfig(num_clips=3, watched_frames=2, frames=4)
    with pytest.raises(WorldError, match="together must be more than sequence_length, got 6 and 6"):
        config_of(tmp_path, world, video, world=bare, dreams=short)
    with pytest.raises(WorldError, match="choose ddp"):
        teach(config_of(tmp_path, world, video, fabric=FabricConfig(accelerator="cpu", strategy="fsdp")))
    with pytest.raises(WorldError, match="summed_frames must be at most sequence_length"):
        config_of(tmp_path, world, video, summed_frames=7)


class Biased(Odometry):
    """Expects what is true, and is shown a twentieth of a degree and a unit to the left more."""

    def follow(
        self, state: torch.Tensor, actions: torch.Tensor, compared: torch.Tensor, pose: Any = None
    ) -> Any:
        moved = compared[..., 0, 0, 0, :3].double()
        return moved, moved + torch.tensor([0.0, 1.0, 0.05]), state


def test_errors_are_those_of_where_paths_end() -> None:
    """A path of 100 frames straight ahead, 10 units each: 5 degrees off, and by the sideways steps."""
    moved = torch.tensor([10.0, 0.0, 0.0], dtype=torch.float64).expand(130, -1)
    energies = torch.zeros(2, 130, 3, 5, 4, 5)
    energies[..., 0, 0, 0, :3] = moved
    taught = TaughtVideo(torch.zeros(130, 1, dtype=torch.int64), moved, energies, [130])
    odometry = Biased(OdometryConfig(latent_shape=[4, 4, 4], num_values=[1], hidden=1, features=1))
    found = measure_odometry(odometry, taught, MeasureConfig(num_clips=3))
    assert found["clips"] == found["walked"] == 3
    assert found["expected_heading_median_degrees"] == 0 and found["expected_place_p90_share"] == 0
    assert found["shown_heading_p90_degrees"] == pytest.approx(5.0, abs=1e-4)
    headings = np.deg2rad(0.05 * np.arange(1, 101) - 0.025)
    x = (10 * np.cos(headings) - np.sin(headings)).sum() - 1000
    y = (10 * np.sin(headings) + np.cos(headings)).sum()
    assert found["shown_place_median_share"] == pytest.approx(np.hypot(x, y) / 1000, rel=1e-4)


def test_noise_is_in_noisy_energies_alone_and_a_frame_is_compared_with_the_one_before() -> None:
    latents = torch.randn(300, 4, 4, 8, generator=torch.Generator().manual_seed(0)).half()
    clean, noisy = compared_of(ENERGIES, latents, 0.0), compared_of(ENERGIES, latents, 0.5)
    expected = motion_energies(latents[:-1], latents[1:]).half()
    assert torch.equal(clean[1:], expected) and clean.shape == (300, 3, 5, 4, 5)
    assert (noisy - clean).abs().mean() > 0.01
    assert torch.equal(noisy, compared_of(ENERGIES, latents, 0.5))


def test_displacements_are_those_on_the_way_to_each_frame(video: Path) -> None:
    first, second = read_displacements(load_episodes([video]))
    assert first.shape == (60, 3) and torch.equal(first, second)
    assert first[0].tolist() == [0.0, 0.0, 0.0]
    torch.testing.assert_close(first[1:, 2], torch.full((59,), 30.0, dtype=torch.float64))


def test_no_clip_crosses_a_teleporter_and_none_of_its_leap_is_a_way() -> None:
    walk = torch.tensor([[0.0, 0, 0], [16, 0, 7], [50, 30, 0], [1800, -300, 84], [12, 0, 0], [14, 0, 0]])
    before, after = split_at_leaps(walk.double())
    assert torch.equal(before, walk[:3].double())
    assert after.tolist() == [[0, 0, 0], [12, 0, 0], [14, 0, 0]]
    latents = torch.randn(12, 4, 4, 8, generator=torch.Generator().manual_seed(0)).half()
    video = LatentVideo(latents, torch.arange(12)[:, None], [6, 6])
    taught = taught_by(video, [walk.double(), torch.zeros(6, 3).double()], ENERGIES, 0.3)
    assert taught.lengths == [3, 3, 6]
    starts = fixed_starts(taught.lengths, 3, 100)
    actions, moved = taught.clips(starts, 2)
    assert set(starts.tolist()) == {0, 3, *range(6, 10)}
    assert moved.abs().max() == 50 and actions[:, 0, 0].tolist() == (starts + 1).tolist()
