"""A full layer is a window layer that forgets nothing; its forms of training and of play agree."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from worldsim.model.attention.base import Attention, Rotary
from worldsim.model.attention.full import FullAttention, past_mask, sees, sequence_mask, time_angles
from worldsim.model.attention.window import WindowAttention, WindowBefore
from worldsim.model.memory.motion import wrap
from worldsim.model.memory.past_frames import PastFrames
from worldsim.model.memory.state import window_is_visible
from worldsim.model.rotary import place_angles, turns

HEADS, WIDTH, ROWS, COLUMNS = 2, 16, 2, 3
TOKENS = ROWS * COLUMNS
EXACT = {"rtol": 0.0, "atol": 1e-12}


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make(layer: Attention) -> Attention:
    """Return the layer in fp64 with weights drawn from the same seed whatever its kind."""
    for index, parameter in enumerate(layer.parameters()):
        parameter.data = random(*parameter.shape, seed=index) / 5
    return layer.double().requires_grad_(False)


def full_layer() -> FullAttention:
    layer = make(FullAttention(HEADS * WIDTH, HEADS))
    assert isinstance(layer, FullAttention)
    return layer


def rotary(frames: range) -> Rotary:
    place = place_angles(ROWS, COLUMNS, WIDTH)
    time = place + time_angles(frames, WIDTH).unsqueeze(-2)
    return Rotary(turns(place), turns(place), turns(time))


def play(layer: FullAttention, x: Tensor, first: int = 0) -> Tensor:
    """Run frames `[B, F, S, N, H * D]` one by one; the clean stream 0 is remembered, the others look."""
    past = PastFrames.of(*torch.zeros(2, 1, len(x), HEADS, 0, TOKENS, WIDTH, dtype=torch.float64))
    frames = []
    for number in range(x.shape[1]):
        angles = rotary(range(first + number, first + number + 1))
        streams = [layer(x[:, number, stream], past, 0, None, angles) for stream in range(x.shape[2])]
        frames.append(torch.stack([out for out, _ in streams], dim=1))
        kept = streams[0][1]
        past = past.append(kept.k[None], kept.v[None])
    return torch.stack(frames, dim=1)


def test_all_frames_at_once_equal_frame_by_frame() -> None:
    layer, x = full_layer(), random(2, 12, 2, TOKENS, HEADS * WIDTH)
    torch.testing.assert_close(layer.forward_sequence(x, None, rotary(range(12))), play(layer, x), **EXACT)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("streams", [1, 2, 3])
def test_in_blocks_equals_frame_by_frame(streams: int) -> None:
    layer, x = full_layer(), random(2, 5, streams, TOKENS, HEADS * WIDTH)
    mask = sequence_mask(5, streams, TOKENS, x.device)
    in_blocks = layer.forward_sequence(x, mask, rotary(range(5)))
    torch.testing.assert_close(in_blocks, layer.forward_sequence(x, None, rotary(range(5))), **EXACT)


def test_frames_see_the_clean_frames_before_them_and_themselves() -> None:
    frames, streams, tokens = 3, 2, 2
    index = torch.arange(streams * frames * tokens)
    mask = sees(frames, tokens)(index, index, index[:, None], index[None])
    for query in index.tolist():
        for key in index.tolist():
            (query_stream, query_frame), (key_stream, key_frame) = (
                divmod(token // tokens, frames) for token in (query, key)
            )
            is_clean_past = key_stream == 0 and key_frame < query_frame
            is_own = (key_stream, key_frame) == (query_stream, query_frame)
            assert mask[query, key].item() == (is_clean_past or is_own)


def test_a_shape_has_one_mask_that_skips_what_nobody_sees() -> None:
    mask = sequence_mask(16, 2, 80, torch.device("cpu"))
    assert mask is sequence_mask(16, 2, 80, torch.device("cpu"))
    assert not mask.kv_num_blocks.is_inference()
    assert mask.sparsity() > 60  # per cent; of the scores themselves 72 are not needed


def test_window_and_full_layer_exchange_their_weights_and_agree_while_nothing_leaves_the_window() -> None:
    frames, window = 5, 7
    layer, other = full_layer(), WindowAttention(HEADS * WIDTH, HEADS, window).double().requires_grad_(False)
    other.load_state_dict(layer.state_dict(), strict=True)
    x = random(2, frames, 2, TOKENS, HEADS * WIDTH)
    angles = rotary(range(frames))
    ours = layer.forward_sequence(x, None, angles)
    visible = window_is_visible(torch.arange(frames), window).expand(2, -1, -1)
    nothing = torch.zeros(2, window + 1, TOKENS, HEADS, WIDTH, dtype=torch.float64)
    before = WindowBefore(nothing, nothing, visible, torch.ones(2, dtype=torch.bool))
    theirs, _ = other.forward_sequence(x, before, angles)
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-6)  # the window's table of ages is fp32


def test_only_the_difference_between_frame_numbers_counts_even_after_years() -> None:
    layer, x = full_layer(), random(1, 6, 2, TOKENS, HEADS * WIDTH)
    torch.testing.assert_close(play(layer, x, 10**9), play(layer, x), rtol=0.0, atol=1e-6)
    late = time_angles(range(5_000_000, 5_000_001), WIDTH) - time_angles(range(4_999_990, 4_999_991), WIDTH)
    torch.testing.assert_close(wrap(late), wrap(time_angles(range(10, 11), WIDTH)), rtol=0.0, atol=1e-8)


def test_a_row_that_has_seen_less_sees_the_latest_frames() -> None:
    assert past_mask(torch.tensor([4, 9]), 4, 2) is None
    mask = past_mask(torch.tensor([0, 2, 4]), 4, 1)
    assert mask is not None
    assert mask[:, 0, 0].int().tolist() == [[0, 0, 0, 0, 1], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]


@pytest.mark.gpu
@pytest.mark.parametrize("how", ["layer_as_it_is", "layer_compiled"])
def test_in_blocks_equals_frame_by_frame_on_a_gpu_forward_and_backward(how: str) -> None:
    frames, tokens, width = 6, 80, 64
    layer = FullAttention(2 * width, 2).cuda()
    x = random(2, frames, 2, tokens, 2 * width).float().cuda()
    place = place_angles(8, 10, width)
    angles = Rotary(
        *(turns(t).float().cuda() for t in (place, place, place + time_angles(range(frames), width)[:, None]))
    )
    run = (
        layer.forward_sequence
        if how == "layer_as_it_is"
        else torch.compile(layer.forward_sequence, dynamic=False)
    )
    results = []
    for forward, mask in ((layer.forward_sequence, None), (run, sequence_mask(frames, 2, tokens, x.device))):
        entered = x.clone().requires_grad_()
        with torch.autocast("cuda", torch.bfloat16):
            out = forward(entered, mask, angles)
        out.float().square().sum().backward()
        results.append((out.float(), entered.grad))
    for ours, theirs in zip(*results, strict=True):
        assert ((ours - theirs).norm() / theirs.norm()).item() < 0.02  # a few roundings to bf16
