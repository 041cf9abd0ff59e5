"""Long videos of a transformer with random weights are measured at each length, model beside model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import worldsim.evaluation.cost.video_shape
import worldsim.wan.autoencoder
from tests.recorder import Recorder
from tests.wan_models import REASON, randomized, tiny_config
from training.evaluate import main as evaluate
from training.suites.settings import EvaluateConfig
from worldsim.errors import WorldError
from worldsim.evaluation.cost.video_decoding import DecodingCost
from worldsim.evaluation.cost.video_shape import (
    MODELS,
    Drawing,
    VideoShapeConfig,
    begin_drawing,
    choose_layout,
    late_over_early,
    measure_video,
)
from worldsim.wan.autoencoder import LAYOUTS, StreamingAutoencoder
from worldsim.wan.causal import FrameCache, commit_block, generate_block, reserved_cache
from worldsim.wan.config import CausalConfig
from worldsim.wan.transformer import TextContext, WanTransformer

pytest.importorskip("diffusers", reason=REASON)
CAUSAL = CausalConfig(block=1, window=3, steps=[1000, 500])


def tiny_video(**changes: object) -> VideoShapeConfig:
    config = VideoShapeConfig(
        shape=tiny_config(num_layers=4),
        causal=CAUSAL,
        models=list(MODELS),
        height=32,
        width=48,
        frames=[5, 13],
        decoder_width=4,
    )
    return replace(config, **changes)


def config_of(out: Path, **changes: object) -> EvaluateConfig:
    return EvaluateConfig(
        benchmark="video", out=str(out), device="cpu", dtype="fp32", threads=1, video=tiny_video(**changes)
    )


@pytest.mark.slow
def test_each_model_is_measured_at_each_length(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.run(config_of(tmp_path))
    report = json.loads((tmp_path / "video.json").read_text())
    kept = {}
    for name, measured in report["models"].items():
        assert [mark["frames"] for mark in measured["marks"]] == [5, 13]
        seconds = [mark["seconds"] for mark in measured["marks"]]
        assert 0 < seconds[0] < seconds[1]
        for mark in measured["marks"]:
            assert set(mark["block_ms"]) == {"draw", "decode", "commit"}
            assert mark["frames_per_second"] == pytest.approx(4e3 / sum(mark["block_ms"].values()))
            assert min(mark["block_ms"].values()) > 0
        assert list(measured["block"]) == ["draw", "decode", "commit"]
        assert all(part["milliseconds"]["products"] > 0 for part in measured["block"].values())
        kept[name] = [mark["cache_bytes"] for mark in measured["marks"]]
    # Keys and values of 6 tokens of width 24 in fp32 for a latent frame, or two 12 x 12 matrices.
    frame, matrices = 2 * 6 * 24 * 4, 2 * 12 * 12 * 4
    assert kept == {
        "teacher, full cache": [4 * 2 * frame, 4 * 4 * frame],
        "teacher, window": [4 * 2 * frame] * 2,
        "hybrid, window": [3 * matrices + 2 * frame] * 2,
        "hybrid, full cache": [3 * matrices + 2 * frame, 3 * matrices + 4 * frame],
    }
    for cost in report["decoding"].values():
        assert cost["relative_error"] < 1e-5 and min(cost["whole_ms"], cost["streamed_ms"]) > 0
    assert report["settings"]["decoder_layout"] in report["decoding"].keys() == LAYOUTS.keys()
    told = capsys.readouterr().out
    assert all(name in told for name in MODELS)
    assert "ms of a block of 4 frames, by kind" in told


@pytest.mark.parametrize("name", ["teacher, window", "hybrid, window"])
def test_blocks_of_a_full_window_are_recorded_and_draw_what_others_do(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    monkeypatch.setattr(worldsim.evaluation.cost.video_shape, "compiler_of", recorder.compiler_of)
    config = tiny_video(decoder_layout="contiguous")
    given = (config, name, torch.device("cpu"), torch.float32, 6)
    eager, recorded = begin_drawing(*given), begin_drawing(*given)
    recorded.compile = "cudagraphs"
    launched = []
    for _ in range(6):
        eager.step()
        recorded.step()
        launched.append(recorded.launched)
        assert len(recorded.decoded.features) == len(eager.decoded.features) > 0
        for found, expected in zip(recorded.decoded.features, eager.decoded.features, strict=True):
            torch.testing.assert_close(found, expected)
    assert launched == ["none"] * 2 + ["cudagraphs"] * 4, "a window of three is full behind two frames"
    assert eager.launched == "none" and recorder.num_recorded == 2, "decoding is not recorded"
    recorded.go_to(2500)
    recorded.step()
    assert recorder.num_recorded == 2 and recorded.cache.frames is not None
    assert recorded.cache.frames.tolist() == [2501]


def test_a_late_block_is_drawn_at_its_age_and_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    ages = []
    commit = worldsim.evaluation.cost.video_shape.commit_block

    def noted(
        model: WanTransformer,
        latents: Tensor,
        text: TextContext,
        cache: FrameCache,
        causal: CausalConfig,
        *,
        is_fused: bool,
    ) -> FrameCache:
        ages.append(0 if cache.frames is None else int(cache.frames))
        assert not is_fused, "on a CPU nothing is compiled"
        return commit(model, latents, text, cache, causal)

    monkeypatch.setattr(worldsim.evaluation.cost.video_shape, "commit_block", noted)
    config = tiny_video(frames=[13, 45], decoder_width=0, late=10_000)
    marks, _ = measure_video(config, "hybrid, window", torch.device("cpu"), torch.float32)
    assert [mark.frames for mark in marks] == [13, 45, 10_000]
    assert marks[2].seconds is None and marks[2].cache_bytes == marks[0].cache_bytes
    late, early = (sum(mark.block_ms.values()) for mark in (marks[2], marks[1]))
    assert late_over_early(config, marks) == late / early, "at 13 frames the window was not full for long"
    assert late_over_early(config, marks[:2]) is None
    assert ages[-9:] == list(range(2501, 2510))
    marks, _ = measure_video(config, "teacher, full cache", torch.device("cpu"), torch.float32)
    assert [mark.frames for mark in marks] == [13, 45], "a cache that grows is of an age"


def test_memory_that_does_not_suffice_is_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, taken = Drawing.step, []

    def limited(drawing: Drawing) -> dict[str, float]:
        taken.append(drawing)
        if len(taken) > 5:
            raise torch.OutOfMemoryError
        return step(drawing)

    monkeypatch.setattr(worldsim.evaluation.cost.video_shape.Drawing, "step", limited)
    evaluate.run(config_of(tmp_path, models=["teacher, full cache"]))
    measured = json.loads((tmp_path / "video.json").read_text())["models"]["teacher, full cache"]
    assert [mark["seconds"] is None for mark in measured["marks"]] == [False, True]
    assert "block" not in measured


def test_a_layout_for_which_memory_does_not_suffice_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking: set[str] = set()
    measure = worldsim.evaluation.cost.video_shape.measure_decoding

    def decoding(decoder: StreamingAutoencoder, size: tuple[int, int]) -> DecodingCost:
        is_contiguous = all(each.is_contiguous() for each in decoder.autoencoder.parameters())
        if ("contiguous" if is_contiguous else "channels_last") in lacking:
            raise torch.OutOfMemoryError
        return measure(decoder, size)

    monkeypatch.setattr(worldsim.evaluation.cost.video_shape, "measure_decoding", decoding)
    given = (tiny_video(), torch.device("cpu"), torch.float32)
    lacking.add("contiguous")
    chosen, costs = choose_layout(*given)
    assert chosen.decoder_layout == "channels_last" and list(costs) == ["channels_last"]
    lacking.add("channels_last")
    assert choose_layout(*given) == (replace(tiny_video(), decoder_layout="contiguous"), {})


def test_graphs_without_a_gpu_are_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(WorldError, match="compile='cudagraphs' needs a CUDA GPU"):
        evaluate.run(config_of(tmp_path, compile="cudagraphs"))
    assert not capsys.readouterr().out


def test_no_network_is_made_while_a_video_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    made, build = [], worldsim.wan.autoencoder.build_autoencoder
    monkeypatch.setattr(worldsim.wan.autoencoder, "build_autoencoder", lambda c: made.append(c) or build(c))
    given = (torch.device("cpu"), torch.float32, 2)
    drawing = begin_drawing(tiny_video(), "teacher, window", *given)
    count = len(made)
    drawing.step()
    assert count == len(made) > 0


def test_lengths_that_end_in_the_same_block_are_all_noted() -> None:
    config = tiny_video(frames=[5, 4, 5], decoder_width=0)
    marks, _ = measure_video(config, "hybrid, window", torch.device("cpu"), torch.float32)
    assert [mark.frames for mark in marks] == [4, 5]
    assert all(mark.seconds is not None for mark in marks), "the memory did suffice"


def test_a_cache_with_room_equals_one_that_grows() -> None:
    model = randomized(WanTransformer(tiny_config(hybrid_layers=[1]))).double()
    assert isinstance(model, WanTransformer)
    causal = replace(CAUSAL, window=None)
    text = model.embed_text(torch.ones(1, 2, 32, dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)

    def noise() -> Tensor:
        return torch.randn(2, 1, 16, 1, 4, 6, generator=generator, dtype=torch.float64)

    growing, reserved = FrameCache(), reserved_cache(model, 4, 6)
    for _ in range(4):
        drawn = noise()
        found, expected = (
            generate_block(model, drawn[0], text, cache, causal, drawn[1:]) for cache in (reserved, growing)
        )
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)
        reserved, growing = (commit_block(model, found, text, each, causal) for each in (reserved, growing))
        assert reserved.num_bytes == growing.num_bytes


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"models": ["teacher"]}, r"video\.models must be some of teacher, full cache; .*, got teacher"),
        ({"height": 40}, r"sides be multiples of 16: got \[5, 13\], 48 x 40"),
        ({"causal": replace(CAUSAL, window=None)}, r"video\.causal\.window must be a number"),
        ({"compile": "fast"}, r"video\.compile must be one of auto, none, cudagraphs, inductor, got 'fast'"),
        ({"decoder_layout": "last"}, r"decoder_layout must be one of auto, contiguous, channels_last, got"),
        ({"late": 4}, r"video\.late and the longest of video\.frames must be at least 5, .* 4 and 13"),
        ({"late": 99, "frames": [4]}, r"must be at least 5, at which the window is full: got 99 and 4"),
    ],
)
def test_settings_that_do_not_fit_are_said(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(WorldError, match=reason):
        tiny_video(**changes)
