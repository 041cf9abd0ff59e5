"""A world as a folder: weights in safetensors, everything else in JSON, every file with its checksum."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldsim.codec import FrameCodec, load_codec
from worldsim.data.dataset_info import DatasetInfo
from worldsim.errors import WorldError
from worldsim.model import belief
from worldsim.model.config import MemoryKeys
from worldsim.model.denoiser import Denoiser
from worldsim.model.memory.odometry import WEIGHTS_FILE as ODOMETRY_FILE
from worldsim.model.memory.odometry import Odometry
from worldsim.model.memory.state import MemoryState
from worldsim.runtime.isolation import isolated
from worldsim.sampler import SamplerConfig, draw
from worldsim.starts import Start, read_starts, write_starts
from worldsim.storage.files import files_below, shown, user_path
from worldsim.storage.tensors import (
    CODEC_FILE,
    CONFIG_FILE,
    PICKLES,
    check_file,
    filling,
    load_weights,
    read_checksums,
    read_object,
    save_weights,
    sha256_of,
    swap_folder,
)
from worldsim.world.config import WorldConfig, check_parts, world_card
from worldsim.world.hub import download_world
from worldsim.world.video_config import KIND, VideoWorldConfig

MAX_START_FILES = 10_000
MODEL_FILE, CARD_FILE, STARTS_FOLDER = "model.safetensors", "README.md", "starts"
DEFAULT_WORLD = "doom-rooms"
POLICY_FOLDER = "policy"
"""Of a world: a policy that learned to play it, if there is one; `policies.ppo` reads it."""
DOWNLOADED = [
    CONFIG_FILE,
    "*.safetensors",
    "*.safetensors.index.json",
    CARD_FILE,
    f"{STARTS_FOLDER}/*",
    f"{POLICY_FOLDER}/*.json",
]
"""Of a repository of the hub."""
SHIPPED = Path(__file__).resolve().parents[1] / "assets" / "worlds"


class World:
    """A learned game: network, codec, start moments and their description.

    A simulator draws and remembers frames by `predict`, `commit` and `context_of`, which worlds of other
    networks have as well: functions of tensors on the device, which look at none of their numbers.

    Where the network's keys are poses, `odometry` follows these; it is computed in fp32 whatever `dtype` is.
    """

    def __init__(
        self,
        config: WorldConfig,
        denoiser: Denoiser,
        codec: FrameCodec,
        folder: Path | None = None,
        odometry: Odometry | None = None,
    ) -> None:
        check_parts(config, denoiser.latent_shape, codec.latent_shape)
        shape = None if odometry is None else odometry.config
        self.config = config if config.odometry == shape else replace(config, odometry=shape)
        self.odometry = None if odometry is None else odometry.float().eval().requires_grad_(False)
        self.denoiser = denoiser.eval().requires_grad_(False)
        self.codec = codec.eval().requires_grad_(False)
        self.folder = folder

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.denoiser.patch_embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are stored and computed in."""
        return self.denoiser.patch_embedding.weight.dtype

    @property
    def num_parameters(self) -> int:
        """Number of weights of network, codec and odometry."""
        modules = [each for each in (self.denoiser, self.codec, self.odometry) if each is not None]
        return sum(p.numel() for module in modules for p in module.parameters())

    @property
    def on_level_map(self) -> bool:
        """Whether it plays on one level, whose map says where poses are."""
        return self.config.denoiser.level_map > 0

    @cached_property
    def identity(self) -> str:
        """Name and a digest of the weights: what a saved state belongs to."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.denoiser.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.bfloat16().view(torch.int16).cpu().numpy().tobytes())
        for name, tensor in sorted(self.odometry.state_dict().items()) if self.odometry is not None else ():
            digest.update(name.encode() + tensor.cpu().numpy().tobytes())
        return f"{self.config.name}@{digest.hexdigest()[:16]}"

    @cached_property
    @isolated
    def starts(self) -> list[Start]:
        """The start moments, decoded when first asked for.

        Raises:
            WorldError: If one is missing or altered, or there are files that `config.json` does not list.
        """
        if self.folder is None:
            return []
        folder, checksums = self.folder / STARTS_FOLDER, read_config(self.folder)[1]
        names = {name for name in checksums if name.startswith(f"{STARTS_FOLDER}/")}
        names |= {path.relative_to(self.folder).as_posix() for path in files_below(folder)}
        if len(names) > MAX_START_FILES:
            raise WorldError(f"{folder} holds {len(names)} files, more than {MAX_START_FILES}")
        for name in sorted(names):
            check_file(self.folder, name, checksums.get(name))
        if not names:
            return []
        info, config = DatasetInfo.load(folder), self.config
        expected = config.height, config.width, config.actions.num_values
        if (info.height, info.width, info.actions.num_values) != expected:
            raise WorldError(
                f"the start moments in {folder} have another size or other buttons than the world"
            )
        return read_starts(folder)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> World:
        """Move the weights; tables of angles and frequencies keep their precision."""
        for parameter in self.denoiser.parameters():
            parameter.data = parameter.data.to(dtype)
        self.denoiser.to(device)
        self.denoiser.pack()
        self.codec.to(device=device, dtype=dtype)
        if self.odometry is not None:
            self.odometry.to(device)
        return self

    def initial_memory(self, batch_size: int) -> MemoryState:
        """Return the memory of so many dreams before anything happened."""
        memory = self.denoiser.initial_memory(batch_size)
        if self.odometry is None:
            return memory
        return replace(memory, odometry=self.odometry.initial_state(batch_size))

    def check_followed(self) -> None:
        """Raise `WorldError` if the keys are poses, and nothing follows these in a dream."""
        if self.config.denoiser.memory_keys == MemoryKeys.POSE and self.odometry is None:
            raise WorldError(
                f"world {self.config.name!r} remembers by poses and has no odometry that follows them in a "
                "dream: python -m training.odometry world=FOLDER teaches it one"
            )

    def noise_shape(self, sampler: SamplerConfig) -> tuple[int, ...]:
        """Return the shape of the noise that a frame is drawn from, the batch left out."""
        return self.denoiser.latent_shape

    def window_is_full(self, memory: MemoryState) -> bool:
        """Return whether all that is cached is seen, in all rows; waits for the device."""
        return self.denoiser.window_is_full(memory)

    def in_places(self, memory: MemoryState) -> MemoryState:
        """Return the memory as it is stepped; in a world of frames that is how it is saved, too."""
        return memory

    def predict(
        self,
        memory: MemoryState,
        actions: Tensor,
        poses: Tensor | None,
        noise: Tensor,
        window_is_full: bool,
        sampler: SamplerConfig,
    ) -> tuple[Tensor, Tensor, Any]:
        """Draw a frame; reads the memory, never changes it. All tensors are on the world's device.

        Args:
            memory: State before the frame.
            actions: `[B, A]` int64, what leads to it.
            poses: `[B, 3]`, where it is seen from, if that is known.
            noise: Standard normal, `[B, *noise_shape]`.
            window_is_full: Of the memory.
            sampler: How it is drawn.

        Returns:
            Frames `[B, H, W, 3]` uint8, their latents, and what `commit` needs again.
        """
        context = belief.observe(self.denoiser, self.odometry, actions, memory, window_is_full, poses)
        latents, context = draw(self.denoiser, noise, context, memory, sampler)
        return self.codec.decode(latents), latents, context

    def commit(
        self, memory: MemoryState, latents: Tensor, noise: Tensor | None, context: Any, sampler: SamplerConfig
    ) -> MemoryState:
        """Return the memory after a frame that `predict` drew.

        Args:
            noise: As its latents, where the sampler mixes some in.
        """
        level = sampler.commit_level
        if noise is not None:
            latents = (1 - level) * latents + level * noise
        levels = torch.full((len(latents),), level, device=latents.device)
        given = (latents, levels, context, memory, sampler.write_novelty)
        return belief.commit(self.denoiser, self.odometry, *given)

    def context_of(self, memory: MemoryState, latents: Tensor, actions: Tensor, noise: Tensor) -> Any:
        """Return what `commit` needs again of a frame that was drawn before.

        Args:
            memory: State before it.
            latents: Of the frame.
            actions: `[B, A]` int64, what led to it.
            noise: What it was drawn from, scaled.
        """
        context = belief.observe(self.denoiser, self.odometry, actions, memory)
        if self.denoiser.config.recycled:
            context = self.denoiser.first_pass(noise, context, memory)[1]
        return context

    @classmethod
    @isolated
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> World:
        """Load a world.

        Args:
            name_or_path: Name of a world that ships (`shipped_worlds`), a folder, or a Hugging Face id
                `owner/name`.

        Raises:
            WorldError: If there is no such world, or a file of it is missing, altered or of another kind.
        """
        folder = find_world(name_or_path)
        config, checksums = read_config(folder)
        if isinstance(config, VideoWorldConfig):
            from worldsim.world.video import VideoWorld  # which is made of this class

            return VideoWorld.load(folder, config, checksums, dtype).to(device, dtype)
        model, encoder = (check_file(folder, name, checksums.get(name)) for name in (MODEL_FILE, CODEC_FILE))
        denoiser = load_weights(lambda: Denoiser(config.denoiser), model, config.denoiser.min_weights)
        codec = load_weights(lambda: FrameCodec(config.codec), encoder, config.codec.min_weights)
        odometry = None
        if (shape := config.odometry) is not None:
            path = check_file(folder, ODOMETRY_FILE, checksums.get(ODOMETRY_FILE))
            odometry = load_weights(lambda: Odometry(shape), path, shape.min_weights)
        return cls(config, denoiser, codec, folder, odometry).to(device, dtype)

    def save_pretrained(
        self,
        folder: Path | str,
        *,
        starts: list[Start] | None = None,
        dtype: torch.dtype = torch.bfloat16,
        bits: int = 16,
    ) -> None:
        """Write the world as a folder, completely or not at all.

        Args:
            folder: Where; a world that is there is replaced.
            starts: Start moments; by default those it has.
            dtype: What weights are stored in.
            bits: 8 stores matrices of network and decoder in half the room, and rounds them
                (docs/decisions/0047); the encoder keeps `dtype`. Odometry is stored in fp32.

        Raises:
            WorldError: If `bits` is neither 8 nor 16.
            OSError: If it cannot be written; a world that was there stays.
        """
        folder = Path(folder)
        with filling(folder) as part:
            save_weights(self.denoiser, part / MODEL_FILE, dtype, bits=bits)
            save_weights(self.codec, part / CODEC_FILE, dtype, bits=bits, prefix="decoder.")
            if self.odometry is not None:
                save_weights(self.odometry, part / ODOMETRY_FILE, torch.float32)
            self._save_starts(part / STARTS_FOLDER, starts)
            (part / CARD_FILE).write_text(world_card(self.config, self.num_parameters), encoding="utf-8")
            write_config(part, self.config)
            swap_folder(part, folder)

    def _save_starts(self, target: Path, starts: list[Start] | None) -> None:
        own = self.starts  # read, and so checked
        if starts is None and own and self.folder is not None:
            shutil.copytree(self.folder / STARTS_FOLDER, target)  # encoded once more they would be less sharp
        elif chosen := own if starts is None else starts:
            name, source = f"{self.config.name}-starts", "start moments from held-out episodes"
            write_starts(target, chosen, self.config.dataset(name, source))


def shipped_worlds() -> list[str]:
    """Return the names of the worlds that come with the package; where none is asked for, it is the first."""
    names = (path.parent.name for path in SHIPPED.glob(f"*/{CONFIG_FILE}"))
    return sorted(names, key=lambda name: (name != DEFAULT_WORLD, name))


def find_world(name_or_path: str | Path) -> Path:
    """Return the folder of a world; see `World.from_pretrained`."""
    path = user_path(name_or_path)
    if path.suffix in PICKLES and (path.is_file() or not path.exists()):
        raise WorldError(f"{path} is a pickle; a world is a folder of safetensors and JSON files")
    if path.is_dir():
        if not (path / CONFIG_FILE).is_file():
            raise WorldError(f"{path} is not a world: it has no {CONFIG_FILE}")
        return path
    if path.exists():
        raise WorldError(f"{path} is not a world: a world is a folder of safetensors and JSON files")
    name = str(name_or_path)
    if name in shipped_worlds():
        return SHIPPED / name
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return download_world(name, DOWNLOADED)
    raise WorldError(
        f"there is no world {name!r}; those that ship are {', '.join(shipped_worlds()) or 'none'}"
    )


def policy_folder(given: str | Path | None, world: str | Path) -> Path:
    """Return the folder of a learned policy: the one that is given, or the one that is part of a world.

    Raises:
        WorldError: If none is given and there is no such world, or it has no policy.
    """
    if given:
        return user_path(given)
    try:
        folder = find_world(world) / POLICY_FOLDER
    except WorldError as error:
        raise WorldError(f"{error}; policy_folder= names a learned policy that is elsewhere") from error
    if not folder.is_dir():
        raise WorldError(f"the world {world} comes without a learned policy: give policy_folder=")
    return folder


def find_codec(name_or_path: str | Path) -> FrameCodec:
    """Return the codec of a folder that `save_codec` wrote, of a world's folder, or of a world that ships.

    Raises:
        WorldError: If there is none, or it is damaged.
    """
    path, name = user_path(name_or_path), str(name_or_path)
    return load_codec(SHIPPED / name if name in shipped_worlds() and not path.is_dir() else path)


def read_config(folder: Path) -> tuple[WorldConfig, dict[str, str]]:
    """Read a world's `config.json`; returns the description and the checksums of its files."""
    path = folder / CONFIG_FILE
    data = read_object(path)
    checksums = read_checksums(data, path)
    if data.get("kind", KIND) != KIND:
        raise WorldError(f"{path}: worlds of the kind {shown(data['kind'])} are not known")
    kind = VideoWorldConfig if data.get("kind") == KIND else WorldConfig
    try:
        return kind.from_json(data), checksums
    except WorldError as error:
        raise WorldError(f"{path}: {error}") from error


def write_config(folder: Path, config: WorldConfig) -> None:
    """Write `config.json` with the checksums of all files beside it."""
    files = [p for p in files_below(folder) if p.name not in (CONFIG_FILE, CARD_FILE)]
    data = config.to_json() | {"files": {p.relative_to(folder).as_posix(): sha256_of(p) for p in files}}
    (folder / CONFIG_FILE).write_text(json.dumps(data, indent=2) + "\n")
