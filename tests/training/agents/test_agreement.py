"""A dream beside its game: how often players end in both, and whether both agree on who is better."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fakes import save_untrained_policy
from training.agents import evaluate
from training.agents.agreement import (
    Agreement,
    agreement_on_ranks,
    compare,
    end_rate,
    format_agreement,
)
from training.agents.episodes import Episodes
from training.agents.settings import RLConfig
from worldsim.evaluation.statistics import Estimate


def episodes(frames: list[int], ended: list[bool]) -> Episodes:
    lengths = np.array(frames)
    return Episodes(returns=2.0 * lengths, frames=lengths, terminated=np.array(ended))


def player(label: str, dream: float, real: float, *, learned_in_dreams: bool = False) -> Agreement:
    rate = Estimate(1.0, None, None, 1)
    return Agreement(
        label=label,
        learned_in_dreams=learned_in_dreams,
        dream_return=dream,
        real_return=real,
        dream_ends=rate,
        real_ends=rate,
    )


def test_ends_are_counted_by_frames_also_those_of_episodes_that_were_cut_off() -> None:
    rate = end_rate(episodes([100, 300, 600], [True, True, False]))
    assert rate.mean == pytest.approx(2.0)
    assert rate.low == 0.0, "all three may be the one that was cut off"
    assert rate.high == pytest.approx(10.0), "or the shortest"
    unseen = end_rate(episodes([100, 100], [False, False]))
    assert (unseen.mean, unseen.low) == (0.0, 0.0)
    assert np.exp(-0.2 * unseen.high) == pytest.approx(0.025, rel=1e-3), "none seen is not none possible"
    assert end_rate(episodes([50], [True])) == Estimate(20.0, None, None, 1)


def test_the_interval_holds_the_hazard_that_episodes_were_drawn_from() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for seed in range(60):
        lengths = rng.geometric(0.01, size=100)
        rate = end_rate(episodes(np.minimum(lengths, 200).tolist(), (lengths <= 200).tolist()), seed)
        assert rate.low is not None and rate.high is not None
        inside += rate.low <= 10.0 <= rate.high
    assert inside >= 51


def test_a_player_that_learned_in_dreams_is_no_judge_of_them() -> None:
    honest = [player("a", 1.0, 10.0), player("b", 2.0, 20.0), player("c", 4.0, 15.0)]
    assert agreement_on_ranks(honest) == pytest.approx(0.5)
    exploits = player("ppo", 100.0, 1.0, learned_in_dreams=True)
    assert agreement_on_ranks([*honest, exploits]) == pytest.approx(0.5)
    assert agreement_on_ranks([*honest[:2], exploits]) is None, "two have no order worth a number"
    assert agreement_on_ranks([player(str(value), 1.0, value) for value in (1, 2, 3)]) is None
    tied = [player("a", 1.0, 1.0), player("b", 1.0, 2.0), player("c", 2.0, 3.0)]
    assert agreement_on_ranks(tied) == pytest.approx(0.75**0.5)


def test_the_table_says_both_and_what_it_cannot_say() -> None:
    one = compare(
        "still", episodes([100, 100], [True] * 2), episodes([50, 150], [True] * 2), learned_in_dreams=False
    )
    table = format_agreement([one, player("ppo", 9.0, 3.0, learned_in_dreams=True)])
    assert "200.0          200.0  10.0 (10.0 to 10.0)" in table
    assert "10.0 (6.7 to 20.0)" in table and "ppo     dreams" in table
    assert table.endswith("of different returns")
    assert format_agreement([player(n, i, i) for i, n in enumerate("abc")]).endswith("in dreams: 1.00")


def test_both_are_played_and_put_beside_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    learned = save_untrained_policy(tmp_path / "learned", [3], "doom-take-cover")
    description = json.loads((learned / "policy.json").read_text())
    description["training"] = {"learned_from": "a dream of doom-take-cover@0"}
    (learned / "policy.json").write_text(json.dumps(description))
    labels = ["still", "random", "to-and-fro", str(learned)]
    lengths = {"real": [10, 20, 30, 15], "dream": [12, 18, 40, 90]}

    def fake(env: str) -> Any:  # what is played has tests of its own
        played = dict(zip(labels, lengths[env], strict=True))
        return lambda *_: (env, {n: episodes([frames, frames], [True, True]) for n, frames in played.items()})

    monkeypatch.setattr(evaluate, "play_real", fake("real"))
    monkeypatch.setattr(evaluate, "play_dreamt", fake("dream"))
    out = str(tmp_path / "out")
    config = RLConfig(mode="evaluate", env="both", policies=labels, episodes=2, out=out, threads=1)
    evaluate.evaluate_agents(config)
    report = json.loads((tmp_path / "out" / "both.json").read_text())
    assert report["rank_correlation"] == pytest.approx(1.0)
    assert report["policies"]["random"]["return"] == {"dream": 36.0, "real": 40.0}
    assert report["policies"]["still"]["ends_per_1000_frames"]["real"]["rate"] == pytest.approx(100.0)
    assert [report["policies"][label]["learned_in_dreams"] for label in labels] == [False] * 3 + [True]
    for env in ("real", "dream"):
        own = json.loads((tmp_path / "out" / f"{env}.json").read_text())
        assert own["played_in"] == env and own["policies"]["still"]["frames"] == [lengths[env][0]] * 2
    assert "the dream beside the game" in capsys.readouterr().out


@pytest.mark.slow
def test_the_shipped_world_is_put_beside_its_game(tmp_path: Path) -> None:
    pytest.importorskip("vizdoom", reason='needs the game: pip install -e ".[doom]"')
    config = RLConfig(
        mode="evaluate",
        env="both",
        policies=["still", "to-and-fro"],
        episodes=2,
        num_workers=1,
        max_episode_steps=4,
        denoising_steps=1,
        device="cpu",
        threads=1,
        out=str(tmp_path),
    )
    evaluate.evaluate_agents(config)
    report = json.loads((tmp_path / "both.json").read_text())
    assert report["rank_correlation"] is None
    for found in report["policies"].values():
        assert found["return"]["real"] == 8.0, "2 tics a frame, of which nobody dies in four"
        assert found["return"]["dream"] == pytest.approx(8.0, abs=1.0)
        assert found["ends_per_1000_frames"]["real"]["rate"] == 0.0
