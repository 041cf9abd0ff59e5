"""Beginning from a picture of one's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.fakes import HEIGHT, WIDTH, tiny_world
from worldsim.envs.single import ARL2WorldEnv
from worldsim.errors import WorldError
from worldsim.storage.images import fit_picture, write_png


@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (64, 400), (400, 64), (7, 5), (1, 1)])
def test_any_picture_fits(size: tuple[int, int]) -> None:
    picture = np.full((*size, 3), (10, 120, 230), np.uint8)
    fitted = fit_picture(picture, HEIGHT, WIDTH)
    assert fitted.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(fitted.astype(int) - (10, 120, 230)).max() <= 3


def test_a_picture_of_the_same_size_is_left_alone() -> None:
    picture = np.random.default_rng(0).integers(256, size=(HEIGHT, WIDTH, 3), dtype=np.uint8)
    assert np.array_equal(fit_picture(picture, HEIGHT, WIDTH), picture)


def test_the_middle_of_a_wide_picture_is_kept() -> None:
    picture = np.zeros((HEIGHT, 3 * WIDTH, 3), np.uint8)
    picture[:, WIDTH : 2 * WIDTH] = 200
    assert fit_picture(picture, HEIGHT, WIDTH).min() == 200


def test_play_begins_from_a_picture(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(256, size=(HEIGHT, WIDTH, 3), dtype=np.uint8)
    write_png(picture, tmp_path / "mine.png")
    env, other = (ARL2WorldEnv(tiny_world()) for _ in range(2))
    assert env.add_start_picture(tmp_path / "mine.png") == "mine.png"
    observation, info = env.reset(seed=0, options={"start": "mine.png"})
    assert np.array_equal(observation, picture)
    assert info["start"] == "mine.png"
    elsewhere = other.reset(seed=0)[0]
    assert np.array_equal(env.reset(seed=0)[0], elsewhere), "the draw of start moments has changed"
    env.reset(seed=0, options={"start": "mine.png"})
    noop = env.world.config.actions.noop()
    assert not np.array_equal(env.step(noop)[0], other.step(noop)[0])
    assert torch.isfinite(env.get_state().memory.matrices).all()


def test_what_is_no_picture_is_refused_by_name(tmp_path: Path) -> None:
    env = ARL2WorldEnv(tiny_world())
    (tmp_path / "text.png").write_text("no picture at all")
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("text.png", "empty.png"):
        with pytest.raises(WorldError, match=f"{name} is not a picture"):
            env.add_start_picture(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="gone.png"):
        env.add_start_picture(tmp_path / "gone.png")
    assert len(env.start_names) == 3
