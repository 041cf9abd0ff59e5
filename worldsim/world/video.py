"""A world whose frames a transformer of the Wan family draws in blocks, each decoded after the one before."""

# B batch, F latent frames, C h w latent size, P pictures of a block, L layers, N tokens, A action axes

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from worldsim.errors import WorldError
from worldsim.model.memory.frame_ring import FrameRing
from worldsim.model.memory.state import MemoryState
from worldsim.runtime.isolation import isolated
from worldsim.runtime.noise import WATCH_FRAME, draw_noise
from worldsim.sampler import SamplerConfig
from worldsim.starts import Start
from worldsim.storage.files import files_below
from worldsim.storage.tensors import (
    CODEC_FILE,
    check_file,
    filling,
    load_weights,
    read_weights,
    save_weights,
    swap_folder,
    write_tensors,
)
from worldsim.wan.autoencoder import StreamingAutoencoder, build_autoencoder, count_weights, show
from worldsim.wan.causal import FrameCache, commit_block, generate_block, ring_shape
from worldsim.wan.checkpoint import read_transformer
from worldsim.wan.config import FRAMES_PER_LATENT, CausalConfig
from worldsim.wan.schedule import even_steps
from worldsim.wan.transformer import TextContext, WanTransformer
from worldsim.world.config import world_card
from worldsim.world.held_frames import BlockContext, held_actions
from worldsim.world.video_config import OF_FRAMES, VideoWorldConfig, not_of_video
from worldsim.world.world import CARD_FILE, MODEL_FILE, STARTS_FOLDER, World, write_config

TRANSFORMER_FOLDER, TEXT_FILE, TEXT_NAME = "transformer", "text.safetensors", "text"
FROM_TEXT = "from-text"
"""Start moment at which nothing is watched: the network draws the first block, too."""


class VideoWorld(World):
    """A transformer of the Wan family in its causal form, the autoencoder, and one text.

    What it remembers is a `MemoryState`: keys and values of the sink and of the latest latent frames as the
    window, turned by their frames' places; the frames of the block that is shown, as pictures; and what the
    decoder keeps.
    """

    config: VideoWorldConfig

    def __init__(
        self,
        config: VideoWorldConfig,
        transformer: WanTransformer,
        autoencoder: StreamingAutoencoder,
        text: Tensor,
        folder: Path,
        checksums: Mapping[str, str],
    ) -> None:
        self.config, self.folder, self.odometry, self.text = config, folder, None, text
        self.transformer, self.autoencoder, self._checksums = transformer, autoencoder, checksums
        with torch.no_grad():
            self._context = transformer.embed_text(text[None].to(self.device))

    def __getattr__(self, name: str) -> NoReturn:
        """Say what a video world has not; called for what is no attribute."""
        if name in OF_FRAMES:
            raise not_of_video(self.config.name, name)
        raise AttributeError(f"a video world has no {name}")

    @classmethod
    def load(
        cls, folder: Path, config: VideoWorldConfig, checksums: Mapping[str, str], dtype: torch.dtype
    ) -> VideoWorld:
        """Load the world of a folder, whose description was read, onto the CPU.

        Raises:
            WorldError: If a file is missing, altered or of another kind, or diffusers is not installed.
        """
        names = {path.relative_to(folder).as_posix() for path in files_below(folder / TRANSFORMER_FOLDER)}
        for name in sorted(names | {CODEC_FILE, TEXT_FILE}):
            check_file(folder, name, checksums.get(name))
        weights = read_transformer(config.transformer, folder / TRANSFORMER_FOLDER, dtype)
        min_weights = count_weights(config.autoencoder)
        module = load_weights(lambda: build_autoencoder(config.autoencoder), folder / CODEC_FILE, min_weights)
        autoencoder = StreamingAutoencoder(module)
        if autoencoder.channels != config.transformer.in_dim:
            raise WorldError(
                f"world {config.name!r}: the network works on {config.transformer.in_dim} channels, its "
                f"autoencoder makes {autoencoder.channels}"
            )
        text = read_weights(folder / TEXT_FILE).get(TEXT_NAME)
        if text is None or text.ndim != 2:
            raise WorldError(f"{folder / TEXT_FILE} holds no text's embedding [rows, width]")
        return cls(config, weights, autoencoder, text, folder, checksums)

    @property
    def on_level_map(self) -> bool:
        """Never: a video world follows no poses."""
        return False

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.transformer.patch_embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are stored and computed in."""
        return self.transformer.dtype

    @property
    def num_parameters(self) -> int:
        """Number of weights of network and autoencoder."""
        modules = (self.transformer, self.autoencoder.autoencoder)
        return sum(p.numel() for module in modules for p in module.parameters())

    @cached_property
    def identity(self) -> str:
        """Name and a digest of the files' checksums: what a saved state belongs to."""
        weights = {n: s for n, s in self._checksums.items() if n.endswith(".safetensors")}
        digest = hashlib.sha256(json.dumps(weights, sort_keys=True).encode())
        return f"{self.config.name}@{digest.hexdigest()[:16]}"

    @cached_property
    def starts(self) -> list[Start]:
        """The network's own start moment, at which nothing is watched, then those of the folder."""
        height, width, axes = self.config.height, self.config.width, len(self.config.actions.axes)
        nothing = torch.zeros(0, height, width, 3, dtype=torch.uint8)
        own = Start(FROM_TEXT, nothing, torch.zeros(0, axes, dtype=torch.int64))
        return [own, *super().starts]

    def to(self, device: torch.device | str, dtype: torch.dtype) -> VideoWorld:
        """Move the weights, and make the text's keys and values there."""
        self.transformer.to(device=device, dtype=dtype)
        self.autoencoder.to(device=device, dtype=dtype)
        self.autoencoder.lay_out("channels_last" if self.device.type == "cuda" else "contiguous")
        with torch.no_grad():
            self._context = self.transformer.embed_text(self.text[None].to(device))
        return self

    def save_pretrained(
        self,
        folder: Path | str,
        *,
        starts: list[Start] | None = None,
        dtype: torch.dtype = torch.bfloat16,
        bits: int = 16,
    ) -> None:
        """Write the world as a folder; see `World.save_pretrained`. The autoencoder is stored in fp32.

        Raises:
            WorldError: If `bits` is not 16.
            OSError: If it cannot be written; a world that was there stays.
        """
        if bits != 16:
            raise WorldError(f"a video world is stored in 16 bits, not in {bits}")
        folder = Path(folder)
        with filling(folder) as part:
            (part / TRANSFORMER_FOLDER).mkdir()
            save_weights(self.transformer, part / TRANSFORMER_FOLDER / MODEL_FILE, dtype)
            save_weights(self.autoencoder.autoencoder, part / CODEC_FILE, torch.float32)
            write_tensors({TEXT_NAME: self.text}, part / TEXT_FILE)
            self._save_starts(part / STARTS_FOLDER, starts)
            (part / CARD_FILE).write_text(world_card(self.config, self.num_parameters), encoding="utf-8")
            write_config(part, self.config)
            swap_folder(part, folder)

    def _save_starts(self, target: Path, starts: list[Start] | None) -> None:
        if starts is None and not self.starts[1:]:  # the first is the network's own
            return
        super()._save_starts(target, starts)

    def initial_memory(self, batch_size: int) -> MemoryState:
        """Return the memory of so many dreams before anything happened.

        It takes no room: all its zeros are one.
        """
        config, causal, shape = self.config, self.config.causal, self.config.transformer
        places = causal.sink + (causal.kept or 0)
        token = (config.tokens_per_frame, shape.num_heads, shape.head_width)

        def zeros(*sizes: int, dtype: torch.dtype = self.dtype) -> Tensor:
            return torch.zeros((), dtype=dtype, device=self.device).expand(sizes)

        num_hybrid = len(shape.hybrid_layers)
        channels, *size = config.latent_shape
        features = self.autoencoder.feature_shapes(*size)
        return MemoryState(
            matrices=zeros(
                num_hybrid, batch_size, shape.num_heads, *[shape.head_width] * 2, dtype=torch.float32
            ),
            window_keys=zeros(shape.num_layers - num_hybrid, batch_size, places, *token),
            window_values=zeros(shape.num_layers - num_hybrid, batch_size, places, *token),
            phase=zeros(batch_size, shape.head_width // 2, dtype=torch.float32),
            latents=zeros(batch_size, channels, causal.block, *size, dtype=torch.float32),
            num_committed=zeros(batch_size, dtype=torch.int64),
            pictures=zeros(
                batch_size, config.action_repeat, config.height, config.width, 3, dtype=torch.uint8
            ),
            features=tuple(zeros(batch_size, *each[1:]) for each in features),
        )

    def check_followed(self) -> None:
        """Do nothing: no poses are followed."""

    def window_is_full(self, memory: MemoryState) -> bool:
        """Return whether all places of the window hold a frame, in all rows; waits for the device."""
        shape, causal = self.config.transformer, self.config.causal
        is_all_hybrid = len(shape.hybrid_layers) == shape.num_layers
        places = causal.sink + (causal.kept or 0)
        return is_all_hybrid or bool((memory.num_committed >= places).all())

    def in_places(self, memory: MemoryState) -> MemoryState:
        """Return the memory with its window as a ring: a copy, where it is in order, as in a file."""
        shape = ring_shape(self.config.causal)
        if memory.ring is not None and memory.ring.shape != shape:
            memory = memory.in_order()  # of another world with as many frames in sight
        if memory.ring is not None or not len(memory.window_keys):
            return memory
        window = (memory.window_keys, memory.window_values)
        ring = FrameRing.of(shape, *window, memory.num_committed)
        return replace(memory, window_keys=window[0][:0], window_values=window[1][:0], ring=ring)

    def noise_shape(self, sampler: SamplerConfig) -> tuple[int, ...]:
        """Return the shape of a block's noise, `[steps, C, F, h, w]`."""
        return self._noise_shape(self._causal(sampler))

    def draw(
        self,
        memory: MemoryState,
        actions: Tensor,
        noise: Tensor,
        window_is_full: bool,
        sampler: SamplerConfig,
        *,
        is_fused: bool = False,
    ) -> Tensor:
        """Return a block's latents, `[B, C, F, h, w]`, which `context_of` decodes; see `World.predict`.

        `is_fused` compiles the layers, for the shapes of all that they see: those of a full window are few.
        """
        cache = self._cache(memory, window_is_full)
        return self._draw(noise, cache, self._causal(sampler), actions, sampler, is_fused=is_fused)

    def commit(
        self,
        memory: MemoryState,
        latents: Tensor,
        noise: Tensor | None,
        context: BlockContext,
        sampler: SamplerConfig,
        *,
        is_fused: bool = False,
    ) -> MemoryState:
        """Return the memory after a block; see `World.commit` and `draw`."""
        text, config = self._texts(len(latents)), self.config.causal
        cache, pressed = self._cache(memory, context.window_is_full), context.actions
        cache = commit_block(self.transformer, latents, text, cache, config, pressed, is_fused=is_fused)
        return self._remembered(memory, cache, latents, context)

    def context_of(
        self,
        memory: MemoryState,
        latents: Tensor,
        actions: Tensor,
        noise: Tensor | None = None,
        window_is_full: bool | None = None,
        *,
        is_fused: bool = False,
    ) -> BlockContext:
        """Return a block's pictures, and what its commit needs again; see `World.context_of`.

        Waits for the device, unless it is told whether the window is full. `is_fused` compiles the decoder.
        """
        is_full = self.window_is_full(memory) if window_is_full is None else window_is_full
        shown = show(self.autoencoder, latents, memory.features, is_fused=is_fused)
        return BlockContext(self._pressed(actions), *shown, is_full)

    @isolated
    def begin(
        self, frames: Tensor, actions: Tensor, seeds: Tensor, sampler: SamplerConfig
    ) -> tuple[MemoryState, Tensor]:
        """Watch the beginning of a video, or draw it from noise where none is given.

        Args:
            frames: `[B, T, H, W, 3]` uint8. The latest 1, 5, 9 ... of them are watched: so many make whole
                latent frames.
            actions: `[B, T, A]` int64, what led to each frame.
            seeds: `[B]` int64 on the CPU, of the noise that the first block is drawn from.
            sampler: How the first block is drawn.

        Returns:
            The memory, and the frames shown last, `[B, H, W, 3]` uint8.
        """
        batch, total = frames.shape[:2]
        config, causal = self.config, self.config.causal
        memory, cache = self.initial_memory(batch), FrameCache()
        idle = torch.zeros(batch, actions.shape[2], dtype=torch.int64, device=self.device)
        if not total:
            shape = self._noise_shape(self._first(sampler))
            noise = draw_noise(seeds, torch.zeros_like(seeds), shape, WATCH_FRAME)
            latents = self._draw(noise.to(self.device), cache, self._first(sampler), idle, sampler)
        else:
            start = (total - 1) % FRAMES_PER_LATENT
            frames, actions = frames[:, start:], actions[:, start:].to(self.device)
            images = frames.to(self.device).movedim(-1, 2).float() / 127.5 - 1
            latents = self.autoencoder.encode(images).float()
        first = latents.shape[2] % causal.block or causal.block
        features: tuple[Tensor, ...] = ()
        for begin in (0, *range(first, latents.shape[2], causal.block)):
            block = latents[:, :, begin : begin + (causal.block if begin else first)]
            # The frames that a block shows are what its action led to.
            shown = 1 + FRAMES_PER_LATENT * (begin - 1)
            pressed = held_actions(actions[:, shown : shown + config.action_repeat]) if begin else idle
            pictures, features = show(self.autoencoder, block, features)
            context = BlockContext(self._pressed(pressed), pictures, features, window_is_full=False)
            text = self._texts(batch)
            cache = commit_block(self.transformer, block, text, cache, causal, context.actions)
            memory = self._remembered(memory, cache, block, context)
        assert memory.pictures is not None
        return memory, frames[:, -1] if total else memory.pictures[:, -1].clone()

    def _causal(self, sampler: SamplerConfig) -> CausalConfig:
        """Return the blocks with a sampler's steps: as trained, if there are as many, else evenly spaced."""
        if sampler.commit_level or sampler.write_novelty:
            raise WorldError("a video world commits clean frames: commit_level and write_novelty must be 0")
        own = self.config.causal
        same = sampler.num_steps == len(own.steps)
        return replace(own, steps=own.steps if same else even_steps(sampler.num_steps), shift=sampler.shift)

    def _first(self, sampler: SamplerConfig) -> CausalConfig:
        causal = self._causal(sampler)
        return replace(causal, steps=causal.first_steps or causal.steps)

    def _noise_shape(self, causal: CausalConfig) -> tuple[int, ...]:
        channels, *size = self.config.latent_shape
        return len(causal.steps), channels, causal.block, *size

    def _draw(
        self,
        noise: Tensor,
        cache: FrameCache,
        causal: CausalConfig,
        actions: Tensor,
        sampler: SamplerConfig,
        *,
        is_fused: bool = False,
    ) -> Tensor:
        first, fresh = noise[:, 0] * sampler.noise_scale, noise[:, 1:].transpose(0, 1)
        text, pressed = self._texts(len(noise)), self._pressed(actions)
        given = (first, text, cache, causal, fresh, pressed)
        return generate_block(self.transformer, *given, is_fused=is_fused).float()

    def _cache(self, memory: MemoryState, window_is_full: bool) -> FrameCache:
        return FrameCache(memory.ring, (), tuple(memory.matrices), memory.num_committed, window_is_full)

    def _remembered(
        self, memory: MemoryState, cache: FrameCache, latents: Tensor, context: BlockContext
    ) -> MemoryState:
        """Return the memory behind a block; what a shorter first one leaves free comes before it."""
        assert cache.frames is not None
        missing = self.config.causal.block - latents.shape[2]
        padded = torch.cat([latents.new_zeros(latents[:, :, :1].shape)] * missing + [latents], dim=2)
        pictures = context.pictures
        free = self.config.action_repeat - pictures.shape[1]
        return replace(
            memory,
            matrices=torch.stack(cache.matrices) if cache.matrices else memory.matrices,
            window_keys=memory.window_keys[:0],
            window_values=memory.window_values[:0],
            ring=cache.ring,
            latents=padded,
            num_committed=cache.frames,
            pictures=torch.cat([pictures[:, :1]] * free + [pictures], dim=1),
            features=context.features,
        )

    def _pressed(self, actions: Tensor) -> Tensor | None:
        return actions if self.config.transformer.num_values else None

    def _texts(self, batch_size: int) -> TextContext:
        """Return the text of so many dreams, without a copy of it."""
        return TextContext(
            tuple(
                (k.expand(batch_size, -1, -1, -1), v.expand(batch_size, -1, -1, -1))
                for k, v in self._context.pairs
            )
        )
