"""The Wan 2.1 text-to-video transformer: the velocity of noisy latents, given their times and a text."""

# B batch, F latent frames, N tokens per frame, H heads, D head width, L text tokens, C model width,
# K blocks of a sequence, S streams (clean, noisy)

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldsim.errors import WorldError
from worldsim.model.attention.base import Rotary
from worldsim.model.rotary import split_width, turns
from worldsim.wan.config import PATCH, CausalConfig, WanConfig
from worldsim.wan.layers import Kept, Pair, Past, WanBlock, modulated, wide
from worldsim.wan.tables import frequencies_on, place_turns

RunBlock = Callable[[WanBlock, Tensor, Tensor, Tensor, Rotary, CausalConfig], Tensor]
"""Calls `WanBlock.forward_sequence`, or what stands in its place."""


def run_whole(
    block: WanBlock, x: Tensor, modulation: Tensor, text: Tensor, rotary: Rotary, causal: CausalConfig
) -> Tensor:
    """Call a layer with nothing beside."""
    return block.forward_sequence(x, modulation, text, rotary, causal)


@dataclass(frozen=True, slots=True)
class TextContext:
    """Keys and values of a text in each layer, `[B, L, H, D]`: they are the same for every frame and step."""

    pairs: tuple[Pair, ...]


class WanHead(nn.Module):
    """Last norm, scaled and shifted by the time, and the projection to a patch's velocity."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.head = nn.Linear(config.dim, PATCH**2 * config.out_dim)
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Return `[B, F, N, 4 * channels]` of tokens `[B, F, N, C]` and embedded times `[B, F or 1, C]`."""
        shift, scale = (wide(self.modulation) + wide(time).unsqueeze(-2)).unsqueeze(-2).unbind(2)
        return self.head(modulated(x, shift, scale, self.eps))


class WanTransformer(nn.Module):
    """The network; its parameters bear the names of the checkpoints that Wan's authors published."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.patch_embedding = nn.Conv3d(config.in_dim, dim, (1, PATCH, PATCH), stride=(1, PATCH, PATCH))
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, dim), nn.GELU("tanh"), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(
            WanBlock(config, is_hybrid=layer in config.hybrid_layers) for layer in range(config.num_layers)
        )
        self.head = WanHead(config)
        # Zeros at the start: a model that is given buttons keeps its video.
        self.action_embedding = nn.ModuleList(
            nn.Embedding(count, dim, _weight=torch.zeros(count, dim)) for count in config.num_values
        )

    @property
    def dtype(self) -> torch.dtype:
        """What the parameters are stored in and products are computed in."""
        return self.patch_embedding.weight.dtype

    def embed_text(self, text: Tensor) -> TextContext:
        """Return what every pass is given of a text, whose encoder's output is `[B, tokens, text_dim]`.

        Rows of zeros are added up to `text_len`; the network was trained with them in sight.

        Raises:
            WorldError: If the text has another width, or more tokens than `text_len`.
        """
        rows = self.embed_rows(text)
        return TextContext(tuple(block.text_pair(rows) for block in self._blocks()))

    def embed_rows(self, text: Tensor) -> Tensor:
        """Return a text as layers make keys and values of it, `[B, text_len, C]`; see `embed_text`."""
        config = self.config
        if text.ndim != 3 or text.shape[-1] != config.text_dim or text.shape[1] > config.text_len:
            raise WorldError(
                f"a text's embedding must be [batch, at most {config.text_len}, {config.text_dim}], "
                f"got {list(text.shape)}"
            )
        filled = F.pad(text, (0, 0, 0, config.text_len - text.shape[1]))
        return self.text_embedding(filled.to(self.dtype))

    def forward(
        self, latents: Tensor, times: Tensor, text: TextContext, visible: Tensor | None = None
    ) -> Tensor:
        """Return the velocity, noise minus clean, of a whole video `[B, channels, F, height, width]`.

        Args:
            latents: Noisy latents, `[B, channels, F, height, width]`, height and width even.
            times: 0 for clean to 1000 for noise, `[B]` or, of each frame, `[B, F]`.
            text: From `embed_text`.
            visible: `[F, F]` bool, which frames (columns) each frame (row) sees; None for all.

        Raises:
            WorldError: If shapes do not fit, or the model has hybrid layers, which pass over blocks alone.
        """
        if self.config.hybrid_layers:
            raise WorldError("a model with hybrid layers passes over a video block by block")
        if visible is not None:
            tokens = latents.shape[-2] * latents.shape[-1] // PATCH**2
            visible = visible.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)
        return self.velocity(latents, times, text, visible=visible)

    def velocity(
        self,
        latents: Tensor,
        times: Tensor,
        text: TextContext,
        *,
        first_frame: int | Tensor = 0,
        past: tuple[Past, ...] | None = None,
        visible: Tensor | None = None,
        actions: Tensor | None = None,
        is_fused: bool = False,
    ) -> Tensor:
        """Return the velocity of frames; keys and values of softmax layers are written where `past` says.

        Args:
            latents: `[B, channels, F, height, width]`.
            times: `[B]` or `[B, F]`.
            text: From `embed_text`.
            first_frame: Place of the first of them in the video, of all or of each, `[B]`.
            past: Of each layer, what it sees of frames before; None for none.
            visible: `[F * N, past tokens + F * N]` bool, which tokens each token sees, or with sizes of 1
                before it and for all tokens; None for all.
            actions: `[B, A]` int64, what is pressed while they are shown; None for a model without buttons,
                or for pressing nothing that it knows.
            is_fused: Compile layers, where possible; see `WanBlock.forward`.

        Raises:
            WorldError: If shapes do not fit.
        """
        x, embedded, given = self._entered(latents, times, first_frame, actions)
        seen = past or (None,) * len(self.blocks)
        for block, pair, before in zip(self._blocks(), text.pairs, seen, strict=True):
            x, _ = block(x, *given, pair, before, visible, keeps=False, is_fused=is_fused)
        return self._from_patches(self.head(x, embedded), latents)

    def remember(
        self,
        latents: Tensor,
        times: Tensor,
        text: TextContext,
        *,
        first_frame: int | Tensor = 0,
        past: tuple[Past, ...] | None = None,
        visible: Tensor | None = None,
        actions: Tensor | None = None,
        is_fused: bool = False,
    ) -> tuple[Kept, ...]:
        """Return what each layer keeps of frames; arguments and errors as of `velocity`.

        Of the last layer nothing else is computed.
        """
        x, _, given = self._entered(latents, times, first_frame, actions)
        *before, latest = past or (None,) * len(self.blocks)
        *blocks, last = self._blocks()
        kept: list[Kept] = []
        for block, pair, seen in zip(blocks, text.pairs, before, strict=False):  # the last one's is left
            x, own = block(x, *given, pair, seen, visible, is_fused=is_fused)
            kept.append(own)
        return *kept, last.remember(x, *given, latest)

    def _entered(
        self, latents: Tensor, times: Tensor, first_frame: int | Tensor, actions: Tensor | None
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Rotary]]:
        """Return tokens, embedded times, and modulation and turns, which are given to each layer."""
        self._check(latents, times)
        embedded, modulation = self._embed_times(times, actions)
        rotary = Rotary(*self._turns(latents, first_frame))
        return self._embed_patches(latents), embedded, (modulation, rotary)

    def forward_sequence(
        self,
        clean: Tensor,
        noisy: Tensor,
        times: Tensor,
        text: Tensor,
        causal: CausalConfig,
        actions: Tensor | None = None,
        run_block: RunBlock = run_whole,
    ) -> Tensor:
        """Return the velocity of noisy latents, each block of which sees the clean ones before it.

        What training passes over: all blocks of a video at once, equal to one after the other in play, where
        a clean block is committed at time 0.

        Args:
            clean: `[B, channels, F, height, width]`, F a multiple of the block.
            noisy: The same shape.
            times: `[B, K]`, of each noisy block, 0 to 1000.
            text: `[B, tokens, text_dim]`, as `embed_text` takes it.
            causal: The blocks, and what they see.
            actions: `[B, K, A]` int64, what is pressed during each block; None in a model without buttons.
            run_block: Calls a layer; for who wants to look into it, or to keep less for the gradient.

        Raises:
            WorldError: If shapes do not fit.
        """
        blocks, rest = divmod(clean.shape[2], causal.block)
        if clean.shape != noisy.shape or rest or times.shape != (len(clean), blocks):
            raise WorldError(
                f"blocks of {causal.block} latent frames need clean and noisy ones of one shape and a time "
                f"of each block, got {list(clean.shape)}, {list(noisy.shape)} and {list(times.shape)}"
            )
        self._check(noisy, times[:, 0])
        both = torch.stack([torch.zeros_like(times), times], dim=2).flatten(1)  # [B, K * S]
        pressed = None if actions is None else actions.repeat_interleave(2, dim=1)
        embedded, modulation = self._embed_times(both, pressed)
        streams = [
            self._embed_patches(each).unflatten(1, (blocks, -1)).flatten(2, 3) for each in (clean, noisy)
        ]
        x = torch.stack(streams, dim=2)  # [B, K, S, N, C]
        rows, rotary = self.embed_rows(text), self.sequence_rotary(clean, causal)
        modulation = modulation.unflatten(1, (blocks, 2))
        for block in self._blocks():
            x = run_block(block, x, modulation, rows, rotary, causal)
        out = self.head(x[:, :, 1], embedded.unflatten(1, (blocks, 2))[:, :, 1])
        return self._from_patches(out.unflatten(2, (causal.block, -1)).flatten(1, 2), noisy)

    def sequence_rotary(self, latents: Tensor, causal: CausalConfig) -> Rotary:
        """Return the turns of whole videos' tokens; see `WanBlock.forward_sequence`."""
        by_block = (latents.shape[2] // causal.block, -1)
        time, memory = (
            each.unflatten(1, by_block).expand(len(latents), -1, -1, -1, -1)
            for each in self._turns(latents, 0)
        )
        return Rotary(place=time[0, 0], memory=memory, time=time)

    def _blocks(self) -> list[WanBlock]:
        return [block for block in self.blocks if isinstance(block, WanBlock)]

    def _check(self, latents: Tensor, times: Tensor) -> None:
        channels = self.config.in_dim
        fits = latents.ndim == 5 and latents.shape[1] == channels
        if not fits or any(size % PATCH for size in latents.shape[3:]):
            raise WorldError(
                f"latents must be [batch, {channels}, frames, even height, even width], "
                f"got {list(latents.shape)}"
            )
        batch, _, frames = latents.shape[:3]
        if tuple(times.shape) not in {(batch,), (batch, frames)}:
            raise WorldError(f"times must be [{batch}] or [{batch}, {frames}], got {list(times.shape)}")

    def _embed_times(self, times: Tensor, actions: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the embedding of each time, `[B, F or 1, C]`, and the layers' modulation, `[.., 6, C]`.

        Actions are `[B, A]`, or of each time `[B, F, A]`.
        """
        if times.ndim == 1:
            times = times[:, None]
        # In fp64, as checkpoints were trained: a time of 1000 leaves fp32 four digits of its angle.
        angles = times.double().unsqueeze(-1) * frequencies_on(self.config.freq_dim, times.device)
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.dtype)
        embedded = self.time_embedding(waves)
        if actions is not None:
            actions = actions if actions.ndim == 3 else actions.unsqueeze(1)
            for embedding, pressed in zip(self.action_embedding, actions.unbind(-1), strict=True):
                embedded = embedded + embedding(pressed)
        return embedded, wide(self.time_projection(embedded)).unflatten(-1, (6, -1))

    def _turns(self, latents: Tensor, first_frame: int | Tensor) -> tuple[Tensor, Tensor]:
        """Return the turns of tokens by frame, row and column, and those of the states' keys.

        Both are `[B or 1, F * N, D / 2, 2]`, at least fp32. Of the frame's number the angle is computed here,
        in fp64 on the device; the rest is a table.
        """
        frames, rows, columns = latents.shape[2], latents.shape[3] // PATCH, latents.shape[4] // PATCH
        device, dtype = latents.device, torch.promote_types(self.dtype, torch.float32)
        width = self.config.head_width
        pairs = split_width(width)[0] // 2
        place = place_turns(rows, columns, width, device, dtype)
        number = torch.arange(frames, dtype=torch.float64, device=device)  # [F]
        if isinstance(first_frame, Tensor):
            number = first_frame.to(device, torch.float64).reshape(-1, 1) + number
        else:
            number = (number + first_frame)[None]
        by_time = turns(number[..., None] * frequencies_on(2 * pairs, device)).to(dtype)
        sizes = (*number.shape, len(place), -1, -1)
        parts = by_time[:, :, None].expand(sizes), place[:, pairs:].expand(sizes)
        turn = torch.cat(parts, dim=-2).flatten(1, 2)
        still = place.expand(sizes).flatten(1, 2)
        return turn, turn if self.config.memory_phase == "time" else still

    def _embed_patches(self, latents: Tensor) -> Tensor:
        """Return tokens `[B, F, N, C]`: a product, since patches do not overlap."""
        weight = self.patch_embedding.weight
        patches = latents.to(weight.dtype).unfold(3, PATCH, PATCH).unfold(4, PATCH, PATCH)
        patches = patches.permute(0, 2, 3, 4, 1, 5, 6).flatten(4).flatten(2, 3)  # [B, F, N, channels * 4]
        return F.linear(patches, weight.flatten(1), self.patch_embedding.bias)

    def _from_patches(self, x: Tensor, latents: Tensor) -> Tensor:
        """Return `[B, F, N, 2 * 2 * channels]` as `[B, channels, F, height, width]`."""
        rows, columns = latents.shape[3] // PATCH, latents.shape[4] // PATCH
        x = x.unflatten(-1, (PATCH, PATCH, -1)).unflatten(2, (rows, columns))
        return x.permute(0, 6, 1, 2, 4, 3, 5).flatten(5).flatten(3, 4)
