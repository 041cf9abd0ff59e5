"""Training the feature network: its goals, its command, and going on after a stop."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fakes import TINY_ACTIONS, write_tiny_dataset
from training.engine.fabric import FabricConfig
from training.engine.loop import LoopConfig
from training.features import TrainFeaturesConfig, list_video, train_features
from training.objectives.features import FeatureLossConfig, blur, degrade, info_nce
from worldsim.actions import ActionLayout
from worldsim.errors import WorldError
from worldsim.evaluation.quality.features import FeatureConfig, load_features

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return folders of two games with different buttons."""
    folder = tmp_path_factory.mktemp("data")
    other = ActionLayout(TINY_ACTIONS.axes[:2])
    return [
        str(write_tiny_dataset(folder / "one")),
        str(write_tiny_dataset(folder / "two", actions=other)),
    ]


def config(out: Path, folders: list[str], steps: int) -> TrainFeaturesConfig:
    return TrainFeaturesConfig(
        out=str(out),
        data=folders,
        heldout=folders,
        near_frames=2,
        features=FeatureConfig(height=16, width=24, widths=[8, 8], num_features=8),
        loop=LoopConfig(
            num_steps=steps, warmup_steps=1, decay_fraction=0.0, ema_decay=0.0, checkpoint_seconds=1e9
        ),
        fabric=FabricConfig(accelerator="cpu", precision="32-true"),
        batch_size=16,
        learning_rate=5e-3,
        num_workers=1,
    )


def test_the_network_learns_and_is_written_with_its_card(tmp_path: Path, folders: list[str]) -> None:
    untrained = train_features(config(tmp_path / "a", folders, 1))
    trained = train_features(config(tmp_path / "b", folders, 150))
    assert trained["noise_explained"] > untrained["noise_explained"] + 0.2
    network = load_features(tmp_path / "b" / "features")
    assert network.num_features == 8
    described = json.loads((tmp_path / "b" / "features" / "config.json").read_text())
    assert described["card"]["steps"] == 150
    assert described["card"]["heldout"] == trained
    assert set(described["card"]["distances"]) == {"fid", "kid"}


def test_a_stopped_training_ends_as_one_that_was_not(tmp_path: Path, folders: list[str]) -> None:
    train_features(config(tmp_path / "stopped", folders, 3))
    for name in ("stopped", "whole"):
        train_features(config(tmp_path / name, folders, 6))
    stopped, whole = (load_features(tmp_path / name / "features") for name in ("stopped", "whole"))
    assert stopped.digest() == whole.digest()
    with pytest.raises(WorldError, match="holds a run with other settings"):
        train_features(replace(config(tmp_path / "whole", folders, 6), near_frames=1))


def test_of_each_folder_whole_episodes_are_taken_up_to_a_number_of_frames(folders: list[str]) -> None:
    every, some = (list_video("data", folders, max_frames, 1) for max_frames in (0, 1))
    assert len(some) == 2 < len(every)
    assert {each.folder for each in some} == set(map(Path, folders))


def test_blur_keeps_flat_pictures_and_the_light_and_each_image_has_its_own() -> None:
    images = torch.rand(3, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    blurred = blur(images, torch.tensor([0.0, 1.0, 3.0]))
    assert torch.allclose(blurred[0], images[0], atol=1e-6)
    deviations = blurred.std(dim=(1, 2, 3))
    assert deviations[0] > 2 * deviations[1] > 2 * deviations[2]
    assert torch.allclose(blur(torch.full((1, 3, 9, 9), 0.3), torch.tensor([2.0])), torch.tensor(0.3))
    point = torch.zeros(1, 3, 31, 31)
    point[:, :, 15, 15] = 1
    spread = blur(point, torch.tensor([1.5]))[0, 0]
    places = torch.arange(31) - 15
    assert float((spread.sum(dim=0) * places**2).sum()) == pytest.approx(1.5**2, rel=0.02)


def test_what_is_told_to_be_undegraded_is() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(64, 3, 16, 16, generator=generator)
    degraded, strengths = degrade(images, images.roll(1, dims=0), FeatureLossConfig(), generator)
    untouched = (strengths == 0).all(dim=1)
    assert 2 <= int(untouched.sum()) <= 20
    assert torch.allclose(degraded[untouched], images[untouched], atol=1e-6)
    errors = (degraded - images)[~untouched].square().mean(dim=(1, 2, 3))
    assert (errors > 0).all()


def test_the_contrast_is_small_where_each_finds_its_own() -> None:
    vectors = torch.eye(4)
    assert info_nce(vectors, vectors, 0.1) < 1e-3
    assert info_nce(vectors, vectors.roll(1, dims=0), 0.1) > 5


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data": []}, "data names no folder of gameplay video"),
        ({"heldout": []}, "heldout names no folder of gameplay video"),
        ({"data": ["nowhere"]}, "there is no folder nowhere"),
        (
            {"near_frames": 20},
            "near_frames=20: frames so far apart are in no episode of data; the longest has 20",
        ),
        (
            {"fabric": FabricConfig(accelerator="cpu", strategy="nosuch")},
            "fabric settings can't be used here",
        ),
    ],
)
def test_what_cannot_be_learned_from_is_named_and_leaves_no_folder(
    tmp_path: Path, folders: list[str], changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises((WorldError, FileNotFoundError), match=sentence):
        train_features(replace(config(tmp_path / "out", folders, 1), **changes))
    assert not list(tmp_path.iterdir())


def test_heldout_episodes_that_are_too_short_are_named(tmp_path: Path, folders: list[str]) -> None:
    short = str(write_tiny_dataset(tmp_path / "short", frames=2))
    with pytest.raises(WorldError, match="near_frames=2: .* in no episode of heldout; the longest has 2"):
        train_features(replace(config(tmp_path / "out", folders, 1), heldout=[short]))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"near_frames": 0}, "near_frames"),
        ({"max_frames": -1}, "max_frames"),
        ({"num_workers": -1}, "num_workers must be at least 0, got -1"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0 and finite, got nan"),
        (
            {"features": FeatureConfig(height=2, width=9, widths=[8], num_features=8)},
            "features.height must be at least 4, got 2",
        ),
    ],
)
def test_a_setting_out_of_range_is_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(WorldError, match=sentence):
        replace(config(Path("out"), [], 1), **changes)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: FeatureLossConfig(temperature=0), "loss.temperature must be above 0"),
        (lambda: FeatureLossConfig(max_blur=float("nan")), "loss.max_blur must be at least 0"),
        (lambda: FeatureLossConfig(max_ghost=2), r"loss.max_ghost must lie in \[0, 1\], got 2"),
        (lambda: LoopConfig(seed=-1), "loop.seed must be at least 0, got -1"),
        (lambda: LoopConfig(clip_norm=-1.0), "loop.clip_norm must be above 0 and finite, got -1"),
        (lambda: FeatureConfig(num_features=1), "features.num_features must be at least 2, got 1"),
    ],
)
def test_a_goal_or_a_length_out_of_range_is_one_sentence(make: Callable[[], object], sentence: str) -> None:
    with pytest.raises(WorldError, match=sentence):
        make()
