"""The command that films worlds: frames side by side, a file that is whole or as it was, what it refuses."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from tests.fakes import HEIGHT, WIDTH, save_tiny_world, tiny_world
from training.film import main
from training.film.make import FilmConfig, play
from training.film.picture import GAP, GAP_COLOUR, tile
from worldsim.envs.single import ARL2WorldEnv
from worldsim.errors import WorldError
from worldsim.outcome import OutcomeConfig

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_world(tmp_path_factory.mktemp("film") / "tiny"))


def test_worlds_play_side_by_side(world: str, tmp_path: Path) -> None:
    out = tmp_path / "new" / "film.webp"
    settings = {"worlds": [world, world], "starts": [0, 1], "device": "cpu", "threads": 1}
    main.run(FilmConfig(out=str(out), seconds=0.6, every=2, scale=2, **settings))
    with av.open(str(out)) as container:
        assert container.format.name.startswith("webp")
    held = out.read_bytes()
    assert held.count(b"ANMF") == 3  # frames 0, 2, 4 of six, at the tiny world's ten a second
    with pytest.raises(WorldError, match="start"):
        main.run(FilmConfig(out=str(out), **settings | {"starts": [0, 99]}))
    with pytest.raises(WorldError, match="has at most 16383 a side: choose a smaller scale"):
        wide = {"worlds": [world] * 30, "starts": [], "columns": 30, "scale": 16}
        main.run(FilmConfig(out=str(out), **settings | wide))
    assert out.read_bytes() == held


def test_frames_lie_in_the_middle_of_equal_places() -> None:
    large, small = np.full((6, 8, 3), 200, np.uint8), np.full((2, 4, 3), 100, np.uint8)
    picture = tile((large, small, small), columns=2, scale=2)
    assert picture.shape == (2 * 12 + GAP, 2 * 16 + GAP, 3)
    assert (picture[:12, :16] == 200).all()
    assert (picture[4:8, 16 + GAP + 4 : 16 + GAP + 12] == 100).all()
    assert (picture[:, 16 : 16 + GAP] == GAP_COLOUR).all()
    assert (picture[12 + GAP :, 16 + GAP :] == GAP_COLOUR).all()


def test_after_an_end_the_dream_begins_at_the_same_moment() -> None:
    ends = OutcomeConfig(end_threshold=1e-9, reward_mean=0.0, reward_scale=1.0)
    env = ARL2WorldEnv(tiny_world(outcome=ends))
    frames = play(env, 3, seed=3, start=1)
    assert frames[0].shape == (HEIGHT, WIDTH, 3)
    assert (frames[0] == frames[1]).all() and (frames[0] == frames[2]).all()


def test_when_time_is_up_the_dream_begins_again() -> None:
    env = ARL2WorldEnv(tiny_world(max_episode_steps=2))
    frames = play(env, 6, seed=3, start=1)
    assert [bool((frame == frames[0]).all()) for frame in frames] == [True, False, True, False, True, False]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"worlds": []}, "at least one world"),
        ({"starts": [1, 2]}, "one for each of 1 worlds"),
        ({"out": "film.gif"}, "out must end in .webp"),
        ({"scale": 1000}, "scale must"),
        ({"seconds": 0.0}, "seconds must"),
    ],
)
def test_settings_that_make_no_film_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(WorldError, match=said):
        FilmConfig(**{"worlds": ["tiny"], "out": "film.webp"} | settings)  # type: ignore[arg-type]
