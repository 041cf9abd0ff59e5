"""Parts that the context shows, in rooms whose map follows from a seed, and on some frames only."""

from __future__ import annotations

import numpy as np
import pytest

from tests.fakes import HEIGHT, TINY_ACTIONS, WIDTH, tiny_world
from tests.grids import TILE, MapSimulator, write_recall_set
from worldsim.errors import WorldError
from worldsim.evaluation.inputs.out_and_back import ReturnSet, Tolerance
from worldsim.evaluation.memory.continuation import (
    find_masks,
    measure_continuation,
    seen_rooms,
    seen_tiles,
)
from worldsim.games.doom import draw_map

pytestmark = pytest.mark.usefixtures("one_thread")
GAP = 8


@pytest.fixture(scope="module")
def returns(tmp_path_factory: pytest.TempPathFactory) -> ReturnSet:
    folder = write_recall_set(tmp_path_factory.mktemp("data"), GAP)
    return ReturnSet(
        folder, GAP, TINY_ACTIONS, (HEIGHT, WIDTH), tolerance=Tolerance(), context_frames=3, num_episodes=0
    )


@pytest.mark.parametrize(
    ("most", "frames"), [(0, list(range(8))), (4, [1, 3, 5, 7]), (3, [2, 4, 7]), (99, list(range(8)))]
)
def test_masks_are_of_frames_spread_evenly_up_to_the_turn(
    returns: ReturnSet, most: int, frames: list[int]
) -> None:
    find = seen_tiles((HEIGHT // TILE, WIDTH // TILE), TILE)
    masks = find_masks(returns, find, most)
    assert masks.frames == frames
    assert np.array_equal(masks.seen, find_masks(returns, find).seen[:, frames])


def test_only_frames_with_masks_are_scored(returns: ReturnSet) -> None:
    masks = find_masks(returns, seen_tiles((HEIGHT // TILE, WIDTH // TILE), TILE), 4)
    scores = measure_continuation(MapSimulator(tiny_world()), returns, masks, batch_size=2, seed=0)
    total = scores.counts["seen"] + scores.counts["unseen"]
    assert total.tolist() == [3 * 4 * HEIGHT * WIDTH] * 4
    seen, unseen = (scores.errors["dream"][kind] / scores.counts[kind] for kind in ("seen", "unseen"))
    assert (seen < 0.1 * unseen).all()  # it remembers all that the context shows, but for the video's losses


def test_behind_one_in_a_fresh_room_nothing_was_seen_and_ahead_all_was() -> None:
    pytest.importorskip("vizdoom", reason="ViZDoom brings the textures that maps are drawn with")
    room = draw_map(3).rooms[0]
    x, y = (room.west + room.east) / 2, (room.south + room.north) / 2
    ahead, behind = np.array([[x, y, 0.0]]), np.array([[x, y, 180.0]])
    seen = seen_rooms((60, 80))(ahead, np.concatenate([ahead, behind]), 3)
    assert seen.shape == (2, 60, 80)
    assert seen[0].mean() > 0.98
    assert seen[1].mean() < 0.02
    with pytest.raises(WorldError, match="map of game 3 does not fit the recorded poses"):
        seen_rooms((60, 80))(ahead - 1e5, behind, 3)


def test_without_the_seed_of_the_game_its_map_is_not_known(returns: ReturnSet) -> None:
    with pytest.raises(WorldError, match="does not record the seed of its game"):
        find_masks(returns, seen_rooms((HEIGHT, WIDTH)))
