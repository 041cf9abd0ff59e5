"""One frame of the dream: predict (reads the memory), then commit (writes it)."""

# B batch, H W frame size, C h w latent size, A action axes

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from worldsim.errors import WorldError
from worldsim.model.frame_context import FrameContext
from worldsim.outcome import Outcome
from worldsim.sampler import COMMIT_FRAME, SamplerConfig, draw_noise, sample
from worldsim.state import WorldState
from worldsim.world import Start, World


@dataclass(frozen=True, slots=True)
class Prediction:
    """A frame that was drawn but not yet remembered.

    Attributes:
        frames: `[B, H, W, 3]` uint8, on the simulator's `frames_device`.
        latents: `[B, C, h, w]`, on the world's device.
        context: What the passes over this frame share; `commit` needs it again.
    """

    frames: Tensor
    latents: Tensor
    context: FrameContext


class Simulator:
    """Steps a batch of dreams of one world. Holds no state of theirs: it is passed in and returned.

    Args:
        world: The world.
        sampler: How its frames are drawn, instead of the world's own way.
        frames_device: Where frames are returned and kept.
    """

    def __init__(
        self,
        world: World,
        sampler: SamplerConfig | None = None,
        frames_device: torch.device | str = "cpu",
    ) -> None:
        self.world = world
        self.sampler = sampler if sampler is not None else world.config.sampler
        self.frames_device = torch.device(frames_device)

    @torch.inference_mode()
    def start(self, starts: Sequence[Start], seeds: Sequence[int]) -> WorldState:
        """Begin a batch of dreams by watching real frames.

        Args:
            starts: One per dream, all of the same length.
            seeds: One per dream, at least 0.

        Returns:
            The state after the last context frame, which is `frames`.
        """
        lengths = {len(start.frames) for start in starts}
        if len(lengths) != 1 or len(starts) != len(seeds):
            raise WorldError(
                f"a batch needs starts of one length and a seed each, got {lengths} and {len(seeds)}"
            )
        frames = torch.stack([start.frames for start in starts])  # [B, T, H, W, 3]
        actions = torch.stack([start.actions for start in starts])
        state = WorldState(
            memory=self.world.denoiser.initial_memory(len(starts)),
            frame_index=torch.zeros(len(starts), dtype=torch.int64),
            seed=torch.tensor(list(seeds), dtype=torch.int64),
            frames=frames[:, -1].to(self.frames_device),
        )
        leading = torch.cat([torch.zeros_like(actions[:, :1]), actions[:, :-1]], dim=1)
        for index in range(frames.shape[1]):
            state = self.commit_frames(state, frames[:, index], leading[:, index])
        return replace(state, frame_index=torch.zeros_like(state.frame_index))

    @torch.inference_mode()
    def predict(self, state: WorldState, actions: Tensor) -> Prediction:
        """Draw the frame that `actions` `[B, A]` int64 lead to; reads the memory, never changes it."""
        world, memory = self.world, state.memory
        context = world.denoiser.observe(actions.to(world.device), memory)
        noise = draw_noise(state.seed, state.frame_index, world.denoiser.latent_shape).to(world.device)
        latents = sample(
            lambda noisy, level: world.denoiser.denoise(noisy, level, context, memory), noise, self.sampler
        )
        return Prediction(world.codec.decode(latents).to(self.frames_device), latents, context)

    @torch.inference_mode()
    def commit(self, state: WorldState, prediction: Prediction) -> WorldState:
        """Remember a predicted frame; returns the state after it and leaves the old one as it was."""
        latents, level = prediction.latents, self.sampler.commit_level
        if level:
            noise = draw_noise(state.seed, state.frame_index, latents.shape[1:], COMMIT_FRAME).to(
                latents.device
            )
            latents = (1 - level) * latents + level * noise
        levels = torch.full((len(latents),), level, device=latents.device)
        memory = self.world.denoiser.commit(latents, levels, prediction.context, state.memory)
        return replace(state, memory=memory, frame_index=state.frame_index + 1, frames=prediction.frames)

    @torch.inference_mode()
    def commit_again(self, state: WorldState, frames: Tensor, latents: Tensor, actions: Tensor) -> WorldState:
        """Remember a frame that was predicted and remembered before; the state after it has the same bytes.

        Args:
            state: The one before the frame.
            frames: `[B, H, W, 3]` uint8, of the prediction.
            latents: `[B, C, h, w]`, of the prediction.
            actions: `[B, A]` int64, what led to it.
        """
        context = self.world.denoiser.observe(actions.to(self.world.device), state.memory)
        return self.commit(state, Prediction(frames, latents, context))

    @torch.inference_mode()
    def outcome(self, state: WorldState) -> Outcome | None:
        """Judge the frames committed last; None in a world without outcome heads.

        Args:
            state: Of B dreams.
        """
        heads, meaning = self.world.denoiser.outcome, self.world.config.outcome
        if heads is None or meaning is None:
            return None
        assert state.memory.summary is not None, "the state belongs to a world without outcome heads"
        return meaning.outcome(*heads(state.memory.summary))

    def step(self, state: WorldState, actions: Tensor) -> tuple[Tensor, WorldState]:
        """Predict, then commit.

        Args:
            state: Of B dreams.
            actions: `[B, A]` int64.

        Returns:
            Frames `[B, H, W, 3]` uint8 and the state after them.
        """
        prediction = self.predict(state, actions)
        return prediction.frames, self.commit(state, prediction)

    @torch.inference_mode()
    def commit_frames(self, state: WorldState, frames: Tensor, actions: Tensor) -> WorldState:
        """Remember real frames instead of dreamt ones.

        Args:
            state: Of B dreams.
            frames: `[B, H, W, 3]` uint8.
            actions: `[B, A]` int64, the actions that led to them.
        """
        world = self.world
        latents = world.codec.encode(frames.to(world.device)).float()
        context = world.denoiser.observe(actions.to(world.device), state.memory)
        memory = world.denoiser.commit(
            latents, torch.zeros(len(frames), device=world.device), context, state.memory
        )
        return replace(
            state, memory=memory, frame_index=state.frame_index + 1, frames=frames.to(self.frames_device)
        )
