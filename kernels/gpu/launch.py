"""Launch of the Triton kernels of `scan_frames` and its gradient."""

# B batch, F frames, P = B * F, N tokens of one frame, H heads, K key width, V value width, C tokens of a step

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from triton import knobs

from kernels.gpu.frame_maps import frame_map_forward, invert_blocks
from kernels.gpu.gradients import frame_map_solve, key_gradient, value_gradient
from kernels.gpu.scan import scan_backward, scan_forward

INTERPRETED = bool(knobs.runtime.interpret)
"""Whether the kernels run in Triton's interpreter, on the CPU, because TRITON_INTERPRET was 1 at import."""


@dataclass(frozen=True, slots=True)
class LaunchConfig:
    """Launch settings of one kernel, by the names of Triton.

    Attributes:
        block_size: Rows or columns of one program; a narrower matrix is one block.
        num_warps: Warps of a program.
        num_stages: Iterations of its loop whose loads are in flight.
        maxnreg: Maximum registers of a thread; None leaves it to the compiler.
    """

    block_size: int
    num_warps: int
    num_stages: int = 1
    maxnreg: int | None = None

    def options(self) -> dict[str, int]:
        """Return the launch options."""
        limit = {} if self.maxnreg is None else {"maxnreg": self.maxnreg}
        return {"num_warps": self.num_warps, "num_stages": self.num_stages} | limit


@dataclass(frozen=True, slots=True)
class ScanConfig:
    """Launch settings of the kernels of `scan_frames`; all give the same numbers up to rounding.

    Attributes:
        block: C, tokens that one step takes.
        gradient_block: The same for `value_gradient` and `key_gradient`.
        precision: How `tl.dot` multiplies fp32: "tf32x3" (about fp32), "tf32" or "ieee".
        invert: `invert_blocks`; its block size is `block`.
        build: `frame_map_forward`, by rows.
        scan: `scan_forward` and `scan_backward`, by columns.
        solve: `frame_map_solve`, by rows.
        values: `value_gradient`, one block.
        keys: `key_gradient`, by columns.
    """

    block: int = 16
    gradient_block: int = 16
    precision: str = "tf32x3"
    invert: LaunchConfig = LaunchConfig(0, 1)
    build: LaunchConfig = LaunchConfig(32, 2, 2)
    scan: LaunchConfig = LaunchConfig(64, 4, 2)
    solve: LaunchConfig = LaunchConfig(64, 4)
    values: LaunchConfig = LaunchConfig(0, 4, 2)
    keys: LaunchConfig = LaunchConfig(32, 4, 2)


DEFAULT = ScanConfig()

WIDE = ScanConfig(
    build=LaunchConfig(32, 8),
    scan=LaunchConfig(16, 8, 2),
    solve=LaunchConfig(32, 8),
    values=LaunchConfig(0, 8, 2),
    keys=LaunchConfig(32, 8, 2),
)
"""For heads of 128, compiled but not yet measured: what `DEFAULT` has would spill, or leave more on chip."""


def default_for(k: Tensor, v: Tensor, precision: str = DEFAULT.precision) -> ScanConfig:
    """Return the default settings for these widths."""
    return replace(WIDE if max(k.shape[-1], v.shape[-1]) > 64 else DEFAULT, precision=precision)


class Frames:
    """The inputs of all frames, with the sizes and strides that the kernels take."""

    def __init__(self, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, config: ScanConfig) -> None:
        """Take `k v` `[B, F, N, H, width]` and `g beta` `[B, F, N, H]`; copies only what it has to."""
        self.k, self.v = _frames_in_a_row(k), _frames_in_a_row(v)
        self.g, self.beta = g.contiguous(), beta.contiguous()
        self.batch, self.num_frames, self.tokens, self.heads, self.key_width = k.shape
        self.value_width = v.shape[-1]
        self.config = config
        self.blocks = -(-self.tokens // config.block)
        self.programs = self.batch * self.num_frames * self.heads
        self.terms = (self.k, self.v, self.g, self.beta)
        self.k_strides, self.v_strides = self.k.stride()[1:4], self.v.stride()[1:4]
        self.strides = (*self.k_strides, *self.v_strides)

    def sizes(self, block: int) -> dict[str, int | str]:
        """Return the constants that the kernels of a frame share, with `block` tokens a step."""
        return {
            "num_tokens": self.tokens,
            "num_heads": self.heads,
            "key_width": self.key_width,
            "value_width": self.value_width,
            "block": block,
            "precision": self.config.precision,
        }

    def scan_sizes(self) -> dict[str, int | str]:
        """Return the constants of the scans."""
        launch_config = self.config.scan
        return {
            "num_frames": self.num_frames,
            "num_heads": self.heads,
            "key_width": self.key_width,
            "value_width": self.value_width,
            "columns": min(launch_config.block_size, self.value_width),
            "precision": self.config.precision,
            "stages": launch_config.num_stages,
        } | launch_config.options()

    def scan_grid(self) -> tuple[int, int]:
        """Return one program per sequence, head and some columns."""
        return self.batch * self.heads, -(-self.value_width // self.config.scan.block_size)


def launch(kernel: Any, grid: tuple[int, ...], *operands: Any, **constants: Any) -> None:
    """Run a Triton kernel; typed here, because Triton's own types describe the inside of a kernel only."""
    kernel[grid](*operands, **constants)


def _frames_in_a_row(x: Tensor) -> Tensor:
    """Return `x`, copied unless its features are adjacent and the sequences follow each other."""
    adjacent = x.stride(-1) == 1 and x.stride(0) == x.shape[1] * x.stride(1)
    return x if adjacent else x.contiguous()


def invert(frames: Frames) -> tuple[Tensor, Tensor]:
    """Return the inverses of `I + L`'s blocks `[P * H, blocks, C, C]`, and `e^{c_N - c_t}` `[P, N, H]`."""
    config = frames.config
    inverse = frames.g.new_empty(frames.programs, frames.blocks, config.block, config.block)
    decay = torch.empty_like(frames.g)
    launch(
        invert_blocks,
        (frames.programs, frames.blocks),
        *(frames.k, frames.g, frames.beta, inverse, decay),
        *frames.k_strides,
        num_tokens=frames.tokens,
        num_heads=frames.heads,
        key_width=frames.key_width,
        padded=1 << (frames.tokens - 1).bit_length(),
        block=config.block,
        levels=config.block.bit_length() - 1,
        precision=config.precision,
        **config.invert.options(),
    )
    return inverse, decay


def build_maps(frames: Frames, inverse: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
    """Return `M` `[B, F, H, K, K]` and `N` `[B, F, H, K, V]`."""
    lead = (frames.batch, frames.num_frames, frames.heads, frames.key_width)
    transition = frames.g.new_empty(*lead, frames.key_width)
    write = frames.g.new_empty(*lead, frames.value_width)
    rows = min(frames.config.build.block_size, frames.key_width)
    launch(
        frame_map_forward,
        (frames.programs, frames.key_width // rows),
        *(*frames.terms, inverse, decay, transition, write),
        *frames.strides,
        rows=rows,
        **frames.sizes(frames.config.block),
        **frames.config.build.options(),
    )
    return transition, write


def scan(frames: Frames, transition: Tensor, write: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Return the states before each frame `[B, F, H, K, V]` and the final one `[B, H, K, V]`."""
    before, final = torch.empty_like(write), write.new_empty(state.shape)
    operands = (transition, write, state.contiguous(), before, final)
    launch(scan_forward, frames.scan_grid(), *operands, **frames.scan_sizes())
    return before, final


def scan_gradient(
    frames: Frames, transition: Tensor, d_before: Tensor, d_final: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the frames' `N` `[B, F, H, K, V]` and of the first state `[B, H, K, V]`."""
    d_write, d_state = d_before.new_empty(d_before.shape), d_final.new_empty(d_final.shape)
    incoming = (d_before.contiguous(), d_final.contiguous())
    launch(scan_backward, frames.scan_grid(), transition, *incoming, d_write, d_state, **frames.scan_sizes())
    return d_write, d_state


def solve(
    frames: Frames, inverse: Tensor, decay: Tensor, before: Tensor, d_write: Tensor
) -> tuple[Tensor, Tensor]:
    """Return Z and U of `kernels.gpu.gradients`, `[P * H, N, K]` each."""
    z = frames.g.new_empty(frames.programs, frames.tokens, frames.key_width)
    u = torch.empty_like(z)
    rows = min(frames.config.solve.block_size, frames.key_width)
    launch(
        frame_map_solve,
        (frames.programs, frames.key_width // rows),
        *(*frames.terms, inverse, decay, before, d_write, z, u),
        *frames.strides,
        rows=rows,
        **frames.sizes(frames.config.block),
        **frames.config.solve.options(),
    )
    return z, u


def value_gradients(
    frames: Frames, decay: Tensor, transition: Tensor, before: Tensor, d_write: Tensor, z: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of v and g, and the part of beta's that comes through N."""
    dv = frames.v.new_empty(frames.v.shape)
    dg, dbeta = torch.empty_like(frames.g), torch.empty_like(frames.beta)
    launch(
        value_gradient,
        (frames.programs,),
        *(*frames.terms[1:], decay, transition, before, d_write, z, dv, dg, dbeta),
        *frames.v_strides,
        **frames.sizes(frames.config.gradient_block),
        **frames.config.values.options(),
    )
    return dv, dg, dbeta


def key_gradients(
    frames: Frames, decay: Tensor, before: Tensor, d_write: Tensor, z: Tensor, u: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradient of k, and the part of beta's that comes through M."""
    dk = frames.k.new_empty(frames.k.shape)
    columns = min(frames.config.keys.block_size, frames.key_width)
    parts = frames.beta.new_empty(frames.key_width // columns, *frames.beta.shape)
    launch(
        key_gradient,
        (frames.programs, len(parts)),
        *(frames.k, frames.g, frames.beta, decay, before, d_write, z, u, dk, parts),
        *(*frames.k_strides, frames.batch * frames.num_frames),
        columns=columns,
        **frames.sizes(frames.config.gradient_block),
        **frames.config.keys.options(),
    )
    return dk, parts.sum(0)


def forward(
    k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, config: ScanConfig | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the states before each frame, the final state, and the frames' `M`, which `backward` needs."""
    frames = Frames(k, v, g, beta, config or default_for(k, v))
    transition, write = build_maps(frames, *invert(frames))
    before, final = scan(frames, transition, write, state)
    return before, final, transition


def backward(
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    before: Tensor,
    transition: Tensor,
    d_before: Tensor,
    d_final: Tensor,
    config: ScanConfig | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of k, v, g, beta and the first state."""
    frames = Frames(k, v, g, beta, config or default_for(k, v))
    d_write, d_state = scan_gradient(frames, transition, d_before, d_final)
    inverse, decay = invert(frames)
    z, u = solve(frames, inverse, decay, before, d_write)
    dk, dbeta_keys = key_gradients(frames, decay, before, d_write, z, u)
    dv, dg, dbeta = value_gradients(frames, decay, transition, before, d_write, z)
    return dk, dv, dg, dbeta + dbeta_keys, d_state
