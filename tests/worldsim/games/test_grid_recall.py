"""Grid recall: what is seen depends on where one is, and on nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import policies
from training.collect import CollectConfig, describe_source
from training.data.recorders import EpisodeTask, record_episode
from worldsim.data.episodes import DatasetInfo, read_episode
from worldsim.errors import WorldError
from worldsim.evaluation.memory.tiles import TileReader, cut_tiles
from worldsim.evaluation.metrics import psnr
from worldsim.games.grid_recall import GRID_RECALL, SIDE, TILE, VIEW, GridGame, draw_tiles
from worldsim.games.registry import GAMES, find_game, open_game

pytest.importorskip("minigrid", reason='grid recall needs pip install -e ".[grid]"')

UP, DOWN, LEFT, RIGHT, STAY = ([1, 0], [2, 0], [0, 1], [0, 2], [0, 0])


def reader() -> TileReader:
    """Tell tiles apart by MiniGrid's own pictures of them."""
    return TileReader(cut_tiles(torch.from_numpy(draw_tiles()), TILE).flatten(0, 2), TILE)


def record(folder: Path, gap: int, seed: int = 0, context: int = 6) -> None:
    GRID_RECALL.dataset_info("a test").save(folder)
    player = policies.make(
        "out-and-back", num_values=(3, 3), out_frames=[gap, gap], context_frames=[context, context]
    )
    task = EpisodeTask(folder=folder, name="episode", seed=seed)
    assert record_episode(GridGame(), player, task, 1 + context + 2 * gap) == 1 + context + 2 * gap


@pytest.mark.parametrize(
    ("action", "shift"), [(UP, (-1, 0)), (DOWN, (1, 0)), (LEFT, (0, -1)), (RIGHT, (0, 1)), (STAY, (0, 0))]
)
def test_a_move_shifts_the_view_by_one_tile(action: list[int], shift: tuple[int, int]) -> None:
    game = GridGame()
    before, begin = game.reset(3).frame, game.reset(3).pose
    seen = game.step(np.array(action))
    rows, columns = (TILE * part for part in shift)
    height = width = VIEW * TILE
    expected = before[max(0, rows) : height + rows, max(0, columns) : width + columns]
    found = seen.frame[max(0, -rows) : height - rows, max(0, -columns) : width - columns]
    assert np.array_equal(found, expected)
    assert seen.pose == (begin[0] + shift[1], begin[1] + shift[0], 0.0)


def test_opposite_moves_lead_back_to_the_same_picture_also_over_the_far_side() -> None:
    game = GridGame()
    first = game.reset(1)
    poses = [game.step(np.array(LEFT)).pose for _ in range(SIDE)]
    assert len(set(poses)) == SIDE and poses[-1] == first.pose
    frames = [game.step(np.array(move)).frame for move in [UP] * 60 + [DOWN] * 60]
    assert np.array_equal(frames[-1], first.frame)


def test_every_seed_has_a_grid_of_its_own_whoever_plays_it() -> None:
    frames = [GridGame().reset(seed).frame for seed in (0, 1, 2**32 - 1)]
    assert np.array_equal(frames[0], GridGame().reset(0).frame)
    shares = [float((a == b).mean()) for a, b in ((frames[0], frames[1]), (frames[1], frames[2]))]
    assert max(shares) < 0.8


def test_tiles_are_told_apart_and_recognised() -> None:
    tiles = torch.from_numpy(draw_tiles().copy()).float()
    apart = torch.cdist(tiles.flatten(1), tiles.flatten(1)) / tiles[0].numel() ** 0.5
    assert len(tiles) == 24 and float(apart.fill_diagonal_(1e9).min()) > 20, "levels of 255, root mean square"
    game = GridGame()
    frame = game.reset(5).frame
    assert np.array_equal(reader().read(torch.from_numpy(frame)[None])[0].numpy(), game.kinds)


def test_tiles_are_told_apart_one_by_one_and_under_noise() -> None:
    game = GridGame()
    truth = torch.from_numpy(game.reset(5).frame)
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0)) * 25
    noisy = (truth + noise).clamp(0, 255).to(torch.uint8)
    assert reader().right(noisy[None], truth[None]).all()
    wrong = noisy.clone()
    other = int(game.kinds[0, 0] + 1) % 24
    wrong[:TILE, :TILE] = torch.from_numpy(draw_tiles()[other].copy())
    right = reader().right(wrong[None], truth[None])
    assert right.sum() == 48 and not right[0, 0, 0]


def test_out_and_back_shows_again_what_it_saw(tmp_path: Path) -> None:
    gap, context = 20, 6
    record(tmp_path, gap, context=context)
    episode = read_episode(tmp_path, "episode")
    turn = context + gap
    assert episode.poses is not None
    for k in range(1, gap + 1):
        assert np.array_equal(episode.poses[turn + k], episode.poses[turn - k])
        difference = np.abs(episode.frames[turn + k].astype(int) - episode.frames[turn - k])
        assert difference.max() <= 2, "the video is lossless but for the rounding of colours"
    assert len(np.unique(episode.poses[context : turn + 1], axis=0)) == gap + 1, "no tile twice"


def test_recorded_video_keeps_small_things(tmp_path: Path) -> None:
    record(tmp_path, 4)
    info, game = DatasetInfo.load(tmp_path), GridGame()
    assert info.lossless
    read, drawn = read_episode(tmp_path, "episode", info).frames[:1], game.reset(0).frame[None]
    assert float(psnr(torch.from_numpy(read), torch.from_numpy(drawn))) > 50


@pytest.mark.parametrize("gap", [100, 400])
def test_long_ways_stay_far_from_where_the_grid_repeats(gap: int) -> None:
    player = policies.make("out-and-back", num_values=(3, 3), out_frames=[gap, gap], context_frames=[0, 0])
    steps, frame = np.array([0, -1, 1]), np.zeros((2, 2, 3), np.uint8)
    for seed in range(5):
        player.reset(seed)
        places = np.cumsum([steps[player.act(frame)] for _ in range(2 * gap)], axis=0)
        assert np.abs(places).max() + VIEW <= SIDE - np.abs(places).max()
        assert (places[-1] == 0).all()
        assert np.abs(places).max() > 7, "it never left"


def test_what_a_player_draws_does_not_depend_on_the_game() -> None:
    first, second = (policies.make("out-and-back", num_values=(3, 3)) for _ in range(2))
    first.reset(4)
    second.reset(4)
    frame, other = np.zeros((2, 2, 3), np.uint8), np.ones((2, 2, 3), np.uint8)
    for _ in range(99):
        action = first.act(frame)
        assert (action == second.act(other)).all()
        action[:] = 2  # what was returned belongs to who asked


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_values": (3, 3, 3)}, r"out-and-back needs the axes \[3, 3\], got \[3, 3, 3\]"),
        ({"out_frames": [0, 4]}, "out_frames needs 1 <= minimum <= maximum, got"),
        ({"context_frames": [5, 4]}, "context_frames needs 0 <= minimum <= maximum, got"),
    ],
)
def test_a_player_that_cannot_be_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        policies.OutAndBackPolicy(**({"num_values": (3, 3)} | options))


def test_collect_knows_the_game_and_names_what_was_recorded() -> None:
    assert find_game("grid-recall") is GAMES["grid-recall"]
    assert isinstance(open_game("grid-recall"), GridGame)
    with pytest.raises(WorldError, match="there is no scenario 'chess'; known are .*grid-recall"):
        find_game("chess")
    config = CollectConfig(scenario="grid-recall", policy="out-and-back", out_frames=[16, 16])
    source = describe_source(config, "train", GAMES["grid-recall"])
    assert source.startswith("MiniGrid ")
    assert "out-and-back player (16 to 16 frames out), seed 0 (train)" in source


def test_misuse_of_a_game_is_told() -> None:
    game = GridGame()
    with pytest.raises(WorldError, match="call reset first"):
        game.step(np.array(UP))
    with pytest.raises(WorldError, match="the seed of a grid must be 0 to"):
        game.reset(-1)
    game.reset(0)
    with pytest.raises(WorldError):
        game.step(np.array([3, 0]))
