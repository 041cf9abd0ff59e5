"""The registry of real games: each entry is whole, and all that reads it agrees."""

from __future__ import annotations

import pickle

import pytest

import policies
from training.collect import CollectConfig
from worldsim.errors import WorldError
from worldsim.games.doom import DoomEntry, ScenarioFile
from worldsim.games.registry import GAMES, find_game

DOOM = [entry for entry in GAMES.values() if isinstance(entry, DoomEntry)]


@pytest.mark.parametrize("name", sorted(GAMES))
def test_an_entry_is_all_that_is_needed(name: str) -> None:
    entry = find_game(name)
    assert entry.name == name and find_game(entry) is entry
    assert pickle.loads(pickle.dumps(entry)) == entry, "worker processes are given entries"
    info = entry.dataset_info("a test")
    assert (info.name, info.height, info.width) == (name, entry.height, entry.width)
    assert info.frame_rate == entry.frame_rate and info.licence and entry.game
    assert CollectConfig(scenario=name).setup(entry).episode_frames == entry.episode_frames


@pytest.mark.parametrize("name", sorted(GAMES))
def test_players_of_an_entry_exist_and_fit_its_buttons(name: str) -> None:
    entry = GAMES[name]
    for player, share in (*entry.players.items(), *entry.recorded_players.items()):
        assert entry.actions.num_values == policies.SCRIPTED[player].NUM_VALUES and share > 0
    assert policies.find_scripted(entry.actions.num_values, entry) == dict(entry.players)


@pytest.mark.parametrize("entry", DOOM, ids=lambda entry: entry.name)
def test_games_of_doom_press_each_button_and_are_recorded_to_their_end(entry: DoomEntry) -> None:
    assert len(entry.buttons) == len(entry.actions.buttons)
    assert entry.max_tics in (0, (entry.episode_frames - 1) * entry.tics_per_frame)


def test_scenarios_have_axes_of_their_own() -> None:
    scenarios = [entry for entry in DOOM if isinstance(entry.place, ScenarioFile)]
    assert len({entry.actions.num_values for entry in scenarios}) == len(scenarios) == 3
    assert GAMES["doom-fresh-rooms"].actions == GAMES["doom-rooms"].actions


def test_unknown_game_is_named() -> None:
    known = "doom-fresh-rooms, doom-health, doom-level, doom-rooms, doom-take-cover, grid-recall"
    with pytest.raises(WorldError, match=f"there is no scenario 'quake'; known are {known}$"):
        find_game("quake")
