"""The feature network that ships, and what its distances tell of frames that were altered."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

from training.suites.feature_check import add_blur, add_noise, mix
from worldsim.errors import WorldError
from worldsim.evaluation.quality.distances import DISTANCES
from worldsim.evaluation.quality.features import (
    FEATURES_FILE,
    SHIPPED_FEATURES,
    FeatureConfig,
    FeatureNetwork,
    load_features,
    save_features,
)
from worldsim.world import World

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = FeatureConfig(height=16, width=16, widths=[8, 8], num_features=4)


@pytest.fixture(scope="module")
def shipped() -> FeatureNetwork:
    return load_features()


@pytest.fixture(scope="module")
def real() -> Tensor:
    """Return real frames `[64, 120, 160, 3]`: those at which the shipped worlds begin."""
    worlds = [World.from_pretrained(name) for name in ("doom-rooms", "doom-take-cover")]
    frames = [start.frames for world in worlds for start in world.starts]
    chosen = torch.cat([each[:: max(1, len(each) // 4)][:4] for each in frames])
    return chosen[: len(chosen) // 2 * 2][:64]


def test_what_ships_is_small_and_says_what_it_learned_from() -> None:
    files = list(SHIPPED_FEATURES.iterdir())
    assert sum(file.stat().st_size for file in files) < 2 * 2**20
    card = json.loads((SHIPPED_FEATURES / "config.json").read_text())["card"]
    assert {game["name"] for game in card["data"]} >= {"doom-rooms", "doom-fresh-rooms", "doom-take-cover"}
    assert sum(parameter.numel() for parameter in load_features().parameters()) <= 500_000
    for values in card["distances"]["fid"].values():
        assert values["real"] < values["blur 1"] < values["blur 2"]
        assert values["real"] < values["noise 0.02"] < values["noise 0.05"] < values["noise 0.1"]


@pytest.mark.parametrize(
    ("alter", "strengths"),
    [(add_blur, (0.6, 1.2, 2.4)), (add_noise, (0.03, 0.06, 0.12)), (mix, (0.1, 0.25, 0.5))],
)
def test_distances_grow_with_blur_noise_and_ghosts(
    shipped: FeatureNetwork,
    real: Tensor,
    alter,
    strengths,
) -> None:
    images, features = real.movedim(-1, 1).float() / 255, shipped.embed(real)
    sets = [features] + [
        shipped.embed((alter(images, strength) * 255).byte().movedim(1, -1)) for strength in strengths
    ]
    for distance in DISTANCES.values():
        values = [distance(each, features) for each in sets]
        assert values == sorted(values) and len(set(values)) == len(values), values


@pytest.mark.parametrize("size", [(120, 160), (112, 112), (32, 48), (240, 320)])
def test_frames_of_any_size_have_features(shipped: FeatureNetwork, size: tuple[int, int]) -> None:
    frames = torch.randint(0, 256, (3, *size, 3), dtype=torch.uint8)
    features = shipped.embed(frames)
    assert features.shape == (3, shipped.num_features) and features.dtype == torch.float32
    assert torch.allclose(features[1:2], shipped.embed(frames[1:2]), atol=1e-4)
    assert shipped.embed(frames[:0]).shape == (0, shipped.num_features)


def test_the_size_that_frames_are_shown_in_hardly_counts(shipped: FeatureNetwork, real: Tensor) -> None:
    wide = torch.nn.functional.interpolate(real.movedim(-1, 1).float(), (240, 320)).byte().movedim(1, -1)
    same, other = (shipped.embed(each) - shipped.embed(real) for each in (wide, real.roll(1, dims=0)))
    assert same.square().mean() < 0.1 * other.square().mean()


def test_torchmetrics_takes_the_network_as_it_is(shipped: FeatureNetwork, real: Tensor) -> None:
    metric = FrechetInceptionDistance(shipped)
    images = real.movedim(-1, 1)
    metric.update(images[::2], real=True)
    metric.update(images[1::2], real=False)
    expected = DISTANCES["fid"](shipped.embed(real[::2]), shipped.embed(real[1::2]))
    assert float(metric.compute()) == pytest.approx(expected, rel=1e-3)
    with pytest.raises(TypeError, match="expected uint8 images"):
        shipped(images.float())


def test_features_have_unit_variance_where_they_were_calibrated(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = FeatureNetwork(SMALL).eval()
    frames = torch.randint(0, 256, (200, 16, 16, 3), dtype=torch.uint8)
    images = frames.movedim(-1, 1).float() / 255
    with torch.no_grad():
        network.calibrate(network.raw_features(images))
    features = network.embed(frames)
    assert torch.allclose(features.std(dim=0, correction=0), torch.ones(4), atol=0.02)
    save_features(network, tmp_path / "saved", {"steps": 3})
    loaded = load_features(tmp_path / "saved")
    assert torch.allclose(loaded.embed(frames), features, atol=0.1)  # fp16
    assert (
        loaded.digest() != network.digest() and loaded.digest() == load_features(tmp_path / "saved").digest()
    )
    with pytest.raises(WorldError, match="a feature is the same for all frames"):
        network.calibrate(torch.ones(5, 4))


def test_a_damaged_or_missing_network_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(WorldError, match="holds no feature network"):
        load_features(tmp_path)
    folder = tmp_path / "network"
    shutil.copytree(SHIPPED_FEATURES, folder)
    data = bytearray((folder / FEATURES_FILE).read_bytes())
    data[-1] ^= 1
    (folder / FEATURES_FILE).write_bytes(data)
    with pytest.raises(WorldError, match="damaged or was altered"):
        load_features(folder)
    (folder / "config.json").write_text("{}")
    with pytest.raises(WorldError, match="describes no feature network"):
        load_features(folder)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"widths": [12]}, "multiples of 8"),
        ({"height": 8}, "needs frames of at least 16 x 16"),
        ({"num_features": 1}, "features.num_features must be at least 2, got 1"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(WorldError, match=sentence):
        FeatureConfig(**changes)  # pyright: ignore[reportArgumentType]


def test_no_network_is_asked_for_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was downloaded")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    features = load_features().embed(torch.from_numpy(np.zeros((4, 32, 48, 3), dtype=np.uint8)))
    assert torch.isfinite(features).all()
