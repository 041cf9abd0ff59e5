"""The decoder's layers can be compiled, and show the library's pictures in either layout and format."""

from __future__ import annotations

import pickle
import shutil
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit

from tests.wan_models import REASON, tiny_autoencoder
from worldsim.evaluation.cost.video_decoding import decode_whole
from worldsim.runtime import fused as fused_module
from worldsim.runtime.cuda_graphs import fuse
from worldsim.wan import autoencoder as autoencoder_module
from worldsim.wan.autoencoder import DecoderState, StreamingAutoencoder

pytest.importorskip("diffusers", reason=REASON)
FORMATS = {torch.float32: 1e-5, torch.bfloat16: 1e-3}
"""Relative difference from what the library decodes as a whole: fused layers round where it does."""


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    """Let no test use what another one compiled."""

    def clear() -> None:
        fused_module.fused.cache_clear()
        fused_module._failures.clear()

    clear()
    yield
    clear()


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace layers whole, as a compiler would, and run the operators of the trace."""

    def traced_alone(layer: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
        assert options == {"emulate_precision_casts": True}
        return fuse(layer, "aot_eager")

    monkeypatch.setattr(fused_module, "fuse", traced_alone)


def tiny(dtype: torch.dtype, layout: str) -> StreamingAutoencoder:
    return StreamingAutoencoder(tiny_autoencoder()).lay_out(layout).to(dtype=dtype)


def streamed(
    decoder: StreamingAutoencoder, latents: Tensor, *, is_fused: bool
) -> tuple[Tensor, list[DecoderState]]:
    pictures, states = [], [DecoderState()]
    for frame in latents.unbind(2):
        shown, state = decoder.decode(frame, states[-1], is_fused=is_fused)
        pictures.append(shown)
        states.append(state)
    return torch.cat(pictures, dim=1), states


def latents_of(dtype: torch.dtype, device: str = "cpu") -> Tensor:
    return torch.randn(2, 16, 4, 4, 6, generator=torch.Generator().manual_seed(1)).to(device, dtype)


def assert_equal(decoder: StreamingAutoencoder, latents: Tensor, most: float) -> None:
    """Compare what is streamed, eager and fused, with the library's own decoding."""
    whole = decode_whole(decoder, latents).clamp(-1, 1).float()
    assert whole.std() > 0.05
    for is_fused in (False, True):
        pictures, _ = streamed(decoder, latents, is_fused=is_fused)
        error = (pictures.float() - whole).norm() / whole.norm()
        assert error < most, is_fused


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", FORMATS)
def test_whole_layers_are_traced_and_show_the_librarys_pictures(
    dtype: torch.dtype, layout: str, traced: None
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert_equal(tiny(dtype, layout), latents_of(dtype), FORMATS[dtype])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_layers_round_as_the_library_does() -> None:
    assert_equal(tiny(torch.bfloat16, "channels_last"), latents_of(torch.bfloat16), 1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-3), (torch.bfloat16, 1e-2)])
def test_on_a_card_compiled_layers_show_the_librarys_pictures(dtype: torch.dtype, most: float) -> None:
    """Of padding by itself a convolution may choose another kernel, which adds up in another order."""
    decoder = StreamingAutoencoder(tiny_autoencoder()).to(dtype=dtype, device="cuda")
    assert_equal(decoder.lay_out("channels_last"), latents_of(dtype, "cuda"), most)


def test_features_lie_as_the_weights_do_also_behind_a_file(traced: None) -> None:
    decoder = tiny(torch.float32, "channels_last")
    latents = latents_of(torch.float32)
    expected, states = streamed(decoder, latents, is_fused=True)
    for each in states[-1].features:
        assert each.is_contiguous(memory_format=torch.channels_last_3d)
    of_a_file = DecoderState(tuple(each.contiguous() for each in states[2].features))
    shown, behind = decoder.decode(latents[:, :, 2], of_a_file, is_fused=True)
    assert torch.equal(shown, expected[:, 5:9])
    for found, kept in zip(behind.features, states[3].features, strict=True):
        assert torch.equal(found, kept) and found.stride() == kept.stride()


def test_where_nothing_can_be_compiled_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(layer: object, options: object) -> Callable[..., Any]:
        def call(*_: object) -> Any:
            raise RuntimeError("no compiler\nof any kind")

        return call

    monkeypatch.setattr(fused_module, "fuse", broken)
    decoder, latents = tiny(torch.float32, "contiguous"), latents_of(torch.float32)
    with pytest.warns(UserWarning, match="layers are not compiled, and slower: no compiler of any") as told:
        pictures, _ = streamed(decoder, latents, is_fused=True)
    assert len(told) == 1
    assert torch.equal(pictures, streamed(decoder, latents, is_fused=False)[0])
    assert isinstance(pickle.loads(pickle.dumps(decoder)), StreamingAutoencoder)


def test_more_shapes_than_are_compiled_run_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(layer: Callable[..., Any], options: object) -> Callable[..., Any]:
        def call(x: Tensor, before: object, weights: object) -> Any:
            if len(x) > 1:
                raise FailOnRecompileLimitHit("64 variants")
            return layer(x, before, weights)

        return call

    monkeypatch.setattr(fused_module, "fuse", full)
    decoder, latents = tiny(torch.float32, "contiguous"), latents_of(torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found, _ = streamed(decoder, latents, is_fused=True)
    assert torch.equal(found, streamed(decoder, latents, is_fused=False)[0])
    assert not fused_module._failures, "other shapes go on being compiled"


def test_a_lack_of_memory_is_no_fault_of_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(layer: Callable[..., Any], options: object) -> Callable[..., Any]:
        def call(*_: object) -> Any:
            raise torch.OutOfMemoryError("full")

        return call

    monkeypatch.setattr(fused_module, "fuse", full)
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        streamed(tiny(torch.float32, "contiguous"), latents_of(torch.float32), is_fused=True)


def test_cudnn_times_its_kernels_for_a_compiled_decoder_alone(
    traced: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, latents, seen = tiny(torch.float32, "contiguous"), latents_of(torch.float32), []
    real = autoencoder_module.decode_next

    def noted(*given: Any, is_fused: bool) -> Any:
        seen.append((is_fused, torch.backends.cudnn.benchmark))
        return real(*given, is_fused=is_fused)

    monkeypatch.setattr(autoencoder_module, "decode_next", noted)
    assert torch.backends.cudnn.benchmark is False
    for is_timed in (True, False):
        decoder.is_timed = is_timed
        for is_fused in (True, False):
            streamed(decoder, latents[:, :, :2], is_fused=is_fused)
    assert seen == [(True, True), (False, False), (True, False), (False, False)]
    with fused_module.timed_convolutions():  # of two threads the last one puts it back
        with fused_module.timed_convolutions():
            assert torch.backends.cudnn.benchmark is True
        assert torch.backends.cudnn.benchmark is True
    assert torch.backends.cudnn.benchmark is False
