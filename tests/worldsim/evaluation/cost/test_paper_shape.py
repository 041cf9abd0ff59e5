"""The paper's shape is the paper's; the measurement counts what it says, here at a tiny shape."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.fakes import TINY_SHAPE
from worldsim.evaluation.cost import paper_shape
from worldsim.evaluation.cost.paper_shape import (
    PAPER_SHAPE,
    ShapeCost,
    build_random,
    generate,
    latent_frames,
    measure_shape,
    models_of,
    with_room,
)
from worldsim.model.config import DenoiserConfig
from worldsim.model.denoiser import Denoiser
from worldsim.model.memory.past_frames import PastFrames
from worldsim.model.memory.state import MemoryState
from worldsim.sampler import SamplerConfig

CPU = torch.device("cpu")
STEPS = SamplerConfig(num_steps=1)


def measure(config: DenoiserConfig, num_frames: int = 12) -> dict[str, Any]:
    return measure_shape(config, num_frames=num_frames, num_steps=2, device=CPU, dtype=torch.float32)


def test_the_shape_is_that_of_wan() -> None:
    assert PAPER_SHAPE.tokens_per_frame == 1560
    assert PAPER_SHAPE.head_width == 128
    assert [latent_frames(frames) for frames in (1, 5, 81, 921, 1005)] == [1, 2, 21, 231, 252]


def test_three_quarters_of_the_layers_are_converted() -> None:
    counts = [model.layer_counts for model in models_of(PAPER_SHAPE).values()]
    assert counts == [
        {"hybrid": 0, "window": 0, "full": 30},
        {"hybrid": 22, "window": 0, "full": 8},
        {"hybrid": 22, "window": 8, "full": 0},
    ]
    assert models_of(PAPER_SHAPE)["75 % hybrid, 25 % window"].window_layers == list(range(22, 30))


def test_only_full_layers_grow() -> None:
    teacher, half_grown, constant = models_of(TINY_SHAPE).values()
    one_frame = 2 * TINY_SHAPE.tokens_per_frame * TINY_SHAPE.dim * 4  # keys and values of one layer, fp32
    for config, full_layers in ((teacher, 4), (half_grown, 1), (constant, 0)):
        short, long = measure(config, 3), measure(config, 12)
        assert long.frames_done == 12
        assert long.state_bytes - short.state_bytes == 9 * full_layers * one_frame
        assert len(long.step_ms_curve) == 12
        assert long.peak_bytes is None  # there is no GPU here


def test_a_roomy_cache_is_not_copied_and_gives_the_same_frames() -> None:
    config = models_of(TINY_SHAPE)["teacher, all full"]
    denoiser = build_random(config, CPU, torch.float32)
    actions, clean = torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1)
    places = set()
    with torch.inference_mode():
        memories = [denoiser.initial_memory(1), with_room(denoiser.initial_memory(1), 20)]
        for seed in range(20):
            latents = torch.randn(1, 4, 4, 6, generator=torch.Generator().manual_seed(seed))
            for index, memory in enumerate(memories):
                context = denoiser.observe(actions, memory)
                denoiser.denoise(latents, torch.ones(1), context, memory)
                memories[index] = denoiser.commit(latents, clean, context, memory)
            assert memories[1].past is not None
            places.add(memories[1].past.keys.untyped_storage().data_ptr())
    assert len(places) == 1
    for name, tensor in memories[0].tensors().items():
        assert torch.equal(tensor, memories[1].tensors()[name]), name


def test_weights_are_of_the_dtype_that_is_asked_for_and_tables_keep_their_precision() -> None:
    denoiser = build_random(TINY_SHAPE, CPU, torch.bfloat16)
    assert {parameter.dtype for parameter in denoiser.parameters()} == {torch.bfloat16}
    assert denoiser.place.dtype is torch.float32
    assert (
        measure_shape(TINY_SHAPE, num_frames=3, num_steps=1, device=CPU, dtype=torch.bfloat16).frames_done
        == 3
    )


def test_running_out_of_memory_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = build_random(TINY_SHAPE, CPU, torch.float32)
    commit, calls = Denoiser.commit, []

    def full(self: Denoiser, *arguments: Any) -> MemoryState:
        calls.append(1)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return commit(self, *arguments)

    monkeypatch.setattr(Denoiser, "commit", full)
    report = generate(denoiser, 6, STEPS, CPU)
    assert (report.frames_done, report.num_frames) == (3, 6)


def test_a_cache_that_has_no_room_at_all_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: PastFrames, __: int) -> PastFrames:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(PastFrames, "reserve", full)
    report = generate(
        build_random(models_of(TINY_SHAPE)["teacher, all full"], CPU, torch.float32), 6, STEPS, CPU
    )
    assert (report.frames_done, report.first_step_ms, report.step_ms_curve) == (0, None, [])


def test_a_shape_is_warmed_up_before_it_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    generated: list[int] = []
    original = paper_shape.generate

    def counting(denoiser: Denoiser, num_frames: int, *rest: Any, **options: Any) -> ShapeCost:
        generated.append(num_frames)
        return original(denoiser, num_frames, *rest, **options)

    monkeypatch.setattr(paper_shape, "generate", counting)
    measure(replace(TINY_SHAPE, num_layers=1), 3)
    assert generated == [2, 3]
