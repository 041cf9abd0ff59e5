"""Launch of `kernels.gpu.chunks`: a commit of many tokens."""

# B batch, N tokens, H heads, K key width, V value width, C tokens of a chunk

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.gpu.chunks import apply_chunks, build_segments, chain_segments, prepare_chunks
from kernels.gpu.launch import LaunchConfig, launch


@dataclass(frozen=True, slots=True)
class ChunkConfig:
    """Launch settings of a commit of many tokens.

    Attributes:
        chunk_size: C, tokens of a chunk.
        segment: ChunkConfig of a segment; 0 leaves the frame whole, for `apply_chunks`.
        copies: Whether keys and values are copied in the dtype of the products, once for all readers.
        prepare: `prepare_chunks`; its block size is `chunk_size`.
        apply: `apply_chunks`, by columns.
        build: `build_segments`, by rows.
        chain: `chain_segments`, by columns.
    """

    chunk_size: int = 64
    segment: int = 0
    copies: bool = True
    prepare: LaunchConfig = LaunchConfig(64, 4)
    apply: LaunchConfig = LaunchConfig(16, 4, 3)
    build: LaunchConfig = LaunchConfig(64, 4, 2)
    chain: LaunchConfig = LaunchConfig(16, 4, 3)


@dataclass(frozen=True, slots=True)
class Prepared:
    """What `prepare_chunks` leaves of a frame.

    Attributes:
        xt: `[B, H, chunks, K, C]`.
        k: `[B, N, H, K]`, as it came or copied, then with whole chunks of tokens.
        v: `[B, N, H, V]`, likewise.
        later: `[B, H, chunks, C]`, log2 of the decay to the end of the chunk.
        total: `[B, H, chunks]`, log2 of the chunk's decay.
        exponent: `[B, H, chunks]`, of its largest value, int32.
        sizes: What all kernels take.
        headroom: How many factors of 2 a state may need beyond the values.
    """

    xt: Tensor
    k: Tensor
    v: Tensor
    later: Tensor
    total: Tensor
    exponent: Tensor
    sizes: dict[str, Any]
    headroom: int

    @property
    def read(self) -> tuple[Tensor, ...]:
        """Return the tensors in the order in which kernels read them."""
        return self.xt, self.k, self.v, self.later, self.total, self.exponent

    @property
    def strides(self) -> tuple[int, ...]:
        """Return those of k and of v."""
        return *self.k.stride()[:3], *self.v.stride()[:3]


MAX_HEADS = 65_535
"""What CUDA allows in the second and third direction of a launch."""


def sizes(k: Tensor, v: Tensor) -> dict[str, Any]:
    """Return the sizes of a frame that its kernels share."""
    return {
        "num_tokens": k.shape[1],
        "num_heads": k.shape[2],
        "key_width": k.shape[3],
        "value_width": v.shape[3],
    }


def _padded(count: int) -> int:
    return 1 << (count - 1).bit_length()


def prepare(terms: tuple[Tensor, ...], config: ChunkConfig, precision: str, merges: str) -> Prepared:
    """Return what the chunks of k, v, g and beta leave."""
    k, v, g, beta = terms
    batch, tokens, heads, _ = k.shape
    count = -(-tokens // config.chunk_size)
    dtype = torch.float16 if precision == "fp16" else torch.float32
    xt = k.new_empty(batch, heads, count, k.shape[-1], config.chunk_size, dtype=dtype)
    later = g.new_empty(batch, heads, count, config.chunk_size)
    total, exponent = g.new_empty(batch, heads, count), g.new_empty(batch, heads, count, dtype=torch.int32)
    copied = (
        config.copies,
        config.copies and config.segment > 0,
    )  # `apply_chunks` does not multiply by values
    copies = [
        x.new_empty(
            batch, heads, count * config.chunk_size if wanted else 0, x.shape[-1], dtype=dtype
        ).transpose(1, 2)
        for x, wanted in zip((k, v), copied, strict=True)
    ]
    launch(
        prepare_chunks,
        (count, batch * heads),
        *(k, v, g, beta, xt, *copies, later, total, exponent),
        *(*k.stride()[:3], *v.stride()[:3]),
        **sizes(k, v),
        block=config.chunk_size,
        levels=config.chunk_size.bit_length() - 1,
        copy_keys=copied[0],
        copy_values=copied[1],
        precision=precision,
        merge_precision=merges,
        **config.prepare.options(),
    )
    read_k, read_v = copies[0] if copied[0] else k, copies[1] if copied[1] else v
    # Scaled by the largest value, a state has entries of at most 23 + 4 N; fp16 ends at 2^16.
    headroom = max(0, (tokens + 8).bit_length() - 13)
    shared = sizes(k, v) | {"block": config.chunk_size, "precision": precision}
    return Prepared(xt, read_k, read_v, later, total, exponent, shared, headroom)


def apply(frame: Prepared, state: Tensor, out: Tensor, config: LaunchConfig) -> None:
    """Fill `out` with the state after all chunks."""
    columns = min(config.block_size, state.shape[-1])
    launch(
        apply_chunks,
        (state.shape[-1] // columns, frame.xt.shape[0] * frame.xt.shape[1]),
        *(*frame.read, state, out),
        *frame.strides,
        **frame.sizes,
        columns=columns,
        padded=_padded(frame.xt.shape[2]),
        headroom=frame.headroom,
        stages=config.num_stages,
        **config.options(),
    )


def build(frame: Prepared, config: ChunkConfig) -> tuple[Tensor, Tensor]:
    """Return the segments' M `[B, H, segments, K, K]` and N `[B, H, segments, K, V]`."""
    batch, heads, count, key_width, _ = frame.xt.shape
    lead = (batch, heads, -(-count // config.segment), key_width)
    transition = frame.xt.new_empty(*lead, key_width)
    write = frame.later.new_empty(*lead, frame.v.shape[-1])
    rows = min(config.build.block_size, key_width)
    launch(
        build_segments,
        (key_width // rows, lead[2], batch * heads),
        *(*frame.read, transition, write),
        *frame.strides,
        **(frame.sizes | {"num_tokens": frame.k.shape[1]}),
        rows=rows,
        chunks=count,
        segment_chunks=config.segment,
        padded=_padded(config.segment),
        copies=config.copies,
        stages=config.build.num_stages,
        **config.build.options(),
    )
    return transition, write


def chain(
    frame: Prepared, maps: tuple[Tensor, Tensor], state: Tensor, out: Tensor, config: LaunchConfig
) -> None:
    """Fill `out` with the state after all segments."""
    batch, heads, segments, key_width, value_width = maps[1].shape
    columns = min(config.block_size, value_width)
    launch(
        chain_segments,
        (value_width // columns, batch * heads),
        *(*maps, frame.exponent, state, out),
        key_width=key_width,
        value_width=value_width,
        columns=columns,
        chunks=frame.xt.shape[2],
        segments=segments,
        padded=_padded(frame.xt.shape[2]),
        headroom=frame.headroom,
        precision=frame.sizes["precision"],
        stages=config.num_stages,
        **config.options(),
    )


def commit_chunks(
    terms: tuple[Tensor, ...], state: Tensor, out: Tensor, config: ChunkConfig, precision: str, merges: str
) -> None:
    """Fill `out` with the state after `k v g beta`, laid out as for `kernels.commit`.

    Raises:
        ValueError: If there are more heads of all sequences than one launch can take.
    """
    if (count := state.shape[0] * state.shape[1]) > MAX_HEADS:
        raise ValueError(
            f"k has {count} heads of all sequences, but frames of so many tokens are committed for at most "
            f"{MAX_HEADS} at once: commit the batch in parts"
        )
    frame = prepare(terms, config, precision, merges)
    if config.segment == 0:
        apply(frame, state, out, config.apply)
    else:
        chain(frame, build(frame, config), state, out, config.chain)
