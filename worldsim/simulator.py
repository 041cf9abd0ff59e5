"""Simulator: predict a frame (reads the memory), then commit it (writes the memory)."""

# B batch, H W frame size, C h w latent size, A action axes

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldsim.errors import WorldError
from worldsim.model.inspection import LayerReading, inspect_layers
from worldsim.model.memory.state import MemoryState
from worldsim.outcome import Outcome, outcome_of
from worldsim.runtime.config import RuntimeConfig
from worldsim.runtime.cuda_graphs import CompileChoice, choose_compile, compiler_of
from worldsim.runtime.device import DeviceChoice, choose_device, set_threads
from worldsim.runtime.isolation import isolated, ordinary
from worldsim.runtime.noise import COMMIT_FRAME, DRAW_FRAME, NoiseAhead, draw_noise
from worldsim.sampler import SamplerConfig, change_sampler, watch
from worldsim.starts import path_of
from worldsim.state import WorldState
from worldsim.world.held_frames import BlockContext, PartlyDrawn, Prediction, partly_drawn, rows_due
from worldsim.world.video import VideoWorld
from worldsim.world.world import Start, World, shipped_worlds

BUILT = ("_run_predict", "_run_commit", "_run_step", "_run_outcome")
"""What `compile` makes, anew in each process."""


class Simulator:
    """Steps a batch of dreams of one world. Holds no state of theirs: it is passed in and returned.

    Args:
        world: The world.
        sampler: How its frames are drawn, instead of the world's own way.
        frames_device: Where frames are returned and kept.
        compile: Mode of `worldsim.runtime.cuda_graphs.CompileChoice`: in which way kernels are launched.
        noise_ahead: Draw the next frame's noise while this one is computed.

    Raises:
        WorldError: If the world's keys are poses, and it has no odometry to follow them.

    Attributes:
        device_choice: Where it computes, and why; `open_simulator` says more.
        compile_choice: How its kernels are launched, and why.
    """

    def __init__(
        self,
        world: World,
        sampler: SamplerConfig | None = None,
        frames_device: torch.device | str = "cpu",
        *,
        compile: str = "none",
        noise_ahead: bool = False,
    ) -> None:
        world.check_followed()
        self.world = world
        self.sampler = sampler if sampler is not None else world.config.sampler
        self.frames_device = torch.device(frames_device)
        self._noise_ahead = NoiseAhead(world.noise_shape(self.sampler), world.device) if noise_ahead else None
        self.device_choice = DeviceChoice(world.device, world.dtype, "the world was loaded so")
        self.compile_choice = CompileChoice(compile, "as asked")
        # What a video world keeps is too large to be copied out of inference mode: `isolated` has to do.
        self._repeat, self._is_video = world.config.action_repeat, isinstance(world, VideoWorld)
        self._inferring = nullcontext if self._is_video else torch.inference_mode
        self._build()

    def _build(self) -> None:
        self._is_fused = self._is_video and self.compile_choice.mode == "inductor"  # layer by layer
        build = compiler_of("cudagraphs" if self._is_fused else self.compile_choice.mode, self.world.device)
        self._run_predict, self._run_commit = build(self._predict), build(self._commit)
        self._run_step, self._run_outcome = build(self._step), build(self._outcome)

    def __getstate__(self) -> dict[str, Any]:
        """Return what it is made of, for a copy in another process or in this one."""
        return self.__dict__ | {"_noise_ahead": self._noise_ahead is not None} | dict.fromkeys(BUILT)

    def __setstate__(self, made_of: dict[str, Any]) -> None:
        self.__dict__.update(made_of)
        world, is_ahead = self.world, made_of["_noise_ahead"]
        self._noise_ahead = NoiseAhead(world.noise_shape(self.sampler), world.device) if is_ahead else None
        self._build()

    def change_sampler(self, sampler: SamplerConfig) -> None:
        """Draw later frames in another way."""
        self.sampler = sampler
        self._build()  # the steps are part of what was recorded

    def close(self) -> None:
        """End the threads that draw noise, if there are any."""
        if self._noise_ahead is not None:
            self._noise_ahead.close()

    @isolated
    def start(self, starts: Sequence[Start], seeds: Sequence[int]) -> WorldState:
        """Begin a batch of dreams by watching real frames.

        Args:
            starts: One per dream, all of the same length, and either all with poses or none.
            seeds: One per dream, at least 0.

        Returns:
            The state after the last context frame, which is `frames`.
        """
        lengths = {len(start.frames) for start in starts}
        if len(lengths) != 1 or len(starts) != len(seeds):
            raise WorldError(
                f"a batch needs starts of one length and a seed each, got {lengths} and {len(seeds)}"
            )
        poses = path_of(starts, self.world.on_level_map) if self.world.odometry is not None else None
        frames = torch.stack([start.frames for start in starts])  # [B, T, H, W, 3]
        actions = torch.stack([start.actions for start in starts])
        noise_seeds = torch.tensor(list(seeds), dtype=torch.int64)
        leading = torch.cat([torch.zeros_like(actions[:, :1]), actions[:, :-1]], dim=1)
        if isinstance(self.world, VideoWorld):
            memory, shown = self.world.begin(frames, leading, noise_seeds, self.sampler)
            nothing, shown = torch.zeros_like(noise_seeds), shown.to(self.frames_device)
            return WorldState(memory=memory, frame_index=nothing, seed=noise_seeds, frames=shown)
        state = WorldState(
            memory=self.world.initial_memory(len(starts)),
            frame_index=torch.zeros(len(starts), dtype=torch.int64),
            seed=torch.zeros_like(noise_seeds),  # what has been watched depends on no dream's seed
            frames=frames[:, -1].to(self.frames_device),
        )
        for index in range(frames.shape[1]):
            pose = None if poses is None else poses[:, index]
            state = self.commit_frames(state, frames[:, index], leading[:, index], pose)
        return replace(state, frame_index=torch.zeros_like(state.frame_index), seed=noise_seeds)

    @isolated
    def predict(self, state: WorldState, actions: Tensor, poses: Tensor | None = None) -> Prediction:
        """Draw the frame that `actions` `[B, A]` int64 lead to; reads the memory, never changes it.

        In a world with odometry, `poses` `[B, 3]` say where it is seen from, if that is known (`path_of`).
        """
        if (due := rows_due(state, self._repeat)) is not None:
            drawn = self.predict(state.rows(due), actions[due]) if due else None
            return partly_drawn(state, self._repeat, due, drawn, self.frames_device)
        memory, noise = self.world.in_places(state.memory), self._noise(state, DRAW_FRAME)
        is_full, given = self.world.window_is_full(memory), self._on_device(actions, poses)
        # The few first blocks of a video are not recorded: what they see grows.
        run = self._predict if self._is_video and not is_full else self._run_predict
        with self._inferring():
            if not self._is_video:
                frames, latents, context = run(memory, *given, noise, is_full)
            else:  # decoded outside of what is recorded, which would copy the features: gigabytes
                latents = run(replace(memory, features=()), *given, noise, is_full)
                context = self._context_of(memory, latents, given[0], noise, is_full)
                frames = context.pictures[:, 0].clone()  # a saved state holds both
            frames = frames.to(self.frames_device)
        return Prediction(ordinary(frames), ordinary(latents), context)

    @isolated
    def commit(self, state: WorldState, prediction: Prediction) -> WorldState:
        """Remember a predicted frame; returns the state after it and leaves the old one as it was."""
        if isinstance(context := prediction.context, PartlyDrawn):
            if context.drawn is not None:
                state = state.with_rows(context.rows, self.commit(state.rows(context.rows), context.drawn))
            return replace(state, frame_index=context.following, frames=prediction.frames)
        noise, memory = self._commit_noise(state), self.world.in_places(state.memory)
        run = self._commit if self._is_video and not context.window_is_full else self._run_commit
        if features := context.features if isinstance(context, BlockContext) else ():  # gigabytes to copy
            memory, context = replace(memory, features=()), replace(context, features=())
        with self._inferring():
            memory = replace(run(memory, prediction.latents, noise, context), features=features)
        memory = memory.map(lambda _, tensor: ordinary(tensor))
        return replace(state, memory=memory, frame_index=state.frame_index + 1, frames=prediction.frames)

    @isolated
    def commit_again(
        self,
        state: WorldState,
        frames: Tensor,
        latents: Tensor,
        actions: Tensor,
        noise_scale: float | None = None,
    ) -> WorldState:
        """Remember a frame that was predicted and remembered before; the state after it has the same bytes.

        Args:
            state: The one before the frame.
            frames: `[B, H, W, 3]` uint8, of the prediction.
            latents: `[B, C, h, w]`, of the prediction.
            actions: `[B, A]` int64, what led to it.
            noise_scale: Of the sampler that drew it, if that was another one: a recycled world's memory holds
                what its first pass made of the noise.
        """
        if (due := rows_due(state, self._repeat)) is not None:
            if due:
                raise WorldError("dreams that read their actions at different frames are remembered alone")
            return self.commit(state, partly_drawn(state, self._repeat, due, None, self.frames_device))
        scale = self.sampler.noise_scale if noise_scale is None else noise_scale
        noise = self._noise(state, DRAW_FRAME) * scale
        context = self._context_of(state.memory, latents, actions.to(self.world.device), noise)
        return self.commit(state, Prediction(frames, latents, context))

    @isolated
    def outcome(self, state: WorldState) -> Outcome | None:
        """Judge the frames committed last; None in a world without outcome heads.

        Args:
            state: Of B dreams.
        """
        if self.world.config.outcome is None:
            return None
        assert state.memory.summary is not None, "the state belongs to a world without outcome heads"
        return outcome_of(self._run_outcome(state.memory.summary))

    @isolated
    def inspect(self, state: WorldState, prediction: Prediction) -> list[LayerReading]:
        """Return what the hybrid layers read from the state before a frame; costs a denoising pass.

        Nothing in a video world, which has no such layers.

        Args:
            state: Of one dream, before the frame.
            prediction: The frame.
        """
        if isinstance(self.world, VideoWorld):
            return []
        denoiser, latents, level = self.world.denoiser, prediction.latents, 0.0
        if denoiser.config.recycled:
            latents, level = self._noise(state, DRAW_FRAME) * self.sampler.noise_scale, 1.0
        return inspect_layers(denoiser, latents, level, prediction.context, state.memory)

    @isolated
    def step(
        self, state: WorldState, actions: Tensor, poses: Tensor | None = None
    ) -> tuple[Tensor, WorldState]:
        """Predict, then commit.

        Args:
            state: Of B dreams.
            actions: `[B, A]` int64.
            poses: See `predict`.

        Returns:
            Frames `[B, H, W, 3]` uint8 and the state after them.
        """
        if self.compile_choice.mode == "none" or self._is_video:
            prediction = self.predict(state, actions, poses)
            return prediction.frames, self.commit(state, prediction)
        is_full = self.world.window_is_full(state.memory)
        given, noise = self._on_device(actions, poses), self._noise(state, DRAW_FRAME)
        commit_noise = self._commit_noise(state)
        with torch.inference_mode():
            frames, memory = self._run_step(state.memory, *given, noise, commit_noise, is_full)
            frames = frames.to(self.frames_device)
        frames, memory = ordinary(frames), memory.map(lambda _, tensor: ordinary(tensor))
        return frames, replace(state, memory=memory, frame_index=state.frame_index + 1, frames=frames)

    @isolated
    def commit_frames(
        self, state: WorldState, frames: Tensor, actions: Tensor, poses: Tensor | None = None
    ) -> WorldState:
        """Remember real frames instead of dreamt ones.

        Args:
            state: Of B dreams.
            frames: `[B, H, W, 3]` uint8.
            actions: `[B, A]` int64, the actions that led to them.
            poses: See `predict`.

        Raises:
            WorldError: In a video world, which watches whole videos at the start alone.
        """
        world = self.world
        latents = world.codec.encode(frames.to(world.device)).float()
        actions, poses = self._on_device(actions, poses)
        given = (latents, actions, state.memory, state.seed, state.frame_index, poses, world.odometry)
        memory = watch(world.denoiser, *given)
        return replace(
            state, memory=memory, frame_index=state.frame_index + 1, frames=frames.to(self.frames_device)
        )

    def _context_of(self, memory: MemoryState, latents: Tensor, *given: Any) -> Any:
        fused = {"is_fused": True} if self._is_fused else {}  # a video world's alone
        return self.world.context_of(memory, latents, *given, **fused)

    def _on_device(self, actions: Tensor, poses: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return actions.to(self.world.device), None if poses is None else poses.to(self.world.device)

    def _noise(self, state: WorldState, purpose: int) -> Tensor:
        shape = self.world.noise_shape(self.sampler)
        if self._noise_ahead is not None:
            return self._noise_ahead.draw(state.seed, state.frame_index, purpose)
        return draw_noise(state.seed, state.frame_index, shape, purpose).to(self.world.device)

    def _commit_noise(self, state: WorldState) -> Tensor | None:
        return self._noise(state, COMMIT_FRAME) if self.sampler.commit_level else None

    # What follows is compiled: functions of tensors on the device alone, which look at none of their numbers.

    def _predict(
        self,
        memory: MemoryState,
        actions: Tensor,
        poses: Tensor | None,
        noise: Tensor,
        window_is_full: bool,
    ) -> Any:
        """Return the frames, their latents, and what the commit needs again; of a video the latents alone."""
        if isinstance(self.world, VideoWorld):
            given, is_fused = (memory, actions, noise, window_is_full), self._is_fused and window_is_full
            return self.world.draw(*given, self.sampler, is_fused=is_fused)
        return self.world.predict(memory, actions, poses, noise, window_is_full, self.sampler)

    def _commit(
        self, memory: MemoryState, latents: Tensor, noise: Tensor | None, context: Any
    ) -> MemoryState:
        fused = {"is_fused": True} if self._is_fused and context.window_is_full else {}
        return self.world.commit(memory, latents, noise, context, self.sampler, **fused)

    def _step(
        self,
        memory: MemoryState,
        actions: Tensor,
        poses: Tensor | None,
        noise: Tensor,
        commit_noise: Tensor | None,
        window_is_full: bool,
    ) -> tuple[Tensor, MemoryState]:
        frames, latents, context = self._predict(memory, actions, poses, noise, window_is_full)
        return frames, self._commit(memory, latents, commit_noise, context)

    def _outcome(self, summary: Tensor) -> Tensor:
        heads, meaning = self.world.denoiser.outcome, self.world.config.outcome
        assert heads is not None and meaning is not None, "asked for where there are heads"
        return meaning.decode(*heads(summary))


@isolated
def open_world(world: str | Path | World | None, runtime: RuntimeConfig) -> tuple[World, DeviceChoice]:
    """Load a world where a `RuntimeConfig` says; returns it, and where that is and why.

    Args:
        world: Name of a world that ships, a folder, an id on the Hugging Face Hub, or a loaded world; None
            or an empty name is the first that ships.
        runtime: Of it, `threads`, `device` and `dtype` are read.

    Raises:
        WorldError: If the world, or one of the settings, is not there or not valid.
    """
    if runtime.threads is not None:
        set_threads(runtime.threads)
    if isinstance(world, World):
        if (str(runtime.device), runtime.dtype) != ("auto", "auto"):
            raise WorldError("a loaded world stays where it is: device and dtype go with a name or a folder")
        return world, DeviceChoice(world.device, world.dtype, "the world was loaded so")
    if not isinstance(world, str | Path | None):
        raise WorldError(f"world must be a name, a folder or a loaded world, got {type(world).__name__}")
    if world is None or world == "":
        worlds = shipped_worlds()
        if not worlds:
            raise WorldError("no world ships with this copy: name one, world=FOLDER")
        world = worlds[0]
    choice = choose_device(runtime.device, runtime.dtype)
    with torch.random.fork_rng(devices=[]):  # networks are made of random numbers before they are filled
        return World.from_pretrained(world, device=choice.device, dtype=choice.dtype), choice


@isolated
def open_simulator(
    world: str | Path | World | None,
    runtime: RuntimeConfig,
    *,
    batch_size: int = 1,
    frames_on_device: bool = False,
) -> Simulator:
    """Load a world and return what steps it, as a `RuntimeConfig` says.

    Args:
        world: As in `open_world`.
        runtime: How it is computed.
        batch_size: Dreams that will be stepped together.
        frames_on_device: Leave frames where they are decoded instead of bringing them to the CPU.

    Raises:
        WorldError: If the world, or one of the settings, is not there or not valid.
    """
    world, device_choice = open_world(world, runtime)
    is_video, grows = isinstance(world, VideoWorld), world.config.memory_grows
    launch = choose_compile(runtime.compile, world.device, grows=grows, is_video=is_video)
    simulator = Simulator(
        world,
        change_sampler(world.config.sampler, runtime.denoising_steps, runtime.noise_scale),
        world.device if frames_on_device else "cpu",
        compile=launch.mode,
        # A CPU has nothing else to do it with, and the few numbers of one dream are drawn at once.
        noise_ahead=world.device.type == "cuda" and batch_size > 1 and not is_video,
    )
    simulator.device_choice, simulator.compile_choice = device_choice, launch
    return simulator
