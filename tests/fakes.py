"""Small worlds with random weights, and tiny gameplay video: where trained weights are not the point."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from policies.ppo import ActorNetwork, PolicyDescription, save_policy
from policies.sight import Sight
from worldsim.actions import ActionAxis, ActionLayout
from worldsim.codec import CodecConfig, FrameCodec
from worldsim.data.dataset_info import DatasetInfo
from worldsim.data.episodes import EpisodeWriter
from worldsim.model.config import DenoiserConfig, MemoryKeys, MemoryPhase
from worldsim.model.denoiser import Denoiser
from worldsim.model.memory.odometry import Odometry, OdometryConfig
from worldsim.outcome import OutcomeConfig
from worldsim.sampler import SamplerConfig
from worldsim.world.rewrite import encoder_digest
from worldsim.world.world import Start, World, WorldConfig

HEIGHT, WIDTH = 32, 48
TINY_ACTIONS = ActionLayout(
    (
        ActionAxis(name="move", buttons=("forward", "backward"), keys=(("up", "w"), ("down", "s"))),
        ActionAxis(name="strafe", buttons=("left", "right"), keys=(("a",), ("d",))),
        ActionAxis(name="turn", buttons=("left", "right"), keys=(("left",), ("right",))),
    )
)

TINY_SHAPE = DenoiserConfig(
    latent_shape=[4, 4, 6],
    num_values=[2],
    dim=32,
    ffn_dim=48,
    num_heads=2,
    num_layers=4,
    window_layers=[],
    window=2,
    memory_phase="time",
    previous_frame=False,
)
"""Four layers at the shape of Wan's network made tiny; the kinds of layers are the test's choice."""


def tiny_codec_config() -> CodecConfig:
    """Return the shape of a codec of 32x48 frames with latents `[4, 4, 6]`."""
    return CodecConfig(
        height=HEIGHT,
        width=WIDTH,
        latent_channels=4,
        widths=[4, 4, 8],
        encoder_blocks=[0, 0, 1],
        decoder_blocks=[0, 0, 1],
    )


def tiny_denoiser_config(
    phase: MemoryPhase = MemoryPhase.PATH,
    *,
    is_teacher: bool = False,
    outcome_heads: bool = False,
    recycled: bool = False,
    keys: MemoryKeys = MemoryKeys.AXES,
) -> DenoiserConfig:
    """Return the shape of a network of two hybrid layers and one window layer, or of three full layers."""
    return DenoiserConfig(
        latent_shape=[4, 4, 6],
        dim=32,
        ffn_dim=48,
        num_heads=2,
        num_layers=3,
        window_layers=[] if is_teacher else [1],
        full_layers=[0, 1, 2] if is_teacher else [],
        window=2,
        memory_phase=MemoryPhase.NONE if keys is MemoryKeys.POSE else phase,
        memory_keys=keys,
        recycled=recycled,
        outcome_heads=outcome_heads,
    )


PATH_KEYS = [MemoryKeys.AXES, MemoryKeys.PLANE]
"""Those that a learned path turns."""


def make_denoiser(
    phase: MemoryPhase,
    window_layers: list[int] | None = None,
    full_layers: list[int] | None = None,
    *,
    previous_frame: bool = True,
    outcome_heads: bool = False,
    memory_keys: MemoryKeys = MemoryKeys.AXES,
    full_path: bool = False,
    path_odometry: bool = False,
    recycled: bool = False,
) -> Denoiser:
    """Return a small fp64 denoiser of three layers all of whose weights matter."""
    torch.manual_seed(0)
    config = DenoiserConfig(
        latent_shape=[4, 8, 8],
        dim=32,
        ffn_dim=48,
        num_heads=2,
        num_layers=3,
        window=3,
        window_layers=[1] if window_layers is None else window_layers,
        full_layers=full_layers or [],
        memory_phase=phase,
        memory_keys=memory_keys,
        full_path=full_path,
        path_odometry=path_odometry,
        half_lives=[0.5, 20.0],
        previous_frame=previous_frame,
        recycled=recycled,
        outcome_heads=outcome_heads,
    )
    denoiser = Denoiser(config).double()
    for parameter in denoiser.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return denoiser.eval().requires_grad_(False)


def draw(*shape: int, seed: int = 1) -> Tensor:
    """Return random numbers in fp64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def tiny_starts(count: int = 3, length: int = 4) -> list[Start]:
    """Return start moments of smooth random pictures."""
    generator = torch.Generator().manual_seed(0)
    starts = []
    for index in range(count):
        frames = torch.randint(256, (length, HEIGHT, WIDTH, 3), generator=generator, dtype=torch.uint8)
        actions = torch.randint(3, (length, 3), generator=generator)
        starts.append(Start(f"start-{index:02d}", frames, actions))
    return starts


def tiny_odometry(codec: FrameCodec) -> Odometry:
    """Return odometry of random weights, by which a frame leads about as far as one in Doom does."""
    config = OdometryConfig(latent_shape=[4, 4, 6], encoder=encoder_digest(codec), hidden=8, features=4)
    odometry = Odometry(config)
    for parameter in odometry.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return odometry


def tiny_world(
    *,
    num_starts: int = 3,
    phase: MemoryPhase = MemoryPhase.PATH,
    num_steps: int = 2,
    is_teacher: bool = False,
    outcome: OutcomeConfig | None = None,
    recycled: bool = False,
    has_odometry: bool = False,
    max_episode_steps: int | None = None,
) -> World:
    """Return a world with random weights that all matter; its frames depend on action, memory and noise.

    It has outcome heads if `outcome` says what their numbers mean, and keys of poses if it has odometry.
    """
    torch.manual_seed(0)
    shape = tiny_denoiser_config(
        phase,
        is_teacher=is_teacher,
        outcome_heads=outcome is not None,
        recycled=recycled,
        keys=MemoryKeys.POSE if has_odometry else MemoryKeys.AXES,
    )
    config = WorldConfig(
        name="tiny",
        description="random weights",
        licence="Apache-2.0",
        frame_rate=10.0,
        max_episode_steps=max_episode_steps,
        actions=TINY_ACTIONS,
        denoiser=shape,
        codec=tiny_codec_config(),
        sampler=SamplerConfig(num_steps=num_steps),
        outcome=outcome,
    )
    denoiser, codec = Denoiser(config.denoiser), FrameCodec(config.codec)
    for module in (denoiser, codec):
        for parameter in module.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    odometry = tiny_odometry(codec) if has_odometry else None
    world = World(config, denoiser, codec, odometry=odometry)
    world.starts = tiny_starts(num_starts)
    return world


def save_untrained_policy(
    folder: Path, num_values: Sequence[int] = TINY_ACTIONS.num_values, scenario: str = "tiny"
) -> Path:
    """Write a policy with random weights that presses now this, now that, and return its folder."""
    torch.manual_seed(0)
    network = ActorNetwork(Sight(), num_values)
    for parameter in network.head.parameters():
        parameter.data *= 30
    description = PolicyDescription(
        scenario=scenario, actions={}, num_values=list(num_values), sight=Sight(), training={"steps": 0}
    )
    save_policy(folder, network, description)
    return folder


def save_tiny_world(folder: Path) -> Path:
    """Write `tiny_world` to a folder and return it."""
    tiny_world().save_pretrained(folder, dtype=torch.float32)
    return folder


def write_tiny_dataset(
    folder: Path, *, episodes: int = 2, frames: int = 20, actions: ActionLayout = TINY_ACTIONS
) -> Path:
    """Write gameplay video whose picture moves with the action, and return its folder."""
    info = DatasetInfo(name="tiny", width=WIDTH, height=HEIGHT, frame_rate=10.0, actions=actions)
    info.save(folder)
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 255, WIDTH * 2, dtype=np.uint8)
    for episode in range(episodes):
        shift = 0
        with EpisodeWriter(folder, f"episode-{episode:03d}", info) as writer:
            for index in range(frames):
                picture = np.broadcast_to(np.roll(ramp, shift)[None, :WIDTH, None], (HEIGHT, WIDTH, 3)).copy()
                action = rng.integers(0, actions.num_values)
                shift += int(action[-1]) * 2
                writer.add(picture, None if index == frames - 1 else action)
    return folder


def write_turning_dataset(
    folder: Path, *, episodes: int = 2, frames: int = 60, has_poses: bool = True
) -> Path:
    """Write gameplay video of a player who turns on the spot by 30 degrees a frame, and return its folder.

    A heading is always the same grey, another one for each.
    """
    info = DatasetInfo(name="tiny", width=WIDTH, height=HEIGHT, frame_rate=10.0, actions=TINY_ACTIONS)
    info.save(folder)
    for episode in range(episodes):
        with EpisodeWriter(folder, f"episode-{episode:03d}", info) as writer:
            for index in range(frames):
                heading = index % 12
                picture = np.full((HEIGHT, WIDTH, 3), 40 + 18 * (5 * heading % 12), np.uint8)
                pose = (0.0, 0.0, 30.0 * heading) if has_poses else None
                writer.add(picture, None if index == frames - 1 else np.array([0, 0, 2]), pose=pose)
    return folder


def write_outcome_dataset(
    folder: Path, *, episodes: int = 12, frames: int = 24, seed: int = 0, ends: bool = True
) -> Path:
    """Write gameplay video that shows what it brings, and return its folder.

    A white left half is worth 2, a black one nothing. All but every third episode end, with a frame whose
    right half is white; the others are cut off.
    """
    info = DatasetInfo(name="tiny", width=WIDTH, height=HEIGHT, frame_rate=10.0, actions=TINY_ACTIONS)
    info.save(folder)
    rng = np.random.default_rng(seed)
    for episode in range(episodes):
        is_cut = not ends or episode % 3 == 2
        length = frames + episode
        with EpisodeWriter(folder, f"episode-{episode:03d}", info) as writer:
            for index in range(length):
                is_last, is_good = index == length - 1, rng.random() < 0.3
                picture = np.full((HEIGHT, WIDTH, 3), 60, np.uint8)
                picture[:, : WIDTH // 2] = 255 if is_good else 0
                picture[:, WIDTH // 2 :] = 255 if is_last and not is_cut else 60
                action = None if is_last else rng.integers(0, TINY_ACTIONS.num_values)
                reward = 2.0 * is_good
                writer.add(picture, action, reward=reward, terminated=is_last and not is_cut)
    return folder
