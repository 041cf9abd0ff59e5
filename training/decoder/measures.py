"""Measures of a decoder on held-out play: PSNR, gradient energy, flicker at rest, time of a frame."""

# N frames, K triples of frames in a row, H W frame size

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.decoder.footage import Footage, OwnLatents
from training.decoder.learner import energy_ratio
from worldsim.codec import FrameCodec
from worldsim.data.sequences import SequenceIndex
from worldsim.evaluation.metrics import psnr
from worldsim.runtime.device import choose_device
from worldsim.storage.images import write_png

TRIPLE = 3
NUM_TRIPLES = 256
STILL_SHARE = 0.05
"""Of triples in which least changes from the first frame to the last: there the player stands still."""
LEAST_FLICKER = 1e-3
"""Of recorded frames, in levels of 255: video without any would have infinite flicker beside it."""
DECODE_BATCH = 64
NUM_TIMED = 40
SHOWN = 4


def measure_decoder(codec: FrameCodec, footage: Footage, own: OwnLatents | None) -> dict[str, float]:
    """Measure what a codec's decoder makes of latents of its encoder, and of a world's own if given.

    Args:
        codec: On the footage's device.
        footage: Held-out.
        own: Drawn along it.

    Returns:
        Of each, `encoded_` and `own_`: `psnr_db`; `energy`, gradient energy over that of the recorded frames;
        `flicker`, the mean absolute second difference in time where the player stands still, over theirs.
    """
    index = SequenceIndex(footage.video.lengths, TRIPLE)
    begins = index.start(np.linspace(0, len(index) - 1, min(len(index), NUM_TRIPLES)).astype(np.int64))
    number = torch.from_numpy(begins).to(footage.frames.device)
    found = _measure(codec, footage.video.latents[number + 1], footage.frames[number + 1], "encoded")
    all_begins = torch.from_numpy(index.start(np.arange(len(index)))).to(footage.frames.device)
    triples = all_begins[:, None] + torch.arange(TRIPLE, device=all_begins.device)
    still = triples[stillest(footage.frames, triples)]
    found["encoded_flicker"] = _flicker_ratio(codec, footage.video.latents[still], footage.frames[still])
    if own is None:
        return found
    found |= _measure(
        codec, own.latents[:, 1:].flatten(0, 1), footage.frames[own.index[:, 1:].flatten()], "own"
    )
    triples = own.index.unfold(1, TRIPLE, 1).flatten(0, 1)
    latents = own.latents.unfold(1, TRIPLE, 1).movedim(-1, 2).flatten(0, 1)
    chosen = stillest(footage.frames, triples)
    return found | {"own_flicker": _flicker_ratio(codec, latents[chosen], footage.frames[triples[chosen]])}


def stillest(frames: Tensor, triples: Tensor) -> Tensor:
    """Return which triples `[K, 3]` of frames `[T, H, W, 3]` change least, at most `NUM_TRIPLES` of them."""
    changes = [
        (frames[part[:, 2]].float() - frames[part[:, 0]].float()).abs().mean(dim=(1, 2, 3))
        for part in triples.split(DECODE_BATCH)
    ]
    count = min(NUM_TRIPLES, max(1, round(STILL_SHARE * len(triples))))
    return torch.cat(changes).argsort(stable=True)[:count]


def second_difference(frames: Tensor) -> float:
    """Return the mean absolute second difference in time of triples `[K, 3, H, W, 3]` uint8, in levels."""
    parts = (part.float() for part in frames.split(DECODE_BATCH))
    return float(
        torch.cat([(a - 2 * b + c).abs().flatten() for a, b, c in (p.unbind(1) for p in parts)]).mean()
    )


def _measure(codec: FrameCodec, latents: Tensor, frames: Tensor, name: str) -> dict[str, float]:
    made = _decode(codec, latents)
    parts = zip(made.split(DECODE_BATCH), frames.split(DECODE_BATCH), strict=True)
    ratio = torch.cat([psnr(*part) for part in parts]).mean()
    return {f"{name}_psnr_db": float(ratio), f"{name}_energy": float(energy_ratio(made, frames))}


def _flicker_ratio(codec: FrameCodec, latents: Tensor, frames: Tensor) -> float:
    made = _decode(codec, latents.flatten(0, 1)).view_as(frames)
    return second_difference(made) / max(second_difference(frames), LEAST_FLICKER)


def _decode(codec: FrameCodec, latents: Tensor) -> Tensor:
    return torch.cat([codec.decode(part.float()) for part in latents.split(DECODE_BATCH)])


@torch.no_grad()
def decode_times(codecs: Mapping[str, FrameCodec], num_threads: int = 2) -> dict[str, float]:
    """Return the median time in ms in which each codec decodes a frame on a CPU, in turn in one run."""
    dtype = choose_device("cpu").dtype
    copies = {name: _copy_for_timing(codec, dtype) for name, codec in codecs.items()}
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    taken: dict[str, list[float]] = {name: [] for name in copies}
    try:
        for _ in range(NUM_TIMED):
            for name, codec in copies.items():
                latents = torch.randn(1, *codec.latent_shape)
                begun = time.perf_counter()
                codec.decode(latents)
                taken[name].append(1000 * (time.perf_counter() - begun))
    finally:
        torch.set_num_threads(before)
    return {name: float(np.median(times)) for name, times in taken.items()}


def _copy_for_timing(codec: FrameCodec, dtype: torch.dtype) -> FrameCodec:
    copy = FrameCodec(codec.config)
    copy.load_state_dict(codec.state_dict())
    return copy.to(dtype=dtype).eval()


def write_pictures(
    path: Path, codecs: Mapping[str, FrameCodec], footage: Footage, own: OwnLatents | None
) -> None:
    """Write a picture: a row of held-out frames, and a row of what each codec makes of them.

    Below them the same of a world's own latents, if given: the last frame of some roll-outs.
    """
    places = torch.linspace(0, len(footage.frames) - 1, SHOWN + 2).long()[1:-1].to(footage.frames.device)
    sets = [(footage.video.latents[places], footage.frames[places])]
    if own is not None:
        rows = torch.linspace(0, len(own.index) - 1, SHOWN).long().to(own.index.device)
        sets.append((own.latents[rows, -1], footage.frames[own.index[rows, -1]]))
    lines = [
        line for latents, frames in sets for line in (frames, *(_decode(c, latents) for c in codecs.values()))
    ]
    picture = torch.cat([torch.cat(list(line), dim=1) for line in lines])  # rows below each other
    write_png(picture.cpu().numpy(), path)
