"""Runs one operator on a GPU, with the sizes of clips that are watched; `test_triton_alone.py` says why.

`python -m tests.kernels.watching OPERATOR TOKENS`: a process of its own, because an illegal access ends all
that follows in it. `python -m tests.kernels.watching clips FORM` watches them with a whole network.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor

import kernels
from kernels import layers
from kernels.benchmark.inputs import make_attention, make_inputs, make_modulation, make_recall, make_window
from kernels.selection import using
from training.sharpen.rollouts import watch_clips
from worldsim.world import World

CLIPS, FRAMES, HEADS, WIDTH, WINDOW = 128, 32, 5, 64, 6
TIMES = 20
COMPARED = 8
"""Clips or frames, of the first and of the last, that are compared with the reference."""
TOLERANCE = 1e-2  # fp32 operands, products in three of TF32 and, in the scan, in one
Run = Callable[..., Tensor]


def inputs_of(operator: str, tokens: int, count: int) -> tuple[Tensor, ...]:
    """Return an operator's inputs in fp32: of `count` clips, or of the frames of so many."""
    frames = count * FRAMES
    if operator == "attend":
        return make_attention((frames, tokens, HEADS, WIDTH), "cuda")
    if operator == "attend_window":
        return sum(make_window((count, FRAMES, 1, tokens, HEADS, WIDTH), WINDOW, "cuda"), ())
    if operator == "scan_frames":
        return make_inputs("random", (count, FRAMES, tokens, HEADS, WIDTH), "cuda")[0]
    if operator in ("modulate", "add_modulate", "turned_norm"):
        x, branch, gate, shift, scale = make_modulation((frames, tokens, HEADS * WIDTH), "cuda")
        turn = torch.randn(tokens, WIDTH // 2, 2, device="cuda")
        added = (x, branch, gate, shift, scale)
        return {"modulate": (x, shift, scale), "turned_norm": (x, scale[0, 0], turn)}.get(operator, added)
    q, weight, angles, *rest = make_recall((frames, 1, tokens, HEADS, WIDTH), "cuda")
    turn = torch.stack([angles.cos(), angles.sin()], dim=-1)
    return (q, weight, turn) if operator == "map_heads" else (q, weight, turn, *rest)


def run(operator: str, given: tuple[Tensor, ...], form: str) -> Tensor:
    """Return the operator's result, of several the last."""
    called = getattr(kernels if operator == "scan_frames" else layers, operator)
    out = called(*given, form=form)
    return out if isinstance(out, Tensor) else out[0] if operator == "scan_frames" else out[-1]


@torch.no_grad()
def main(operator: str, tokens: int) -> None:
    given = inputs_of(operator, tokens, CLIPS)
    rows = len(given[0])
    with using(scan_precision="tf32"):  # as training has it
        out = [run(operator, given, "triton") for _ in range(TIMES)][-1]
    torch.cuda.synchronize()
    for part in (slice(None, COMPARED), slice(rows - COMPARED, None)):
        some = tuple(each[part] if len(each) == rows else each for each in given)
        some = tuple(each.double() if each.is_floating_point() else each for each in some)
        right = run(operator, some, "reference")
        difference = (out[part].double() - right).norm() / right.norm()
        assert difference < TOLERANCE, f"{operator}, {tokens} tokens: off by {difference:.1e} in {part}"


@torch.no_grad()
def watch(form: str) -> None:
    """Watch clips with the network of car-racing, as a measurement while sharpening does."""
    torch.set_float32_matmul_precision("high")  # as training has it
    denoiser = World.from_pretrained("car-racing").denoiser.float().to("cuda")
    latents = torch.randn(CLIPS, FRAMES, *denoiser.latent_shape, device="cuda")
    actions = torch.zeros(CLIPS, FRAMES, len(denoiser.config.num_values), dtype=torch.int64, device="cuda")
    with using(layers=form, scan_precision="tf32"):
        memory = watch_clips(denoiser, latents, actions, torch.randn_like(latents))
    torch.cuda.synchronize()
    assert all(bool(each.isfinite().all()) for each in memory.tensors().values())


if __name__ == "__main__":
    if sys.argv[1] == "clips":
        watch(sys.argv[2])
    else:
        main(sys.argv[1], int(sys.argv[2]))
