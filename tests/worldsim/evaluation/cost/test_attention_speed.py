"""The teacher attends by the fastest backend that there is; those that do not run are told, not hidden."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from tests.fakes import TINY_SHAPE
from worldsim.evaluation.cost import paper_shape
from worldsim.evaluation.cost.paper_shape import (
    BACKENDS,
    AttentionSpeed,
    fastest_attention,
    measure_attention,
    time_backend,
)
from worldsim.evaluation.report.markdown import format_conversion, plural
from worldsim.evaluation.report.report import as_json

CPU = torch.device("cpu")


def test_every_backend_is_tried_and_the_fastest_comes_first() -> None:
    speed = measure_attention(TINY_SHAPE, 8, 5, CPU, torch.float32)
    assert set(speed.milliseconds) == set(BACKENDS)
    measured = [value for value in speed.milliseconds.values() if value is not None]
    assert measured == sorted(measured)
    assert len(measured) == 2  # flash and math: the others need a GPU
    assert list(speed.milliseconds.values())[2:] == [None, None]
    assert next(iter(speed.milliseconds)) == speed.fastest in ("flash", "math")


def test_the_first_call_at_a_length_counts_as_often_as_in_play(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def calls(_: Any, past_frames: int, *__: Any) -> list[float]:
        seen.append(past_frames)
        return [101.0, 1.0, 1.0, 7.0]

    monkeypatch.setattr(paper_shape, "time_calls", calls)
    # Four layers, five passes: one call in twenty.
    assert time_backend("math", TINY_SHAPE, 30, 5, CPU, torch.float32) == pytest.approx((101 + 19) / 20)
    assert seen == list(range(24, 31))
    assert time_backend("math", TINY_SHAPE, 0, 5, CPU, torch.float32) == pytest.approx(6.0)


def kernels(name: str, device: torch.device, *, masked: bool = False) -> str:
    """Return what runs where a backend was found to be the fastest."""
    others = [other for other in BACKENDS if other != name]
    speed = AttentionSpeed(past_frames=1, milliseconds={name: 1.0, **dict.fromkeys(others)}, fastest=name)
    q = torch.randn(1, 2, 64, 64, device=device, dtype=torch.bfloat16)
    mask = torch.ones(64, 64, dtype=torch.bool, device=device) if masked else None
    with torch.profiler.profile() as profile, fastest_attention(speed):
        functional.scaled_dot_product_attention(q, q, q, attn_mask=mask)
    return " ".join(event.key for event in profile.key_averages())


def test_on_a_cpu_the_fastest_backend_runs_and_a_mask_is_no_reason_to_fail() -> None:
    assert "flash_attention" in kernels("flash", CPU)
    assert "scaled_dot_product_attention" in kernels("flash", CPU, masked=True)


@pytest.mark.gpu
@pytest.mark.parametrize("name", BACKENDS)
def test_on_a_gpu_the_fastest_backend_runs(name: str) -> None:
    device = torch.device("cuda")
    assert f"_{name}" in kernels(name, device)
    kernels(name, device, masked=True)


def test_an_error_that_is_not_about_the_backend_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> list[float]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(paper_shape, "time_calls", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        time_backend("math", TINY_SHAPE, 3, 1, CPU, torch.float32)

    def full(*_: Any) -> list[float]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(paper_shape, "time_calls", full)
    assert time_backend("math", TINY_SHAPE, 3, 1, CPU, torch.float32) is None


def test_what_was_measured_is_told() -> None:
    times = {"cudnn": 5.25, "flash": 8.0, "efficient": 12.04, "math": None}
    speed = AttentionSpeed(past_frames=231, milliseconds=times, fastest="cudnn")
    names = ("dim", "num_layers", "num_heads", "tokens_per_frame", "video_frames", "latent_frames")
    shape = dict.fromkeys((*names, "denoising_steps"), 1) | {"models": {}, "attention": as_json(speed)}
    assert (
        "The teacher's attention is the fastest that PyTorch has on that device, cudnn: 5.25 ms a call with "
        "231 frames of latents in the cache (flash 8 ms, efficient 12 ms, math does not run)."
    ) in format_conversion({"runs": {}, "worlds": {}, "paper_shape": shape})
    assert [plural(count, "denoising step") for count in (1, 4)] == ["1 denoising step", "4 denoising steps"]
