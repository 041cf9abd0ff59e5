"""Outcome heads: the same in training and play, part of the state, and what an environment makes of them."""

from __future__ import annotations

import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

from tests.fakes import draw, make_denoiser, tiny_world
from worldsim.data.episodes import read_episode
from worldsim.envs.single import ARL2WorldEnv
from worldsim.errors import WorldError
from worldsim.model.config import MemoryPhase
from worldsim.model.denoiser import Denoiser
from worldsim.model.linear import Linear
from worldsim.model.memory.state import MemoryState
from worldsim.model.outcome_heads import PRIOR_END, OutcomeHeads
from worldsim.outcome import OutcomeConfig
from worldsim.play.recording import Recording
from worldsim.play.run import play_headless
from worldsim.play.session import PlaySession
from worldsim.simulator import Simulator
from worldsim.state import WorldState
from worldsim.world import World, WorldConfig
from worldsim.world.config import world_card

FRAMES = 9
SCALES = OutcomeConfig(reward_mean=2.0, reward_scale=3.0, end_scale=0.5, end_bias=-1.0, end_threshold=0.6)
ACTION = np.array([1, 0, 0])


def ending(world: World, is_end: bool) -> World:
    """Let the heads say the same of every frame: reward 5 where the description is `SCALES`, and the end."""
    heads = world.denoiser.outcome
    assert heads is not None
    for head, value in ((heads.reward, 1.0), (heads.end, 20.0 if is_end else -20.0)):
        last = head[-1]
        assert isinstance(last, Linear)
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.constant_(last.bias, value)
    return world


def commit_all(
    denoiser: Denoiser, clean: torch.Tensor, levels: torch.Tensor, actions: torch.Tensor
) -> tuple[torch.Tensor, MemoryState]:
    """Return the summaries of frames committed one after the other, `[B, F, D]`, and the memory."""
    memory = denoiser.initial_memory(len(clean))
    summaries = []
    for frame in range(clean.shape[1]):
        context = denoiser.observe(actions[:, frame], memory)
        memory = denoiser.commit(clean[:, frame], levels[:, frame], context, memory)
        memory = replace(memory, matrices=memory.matrices.double(), phase=memory.phase.double())
        assert memory.summary is not None
        summaries.append(memory.summary)
    return torch.stack(summaries, dim=1), memory


@pytest.mark.parametrize("full_layers", [[], [2], [0, 1, 2]], ids=["hybrid", "full_last", "all_full"])
def test_summaries_of_a_sequence_are_those_of_its_commits(full_layers: list[int]) -> None:
    windows = [] if len(full_layers) == 3 else [1]
    denoiser = make_denoiser(MemoryPhase.PATH, windows, full_layers, outcome_heads=True)
    clean, noisy = draw(2, FRAMES, 4, 8, 8), draw(2, FRAMES, 4, 8, 8, seed=2)
    levels = draw(2, FRAMES, 2, seed=3).sigmoid()
    actions = torch.randint(3, (2, FRAMES, 3), generator=torch.Generator().manual_seed(4))
    passed = denoiser.run_sequences(clean, noisy, levels, actions, denoiser.initial_memory(2))
    steps, _ = commit_all(denoiser, clean, levels[..., 0], actions)
    assert passed.summary is not None
    torch.testing.assert_close(passed.summary, steps, rtol=1e-4, atol=1e-4)
    assert steps.std(dim=1).min() > 1e-3, "every frame has the same summary"


def test_a_segment_hands_on_the_summary_of_its_last_frame() -> None:
    denoiser = make_denoiser(MemoryPhase.PATH, outcome_heads=True)
    clean, levels = draw(2, FRAMES, 4, 8, 8), torch.zeros(2, FRAMES, 2, dtype=torch.float64)
    actions = torch.ones(2, FRAMES, 3, dtype=torch.int64)
    _, final_states = denoiser.forward_segment(clean, clean, levels, actions, denoiser.initial_memory(2))
    _, played = commit_all(denoiser, clean, levels[..., 0], actions)
    assert final_states.summary is not None
    assert played.summary is not None
    torch.testing.assert_close(final_states.summary, played.summary, rtol=1e-4, atol=1e-4)
    cleared = final_states.reset_rows(torch.tensor([True, False])).summary
    assert cleared is not None
    assert cleared[0].abs().sum() == 0
    assert torch.equal(cleared[1], final_states.summary[1])


@pytest.mark.parametrize("changed", ["action", "memory"])
def test_the_same_picture_is_judged_by_its_action_and_by_what_came_before(changed: str) -> None:
    denoiser = make_denoiser(MemoryPhase.PATH, outcome_heads=True)
    clean, levels = draw(2, FRAMES, 4, 8, 8), torch.zeros(2, FRAMES, dtype=torch.float64)
    clean[1] = clean[0]
    actions = torch.ones(2, FRAMES, 3, dtype=torch.int64)
    if changed == "action":
        actions[1, -1] = 2
    else:
        clean[1, 1] = draw(4, 8, 8, seed=9)  # out of the window's sight, and not the frame before
    summaries, _ = commit_all(denoiser, clean, levels, actions)
    assert torch.equal(summaries[0, 0], summaries[1, 0])
    assert (summaries[0, -1] - summaries[1, -1]).abs().max() > 1e-4


def test_one_token_among_many_decides() -> None:
    torch.manual_seed(0)
    heads = OutcomeHeads(16, 4)
    mark = torch.randn(16)
    tokens = torch.randn(200, 80, 16)
    marked = torch.arange(200) % 2 == 0
    tokens[marked, 37] = 3 * mark
    optimizer = torch.optim.Adam(heads.parameters(), lr=1e-2)
    for _ in range(150):
        logit = heads(heads.pool(tokens))[1]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logit, marked.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    fresh = torch.randn(100, 80, 16)
    fresh[:50, 11] = 3 * mark  # at another place
    found = heads(heads.pool(fresh))[1] > 0
    assert found[:50].float().mean() > 0.9
    assert found[50:].float().mean() < 0.1


def test_fresh_heads_expect_the_mean_reward_and_a_rare_end() -> None:
    reward, logit = OutcomeHeads(16, 2)(torch.randn(5, 16))
    assert torch.equal(reward, torch.zeros(5))
    torch.testing.assert_close(logit.sigmoid(), torch.full((5,), PRIOR_END))


def test_a_world_without_heads_is_as_it_was() -> None:
    world = tiny_world()
    state = Simulator(world).start(world.starts[:1], [0])
    assert Simulator(world).outcome(state) is None
    assert state.memory.summary is None
    names = {"matrices", "window_keys", "window_values", "phase", "latents", "num_committed"}
    assert set(state.memory.tensors()) == names
    assert not any(name.startswith("outcome") for name in world.denoiser.state_dict())
    assert "outcome" not in world.config.to_json()


def test_the_description_of_an_old_world_still_loads() -> None:
    data = tiny_world().config.to_json()
    del data["denoiser"]["outcome_heads"]
    assert WorldConfig.from_json(data) == tiny_world().config


def test_heads_and_what_they_mean_come_together() -> None:
    config = tiny_world(outcome=SCALES).config
    with pytest.raises(WorldError, match="has outcome heads, its description says otherwise"):
        replace(config, outcome=None)
    with pytest.raises(WorldError, match="has no outcome heads"):
        replace(tiny_world().config, outcome=SCALES)


def test_a_world_keeps_its_heads_and_their_meaning_on_disk(tmp_path: Path) -> None:
    world = tiny_world(outcome=SCALES)
    world.save_pretrained(tmp_path / "world", dtype=torch.float32)
    loaded = World.from_pretrained(tmp_path / "world")
    assert loaded.config.outcome == SCALES
    assert loaded.config.end_threshold == 0.6
    outcomes = []
    for one in (world, loaded):
        simulator = Simulator(one)
        state = simulator.step(
            simulator.start(world.starts[:2], [0, 1]), torch.tensor([[1, 0, 0], [0, 1, 0]])
        )[1]
        outcomes.append(simulator.outcome(state))
    first, second = outcomes
    assert first is not None
    assert second is not None
    assert torch.equal(first.reward, second.reward)
    assert torch.equal(first.end, second.end)
    assert first.reward[0] != first.reward[1]
    assert first.end.dtype == first.reward.dtype == torch.float32


def test_an_outcome_is_in_the_games_units_and_calibrated() -> None:
    outcome = SCALES.outcome(torch.tensor([1.0, -1.0]), torch.tensor([2.0, 6.0]))
    torch.testing.assert_close(outcome.reward, torch.tensor([5.0, -1.0]))
    torch.testing.assert_close(outcome.end, torch.sigmoid(torch.tensor([0.0, 2.0])))
    torch.testing.assert_close(SCALES.standardised(torch.tensor([5.0, -1.0])), torch.tensor([1.0, -1.0]))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("reward_scale", 0.0),
        ("end_threshold", 0.0),
        ("end_threshold", 1.5),
        ("end_bias", "much"),
        ("end_scale", -1),
    ],
)
def test_a_meaning_that_makes_no_sense_is_named(field: str, value: Any) -> None:
    with pytest.raises(WorldError, match=f"outcome.{field}"):
        OutcomeConfig(**(asdict(SCALES) | {field: value}))


def test_a_saved_state_holds_the_summary(tmp_path: Path) -> None:
    world = tiny_world(outcome=SCALES)
    simulator = Simulator(world)
    state = simulator.start(world.starts[:1], [0])
    state.save(tmp_path / "state", world=world.identity)
    loaded = WorldState.load(tmp_path / "state", world=world.identity)
    before, after = simulator.outcome(state), simulator.outcome(loaded)
    assert before is not None
    assert after is not None
    assert torch.equal(before.end, after.end)
    assert state.memory.first_rows(1).summary is not None
    with pytest.raises(WorldError, match=r"memory.summary is missing"):
        env = ARL2WorldEnv(world)
        env.set_state(replace(state, memory=replace(state.memory, summary=None)))


def test_the_environment_gives_the_reward_and_goes_on() -> None:
    env = ARL2WorldEnv(ending(tiny_world(outcome=SCALES), is_end=False))
    assert "end_probability" not in env.reset(seed=0)[1]
    _, reward, terminated, truncated, info = env.step(ACTION)
    assert type(info["end_probability"]) is float
    assert 0 < info["end_probability"] < SCALES.end_threshold
    assert (reward, terminated, truncated) == (5.0, False, False)
    assert type(reward) is float
    assert type(terminated) is bool
    env.step(ACTION)


def test_an_ended_episode_goes_on_only_by_reset_or_another_state() -> None:
    world = tiny_world(outcome=SCALES)
    env = ARL2WorldEnv(ending(world, is_end=False))
    env.reset(seed=0)
    env.step(ACTION)
    alive = env.get_state()
    ending(world, is_end=True)
    assert env.step(ACTION)[2] is True
    ended = env.get_state()
    for call in (lambda: env.step(ACTION), lambda: env.begin_step(ACTION)):
        with pytest.raises(ResetNeeded, match="the episode had ended"):
            call()
    assert env.get_state() is ended
    env.set_state(ended)
    with pytest.raises(ResetNeeded):
        env.step(ACTION)
    ending(world, is_end=False)
    env.set_state(alive)
    assert env.step(ACTION)[2] is False
    ending(world, is_end=True)
    env.reset()
    assert env.step(ACTION)[2] is True, "a start moment must be playable, whatever the heads say of it"


def test_check_env_has_nothing_to_say_of_a_world_that_ends() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(ARL2WorldEnv(ending(tiny_world(outcome=SCALES), is_end=True)), skip_render_check=True)


class Still:
    """Presses nothing, and counts how often it began anew."""

    num_resets = 0

    def reset(self, seed: int) -> None:
        self.num_resets += 1

    def act(self, observation: np.ndarray) -> np.ndarray:
        return np.zeros(3, dtype=np.int64)

    def watch(self, observation: np.ndarray) -> None:
        """Sees nothing."""


def test_play_goes_on_after_an_end() -> None:
    player, session = Still(), PlaySession(ARL2WorldEnv(ending(tiny_world(outcome=SCALES), is_end=True)))
    session.reset()
    assert list(play_headless(session, player, 3)) == [1, 2, 3]
    assert player.num_resets == 2
    assert session.info["frame_index"] == 1
    assert session.ended


def test_what_is_played_is_recorded_with_what_it_brought(tmp_path: Path) -> None:
    world = ending(tiny_world(outcome=SCALES), is_end=True)
    with (
        Recording(tmp_path / "dream.mp4", world.config) as recording,
        PlaySession(ARL2WorldEnv(world), recording) as session,
    ):
        session.reset()
        list(play_headless(session, Still(), 2))
    for name in ("dream", "dream-2"):
        episode = read_episode(tmp_path, name)
        assert episode.rewards is not None
        assert episode.terminated is not None
        assert episode.rewards.tolist() == [0.0, 5.0]
        assert episode.terminated.tolist() == [False, True]


def test_the_card_says_that_there_are_rewards() -> None:
    card = world_card(tiny_world(outcome=SCALES).config, 1)
    assert "- Reward: learned, 2 a frame on average; an episode ends at a probability of 0.6" in card
    assert "always 0" in world_card(tiny_world().config, 1)


def test_memory_without_heads_and_with_them_differ_in_the_summary_alone() -> None:
    plain, with_heads = (make_denoiser(MemoryPhase.PATH, outcome_heads=heads) for heads in (False, True))
    with_heads.load_state_dict(plain.state_dict(), strict=False)
    clean, levels = draw(1, 4, 4, 8, 8), torch.zeros(1, dtype=torch.float64)
    memories: list[MemoryState] = []
    for denoiser in (plain, with_heads):
        memory = denoiser.initial_memory(1)
        for frame in clean.unbind(1):
            context = denoiser.observe(torch.ones(1, 3, dtype=torch.int64), memory)
            memory = denoiser.commit(frame, levels, context, memory)
        memories.append(memory)
    ours, theirs = (memory.tensors() for memory in memories)
    assert set(theirs) - set(ours) == {"summary"}
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
