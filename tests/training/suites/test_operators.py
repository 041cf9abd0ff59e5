"""`benchmark=step` says what a step consists of, alone and beside another world."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.fakes import save_tiny_world
from training.evaluate import EvaluateConfig, main
from worldsim.errors import WorldError
from worldsim.evaluation.cost import step_operators
from worldsim.evaluation.cost.step_operators import KINDS, OperatorLog


def config(tmp_path: Path) -> EvaluateConfig:
    return EvaluateConfig(
        world=str(save_tiny_world(tmp_path / "world")),
        out=str(tmp_path / "out"),
        benchmark="step",
        step_count=3,
        denoising_steps=2,
        device="cpu",
        dtype="float32",
        threads=1,
    )


@pytest.mark.filterwarnings("ignore:.*no outcome heads")
def test_operators_of_two_worlds_are_counted_in_turn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = config(tmp_path)
    one.against = one.world
    main.run(one)
    found = json.loads((tmp_path / "out" / "step.json").read_text())["steps"]
    assert list(found) == ["world", "against"]
    world, against = found["world"], found["against"]
    for part in ("predict", "commit"):
        counts = {kind: world[part][kind]["operators"] for kind in KINDS}
        assert counts == {kind: against[part][kind]["operators"] for kind in KINDS}
        assert all(world[part][kind]["milliseconds"] > 0 for kind, count in counts.items() if count)
    assert world["predict"]["memory write"]["operators"] == 0 < world["commit"]["memory write"]["operators"]
    assert world["predict"]["memory read"]["operators"] > 0 < world["predict"]["attention"]["operators"]
    assert world["against"]["mean"] > 0 and "against" not in against
    assert "memory write" in capsys.readouterr().out


def test_operators_have_the_kind_of_what_they_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def place() -> torch.Tensor:
        return torch.ones(3) + 1

    monkeypatch.setitem(step_operators.PLACES, place.__code__, step_operators.ATTENTION)
    weight, x = torch.ones(3, 3), torch.ones(2, 3)
    with torch.inference_mode(), OperatorLog(torch.device("cpu")) as log:
        torch.nn.functional.linear(x, weight)
        for shared in (x.to(torch.float32), x.t(), x[0]):  # none of them has memory of its own
            assert shared.data_ptr() == x.data_ptr()
        x.to(torch.bfloat16)
        x.add_(1)
        place()
    counts = {kind: cost.operators for kind, cost in log.costs.items()}
    assert counts == {
        "linear": 1,
        "views": 3,
        "copies and casts": 1,
        step_operators.OTHERS: 1,
        "attention": 2,
    }


def test_another_world_without_the_benchmark_is_refused() -> None:
    with pytest.raises(WorldError, match="against= belongs to benchmark=step"):
        EvaluateConfig(against="doom-rooms")
