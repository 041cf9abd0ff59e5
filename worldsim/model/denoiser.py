"""The network: an action-conditioned diffusion transformer whose memory of past frames is a value.

Two forms of one function. Frame by frame (`observe`, `denoise`, `commit`) is what play runs; `forward` runs
whole sequences at once for training, `forward_segment` goes on from a memory. Tests hold them equal.

A frame is written by a pass of its own over the clean frame. In a recycled model (docs/decisions/0043) it is
written by the pass that begins the next one (`first_pass`), which is given it beside the noise: frame f is
drawn from what the passes up to f - 1 wrote, of the frames up to f - 2, and from frame f - 1 itself.
"""

# B batch, F frames, S streams (0 writes, 1 reads), N tokens, D model width, A action axes, G any sizes

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from worldsim.errors import WorldError
from worldsim.model.attention.angles import frame_rotary
from worldsim.model.attention.base import Rotary
from worldsim.model.attention.full import FullAttention, past_mask
from worldsim.model.attention.window import WindowAttention, age_angles
from worldsim.model.block import (
    Block,
    Head,
    LayerStateOut,
    Residual,
    RunBlock,
    build_attention,
    initialise_attention,
)
from worldsim.model.config import PATCH, DenoiserConfig
from worldsim.model.frame_context import FrameContext, FrameWrites
from worldsim.model.frame_pass import cached_of, pack_writes, run_layers, take_in, write_matrices
from worldsim.model.linear import Linear, at_least_fp32, embed_patches, join_patches
from worldsim.model.memory.keys import given_phases, key_places
from worldsim.model.memory.level_map import LevelMap
from worldsim.model.memory.motion import (
    PathMotion,
    arrived_phase,
    build_motion,
    departures,
    expected_phases,
    sequence_phases,
)
from worldsim.model.memory.state import MemoryState, empty_memory, push_window, window_mask
from worldsim.model.outcome_heads import OutcomeHeads
from worldsim.model.rotary import place_angles, rotate, turns
from worldsim.model.segments import SequencePass, check_constant_memory, merge_memory, split_memory

TIME_FREQUENCIES = 256
TIMESTEPS = 1000
"""Wan-family models count noise levels 0..1 as timesteps 0..1000."""


class Denoiser(nn.Module):
    """Predict the velocity of the next frame's latents from the action and the memory."""

    place: Tensor
    key_place: Tensor
    age: Tensor
    time_frequencies: Tensor
    packed_writes = None

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config = config
        dim, channels = config.dim, config.latent_shape[0]
        # Wan patches video: its weight has a time axis of 1, and a checkpoint's tensor fits as it is.
        patch = (1, PATCH, PATCH)
        self.patch_embedding = nn.Conv3d(channels, dim, patch, stride=patch)
        self.previous_embedding = (
            nn.Conv3d(channels, dim, patch, stride=patch, bias=False) if config.previous_frame else None
        )
        self.time_embedding = nn.Sequential(Linear(TIME_FREQUENCIES, dim), nn.SiLU(), Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), Linear(dim, 6 * dim))
        self.action_embedding = nn.ModuleList(nn.Embedding(count, dim) for count in config.num_values)
        self.motion = build_motion(config)
        self.level_map = LevelMap(config) if config.level_map else None
        self.blocks = nn.ModuleList(
            Block(dim, config.ffn_dim, build_attention(config, i)) for i in range(config.num_layers)
        )
        self.head = Head(dim, PATCH * PATCH * channels)
        self.outcome = OutcomeHeads(dim, config.num_heads) if config.outcome_heads else None
        self.register_buffer("place", place_angles(*config.grid, config.head_width).float(), persistent=False)
        self.register_buffer("key_place", key_places(config), persistent=False)
        age = turns(age_angles(config.head_width, config.window)).float()[:, None]  # [W + 1, 1, D / 2, 2]
        self.register_buffer("age", age, persistent=False)
        half = torch.arange(TIME_FREQUENCIES // 2, dtype=torch.float64) / (TIME_FREQUENCIES // 2)
        self.register_buffer("time_frequencies", (10_000.0**-half).float(), persistent=False)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        for block in self.layers():
            initialise_attention(block.self_attn, self.config)
        for linear in (each for each in self.time_embedding if isinstance(each, Linear)):
            nn.init.normal_(linear.weight, std=0.02)
        if self.previous_embedding is not None:  # zero for the same reason as the actions below
            nn.init.zeros_(self.previous_embedding.weight)
        for embedding in self.action_embedding:
            # Zero at the start: a model that knew no actions keeps working the moment they are attached.
            nn.init.zeros_(embedding.weight)  # pyright: ignore[reportArgumentType]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one frame's latents."""
        channels, height, width = self.config.latent_shape
        return channels, height, width

    def layers(self) -> list[Block]:
        """Return the blocks, typed."""
        return [block for block in self.blocks if isinstance(block, Block)]

    def pack(self) -> None:
        """Reorder weights for inference on this machine; call again after they have changed or moved."""
        for block in self.layers():
            block.pack(self.config.tokens_per_frame)
        self.packed_writes = pack_writes(self.layers())
        for linear in (m for m in (*self.time_embedding, *self.time_projection) if isinstance(m, Linear)):
            linear.pack(1)
        self.head.head.pack(self.config.tokens_per_frame)
        for part in (each for each in (self.outcome, self.level_map) if each is not None):
            part.pack(self.config.tokens_per_frame)

    def initial_memory(self, batch_size: int) -> MemoryState:
        """Return an empty memory on the model's device: no matrices, no window, the path at its origin."""
        weight = self.patch_embedding.weight
        return empty_memory(self.config, batch_size, weight.dtype, weight.device)

    def embed_actions(self, actions: Tensor) -> Tensor:
        """Return `[G, D]` of `[G, A]` int64: the sum of the axes' embeddings."""
        tables = enumerate(self._action_tables())
        return torch.stack([functional.embedding(actions[..., i], table) for i, table in tables]).sum(0)

    def embed_nothing(self) -> Tensor:
        """Return what `embed_actions` says of pressing nothing, `[D]`."""
        return torch.stack([table[0] for table in self._action_tables()]).sum(0)

    def _action_tables(self) -> list[Tensor]:
        return [table.weight for table in self.action_embedding if isinstance(table, nn.Embedding)]

    def displacements(self, latents: Tensor, actions: Tensor) -> Tensor:
        """Return how far actions `[G, A]` at frames `[G, C, h, w]` are taken to lead, `[G, P]` in tokens.

        The first two are rows and columns. Raises `WorldError` if the memory follows no path.
        """
        if not isinstance(self.motion, PathMotion):
            raise WorldError(f"a world with memory_phase {self.config.memory_phase} follows no path")
        return self.motion.displacement(latents, self.embed_actions(actions), self.embed_nothing())

    def embed_time(self, noise_levels: Tensor) -> Tensor:
        """Return `[G, D]` of noise levels `[G]` in [0, 1]."""
        angles = noise_levels.float().unsqueeze(-1) * TIMESTEPS * self.time_frequencies
        return at_least_fp32(self.time_embedding(torch.cat([angles.cos(), angles.sin()], dim=-1)))

    def embed_given(self, latents: Tensor, phase: Tensor) -> Tensor | float:
        """Return what the frame before and a map at a phase add to tokens, `[G, N, D]`, at least fp32."""
        previous = self.previous_embedding
        added = 0.0 if previous is None else embed_patches(latents, previous)
        return added if self.level_map is None else added + self.level_map(phase)

    def rotary(self, phase: Tensor, frames: range, departure: Tensor | None = None) -> Rotary:
        """Return the angles of tokens of frames of these numbers; see `frame_rotary`."""
        return frame_rotary(self.config, self.place, self.key_place, frames, phase, departure)

    def observe(
        self,
        actions: Tensor,
        memory: MemoryState,
        window_is_full: bool | None = None,
        pose: Tensor | None = None,
    ) -> FrameContext:
        """Prepare the frame that `actions` `[B, A]` lead to; reads the memory, never changes it.

        `window_is_full` is what the method of that name says of the memory; None asks it. `pose` `[B, 3]` is
        where the frame is seen from (`given_phases`); None leaves it to the motion.
        """
        action = self.embed_actions(actions)
        turn = self.motion(memory.latents, action, self.embed_nothing())
        phase, departure = expected_phases(turn, memory, given_phases(self.config, pose))
        keys = rotate(memory.window_keys, self.age).to(memory.window_keys.dtype)
        keys, values = (t.flatten(2, 3).transpose(2, 3).contiguous() for t in (keys, memory.window_values))
        is_full = self.window_is_full(memory) if window_is_full is None else window_is_full
        tokens, previous = self.config.tokens_per_frame, self.embed_given(memory.latents, phase)
        mask = None if is_full else window_mask(memory.num_committed, self.config.window, tokens)
        count = 0 if memory.past is None else memory.past.num_frames
        seen = past_mask(memory.num_committed, count, tokens) if memory.past else None
        rotary = self.rotary(phase, range(count, count + 1), departure)
        return FrameContext(action, phase, rotary, mask, keys, values, seen, previous)

    def window_is_full(self, memory: MemoryState) -> bool:
        """Return whether the window layers see all that is cached, in all rows; waits for the device."""
        return not self.config.window_layers or bool((memory.num_committed > self.config.window).all())

    def denoise(
        self, noisy_latents: Tensor, noise_level: Tensor, context: FrameContext, memory: MemoryState
    ) -> Tensor:
        """Predict the velocity of the frame; reads the memory, never changes it.

        Args:
            noisy_latents: `[B, C, h, w]`, `(1 - t) latents + t noise`.
            noise_level: `[B]`, t in [0, 1]; 1 is pure noise.
            context: From `observe`.
            memory: State after the last committed frame.

        Returns:
            `noise - latents`, shaped as `noisy_latents`.
        """
        return self._denoise(noisy_latents, noise_level, context, memory)[0]

    def first_pass(
        self, noise: Tensor, context: FrameContext, memory: MemoryState
    ) -> tuple[Tensor, FrameContext]:
        """Begin a frame of a recycled model: do what `denoise` does, and note what to write.

        Args:
            noise: `[B, C, h, w]`, what the frame is drawn from: noise of level 1.
            context: From `observe`.
            memory: State after the last committed frame; left as it was.

        Returns:
            `noise - latents`, and the context with what `commit` writes of the frame before.
        """
        velocity, writes = self._denoise(noise, noise.new_ones(len(noise)), context, memory)
        return velocity, replace(context, writes=writes)

    def _denoise(
        self, noisy_latents: Tensor, noise_level: Tensor, context: FrameContext, memory: MemoryState
    ) -> tuple[Tensor, FrameWrites]:
        x, time, conditioning = self._enter(noisy_latents, noise_level, context)
        x, writes = run_layers(self.layers(), x, conditioning, context, memory)
        return join_patches(self.head(Residual(x), time), *self.config.grid), writes

    def commit(
        self,
        latents: Tensor,
        noise_level: Tensor,
        context: FrameContext,
        memory: MemoryState,
        novelty: float = 0.0,
    ) -> MemoryState:
        """Write into the memory: a finished frame, or in a recycled model the one before it, without a pass.

        Args:
            latents: `[B, C, h, w]`, the clean frame.
            noise_level: `[B]`, how noisy `latents` are taken to be; 0 is clean. A recycled model isn't told.
            context: From `observe` with the same memory; in a recycled model from `first_pass`.
            memory: State before this frame; left as it was.
            novelty: c of `SamplerConfig.write_novelty`; 0 writes as training does.

        Returns:
            State after this frame.
        """
        if self.config.recycled:
            assert context.writes is not None, "a recycled model writes what its first pass has noted"
            updates, tokens = context.writes
        else:
            x, _, conditioning = self._enter(latents, noise_level, context)
            updates, tokens = take_in(self.layers(), x, conditioning, context, memory)
        layers, count = self.layers(), memory.num_committed
        window, full = (cached_of(layers, updates, kind) for kind in (WindowAttention, FullAttention))
        keys, values, past = memory.window_keys, memory.window_values, memory.past
        how = (self.packed_writes, context.rotary, memory.matrices, novelty)
        return MemoryState(
            matrices=write_matrices(layers, updates, *how),
            window_keys=push_window(keys, window.k, count) if window else keys,
            window_values=push_window(values, window.v, count) if window else values,
            phase=arrived_phase(self.motion, context.phase, latents, memory),
            latents=latents.to(memory.latents.dtype),
            num_committed=count + 1,
            past=past.append(full.k, full.v) if past and full else past,
            summary=None if self.outcome is None else self.outcome.pool(tokens),
            odometry=memory.odometry,
        )

    def _enter(
        self, latents: Tensor, noise_level: Tensor, context: FrameContext
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return tokens `[B, N, D]`, time embedding `[B, D]` and what modulates the layers, `[B, 6, D]`."""
        time = self.embed_time(noise_level) + context.action
        conditioning = at_least_fp32(self.time_projection(time)).unflatten(-1, (6, -1))
        return embed_patches(latents, self.patch_embedding) + context.previous, time, conditioning

    def forward(
        self,
        clean: Tensor,
        noisy: Tensor,
        levels: Tensor,
        actions: Tensor,
        run_block: RunBlock | None = None,
        noise: Tensor | None = None,
        poses: Tensor | None = None,
    ) -> Tensor:
        """Predict the velocities of whole sequences that begin with an empty memory, all frames at once.

        Args:
            clean: `[B, F, C, h, w]`, the frames as play would have committed them (perhaps slightly noised).
            noisy: `[B, F, C, h, w]`, the frames to denoise; each reads what was written before it.
            levels: `[B, F, 2]`, noise levels of the two; a recycled model isn't told that of `clean`.
            actions: `[B, F, A]`, the action that leads to each frame.
            run_block: Runs a layer of a given number and returns its tokens, for who wants to look into it.
            noise: `[B, F, C, h, w]`, what the first passes of a recycled model begin from.
            poses: `[B, F, 3]`, where frames are seen from (`given_phases`); None leaves it to the motion.

        Returns:
            Velocity of the noisy frames, `[B, F, C, h, w]`.
        """
        empty = self.initial_memory(len(clean))
        return self.run_sequences(clean, noisy, levels, actions, empty, run_block, noise, poses).velocity

    def forward_segment(
        self,
        clean: Tensor,
        noisy: Tensor,
        levels: Tensor,
        actions: Tensor,
        memory: MemoryState,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, MemoryState]:
        """Predict the velocities of sequences that go on from a memory, all frames at once.

        Args:
            clean: As in `forward`, and so are `noisy`, `levels`, `actions` and `noise`.
            memory: State before the first frame; rows may have committed different numbers of frames.

        Returns:
            Velocity `[B, F, C, h, w]` of the noisy frames; without gradients, the state after the last one.

        Raises:
            WorldError: If the model has full layers.
        """
        check_constant_memory(self.config)
        passed = self.run_sequences(clean, noisy, levels, actions, memory, noise=noise)
        return passed.velocity, merge_memory(memory, passed, clean)

    def run_sequences(
        self,
        clean: Tensor,
        noisy: Tensor | None,
        levels: Tensor,
        actions: Tensor,
        memory: MemoryState,
        run_block: RunBlock | None = None,
        noise: Tensor | None = None,
        poses: Tensor | None = None,
        alone: Tensor | None = None,
        unwritten: Tensor | None = None,
    ) -> SequencePass:
        """Return all that the network says of sequences; see `forward` and `forward_segment`.

        Stream 0, which writes, is the clean frame, in a recycled model its first pass. Without `noisy` frames
        a recycled model makes nothing but first passes, at half the cost. Frames where `alone` `[B, F]` bool
        is True (`Rotary.alone`) are not even given the frame before them; those that are `unwritten`
        (`Rotary`) write nothing.
        """
        assert (noise is not None) == self.config.recycled, "first passes begin from noise, others from none"
        if noise is not None:
            levels = torch.cat([torch.ones_like(levels[..., :1]), levels[..., 1:]], dim=-1)
        streams = [stream for stream in (clean if noise is None else noise, noisy) if stream is not None]
        action = self.embed_actions(actions)  # [B, F, D]
        before = torch.cat([memory.latents.to(clean.dtype)[:, None], clean[:, :-1]], dim=1)
        if alone is not None:
            before = before.masked_fill(alone[..., None, None, None], 0.0)
        phases, arrived = self.path_phases(before, clean, action, memory, poses)
        rotary = self.rotary(phases, range(clean.shape[1]), departures(arrived, memory))
        rotary = replace(rotary, alone=alone, unwritten=unwritten)
        time = self.embed_time(levels[..., : len(streams)]) + action.unsqueeze(2)  # [B, F, S, D]
        conditioning = at_least_fp32(self.time_projection(time)).unflatten(-1, (6, -1))
        x = embed_patches(torch.stack(streams, dim=2), self.patch_embedding)
        x = x + self.embed_given(before.unsqueeze(2), phases.unsqueeze(2))
        final_states: list[LayerStateOut] = []
        residual, initial_states = Residual(x), split_memory(self.layers(), memory, x)
        entered = residual
        for index, (block, initial_state) in enumerate(zip(self.layers(), initial_states, strict=True)):
            entered = residual
            if run_block is not None:
                residual = run_block(index, residual, conditioning, initial_state, rotary)
                continue
            residual, kept = block(residual, conditioning, initial_state, rotary)
            final_states.append(kept)
        drawn = [(residual.of_stream(s), time[:, :, s]) for s in range(int(noise is None), len(streams))]
        velocities = [join_patches(self.head(*each), *self.config.grid) for each in drawn]
        summary = None if self.outcome is None else self.outcome.pool(entered.of_stream(0).total())
        first = velocities[0] if self.config.recycled else None
        return SequencePass(velocities[-1], first, final_states, arrived[:, -1], summary)

    def path_phases(
        self, before: Tensor, clean: Tensor, action: Tensor, memory: MemoryState, poses: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the path's angles at every frame and after it; see `sequence_phases`."""
        given = given_phases(self.config, poses)
        if given is not None:
            return given, given
        before = before.to(self.patch_embedding.weight.dtype)
        expected = self.motion(before, action, self.embed_nothing())
        return sequence_phases(self.motion, expected, before, clean, memory)
