"""A player that learned: a small network from the last frames to the buttons, trained with PPO.

Its folder holds `policy.safetensors` and `policy.json`; nothing but PyTorch is needed to play it. How it is
trained is in `training.rl`.
"""

# B batch, A action axes, F frames seen, h w size they are seen in

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from policies.sight import Sight

FORMAT = 2
"""Of what is written; policies of format 1 act at every frame."""
WEIGHTS_FILE, DESCRIPTION_FILE = "policy.safetensors", "policy.json"
NUM_FEATURES = 256
MAX_DESCRIPTION_BYTES = 2**20
MAX_VALUES, MAX_REPEAT = 1024, 1000
"""Of an axis, and frames that an action is held for."""
FLOATS = {torch.float64, torch.float32, torch.bfloat16, torch.float16}


class SightEncoder(nn.Module):
    """From what is seen to features: the three convolutions of Mnih et al. (2015), and a layer on top.

    Args:
        sight: What is seen.

    Raises:
        ValueError: If that is too small for the convolutions, which need 36 x 36.
    """

    num_features = NUM_FEATURES

    def __init__(self, sight: Sight) -> None:
        super().__init__()
        if min(sight.height, sight.width) < 36:
            raise ValueError(f"a player must see at least 36 x 36, got {sight.height} x {sight.width}")
        self.convolutions = nn.Sequential(
            nn.Conv2d(sight.shape[0], 32, kernel_size=8, stride=4),
            nn.ReLU(),
            nn.Conv2d(32, 64, kernel_size=4, stride=2),
            nn.ReLU(),
            nn.Conv2d(64, 64, kernel_size=3),
            nn.ReLU(),
            nn.Flatten(),
        )
        with torch.no_grad():
            width = self.convolutions(torch.zeros(1, *sight.shape)).shape[1]
        self.linear = nn.Sequential(nn.Linear(width, NUM_FEATURES), nn.ReLU())

    def forward(self, seen: Tensor) -> Tensor:
        """Return features `[B, NUM_FEATURES]` of what is seen, `[B, F * 3, h, w]`, 0 to 1."""
        return self.linear(self.convolutions(seen))


class ActorNetwork(nn.Module):
    """What decides: the encoder, and for each axis a logit for each of its values.

    Args:
        sight: What is seen.
        num_values: Number of values of each axis.
    """

    def __init__(self, sight: Sight, num_values: Sequence[int]) -> None:
        super().__init__()
        self.num_values = list(num_values)
        self.encoder = SightEncoder(sight)
        self.head = nn.Linear(NUM_FEATURES, sum(num_values))

    def forward(self, seen: Tensor) -> Tensor:
        """Return logits `[B, sum(num_values)]` of what is seen, `[B, F * 3, h, w]` uint8."""
        return self.head(self.encoder(seen.float() / 255))

    @torch.inference_mode()
    def choose(self, seen: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return actions, `[B, A]` int64: the likeliest, or drawn with a generator on the same device."""
        with torch.autocast(seen.device.type, enabled=False):
            axes = self(seen).split(self.num_values, dim=1)
        if generator is None:
            return torch.stack([logits.argmax(dim=1) for logits in axes], dim=1)
        drawn = [torch.multinomial(logits.softmax(dim=1), 1, generator=generator) for logits in axes]
        return torch.cat(drawn, dim=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyDescription:
    """What `policy.json` says beside the checksum.

    Attributes:
        scenario: Name of the game, or of the world made from it, that it plays.
        actions: The buttons, as the world's own description has them.
        num_values: Number of values of each axis of those.
        sight: What it sees.
        action_repeat: Frames that it holds an action for; it sees those at which it decides.
        training: Where it was trained, for how many steps, with which seed; free-form JSON.
    """

    scenario: str
    actions: dict[str, Any]
    num_values: list[int]
    sight: Sight
    action_repeat: int = 1
    training: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object that `from_json` reads."""
        return {"format": FORMAT, "kind": "ppo"} | asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PolicyDescription:
        """Build from `to_json`'s object.

        Raises:
            ValueError: If a field is missing or of the wrong form.
        """
        if data.get("format") not in (1, FORMAT) or data.get("kind") != "ppo":
            found = f"format {data.get('format')!r} of kind {data.get('kind')!r}"
            raise ValueError(f"expected a policy of format 1 or {FORMAT} and of kind 'ppo', got {found}")
        try:
            repeat = 1 if data["format"] == 1 else data["action_repeat"]
            if isinstance(repeat, bool) or not isinstance(repeat, int) or repeat < 1:
                raise ValueError(f"action_repeat must be a whole number of at least 1, got {repeat!r}")
            if repeat > MAX_REPEAT:
                raise ValueError(f"action_repeat must be at most {MAX_REPEAT}, got {repeat}")
            scenario, num_values = data["scenario"], data["num_values"]
            if not isinstance(scenario, str) or not scenario.isprintable() or len(scenario) > 100:
                raise ValueError("scenario must be printable text of at most 100 characters")
            if not isinstance(num_values, list) or not all(map(_is_count, num_values)) or not num_values:
                raise TypeError(f"num_values must be a list of integers from 1 to {MAX_VALUES}")
            return cls(
                scenario=scenario,
                actions=dict(data["actions"]),
                num_values=num_values,
                sight=Sight.from_json(data["sight"]),
                action_repeat=repeat,
                training=dict(data["training"]),
            )
        except KeyError as error:
            raise ValueError(f"there is no field {error}") from error
        except TypeError as error:
            raise ValueError(f"a field is not of the expected form: {error}") from error


class PPOPolicy:
    """Play as was learned.

    Args:
        num_values: Number of values of each axis of the world's actions.
        folder: The policy's folder.
        deterministic: Press what is likeliest, instead of drawing from the probabilities.
        device: Where to compute; one frame at a time a CPU is fast enough.

    Raises:
        FileNotFoundError: If there is no such folder, or a file of it is missing.
        ValueError: If it is damaged, or learned with other axes.
    """

    def __init__(
        self,
        num_values: Sequence[int],
        folder: str | Path,
        *,
        deterministic: bool = True,
        device: str | torch.device = "cpu",
    ) -> None:
        self.description, self.network = load_policy(Path(folder))
        if self.description.num_values != list(num_values):
            raise ValueError(
                f"the policy in {folder} learned {self.description.scenario}, with axes of "
                f"{self.description.num_values} values, but here they have {list(num_values)}"
            )
        self._sight = self.description.sight
        self._device = torch.device(device)
        self.network.to(self._device)
        self._deterministic = deterministic
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Start a new episode; the seed decides what is drawn."""
        self._generator = torch.Generator(self._device).manual_seed(seed)
        self._seen: Tensor | None = None
        self._held: np.ndarray | None = None
        self._frames_left = 0

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return the next action, `[axes]` int64, for `observation`, `[height, width, 3]` uint8."""
        if self._held is None or self._frames_left == 0:
            seen = self._look(observation)
            generator = None if self._deterministic else self._generator
            self._held = self.network.choose(seen, generator)[0].cpu().numpy()
            self._frames_left = self.description.action_repeat
        self._frames_left -= 1
        return self._held.copy()

    def watch(self, observation: np.ndarray) -> None:
        """See a frame at which somebody else acts; whatever was held is let go."""
        self._held = None
        if self._frames_left == 0:
            self._look(observation)
            self._frames_left = self.description.action_repeat
        self._frames_left -= 1

    def _look(self, observation: np.ndarray) -> Tensor:
        frames = torch.from_numpy(np.ascontiguousarray(observation))[None].to(self._device)
        seen = self._seen
        self._seen = self._sight.begin(frames) if seen is None else self._sight.follow(seen, frames)
        return self._seen


def save_policy(folder: Path, network: ActorNetwork, description: PolicyDescription) -> None:
    """Write a policy's two files into a folder, which is created if it is missing.

    Raises:
        OSError: If they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / WEIGHTS_FILE
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    try:
        save_file(tensors, weights)
    except SafetensorError as error:
        raise OSError(f"{weights} cannot be written: {error}") from error
    data = description.to_json() | {"files": {WEIGHTS_FILE: _sha256(weights)}}
    (folder / DESCRIPTION_FILE).write_text(json.dumps(data, indent=2) + "\n")


def load_policy(folder: Path) -> tuple[PolicyDescription, ActorNetwork]:
    """Read a policy that `save_policy` wrote, onto the CPU.

    Raises:
        FileNotFoundError: If there is no such folder, or a file of it is missing.
        ValueError: If it is damaged, altered or of another kind.
    """
    path, weights = folder / DESCRIPTION_FILE, folder / WEIGHTS_FILE
    for file in (path, weights):
        if not file.is_file():
            raise FileNotFoundError(f"{folder} is not the folder of a learned policy: it has no {file.name}")
    try:
        if path.stat().st_size > MAX_DESCRIPTION_BYTES:
            raise ValueError(f"it is larger than {MAX_DESCRIPTION_BYTES:,} bytes")
        data = json.loads(path.read_text(encoding="utf-8-sig"))
        description = PolicyDescription.from_json(data)
        if data["files"][WEIGHTS_FILE] != _sha256(weights):
            raise ValueError(f"the SHA-256 of {WEIGHTS_FILE} is another: it is damaged or was altered")
        with torch.device("cpu"):  # whatever default the process has set
            network = ActorNetwork(description.sight, description.num_values).float()
        network.load_state_dict(_read_weights(weights))
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        kind = "it is nested too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise ValueError(f"{path} describes no policy: {kind}") from error
    return description, network.eval().requires_grad_(False)


def _read_weights(path: Path) -> dict[str, Tensor]:
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS or not tensor.isfinite().all():
            raise ValueError(f"{name!r} in {path.name} does not hold finite floating-point numbers")
    return tensors


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_VALUES


def policy_digest(folder: Path) -> str:
    """Return the first digits of the SHA-256 of a policy's weights.

    Raises:
        FileNotFoundError: If there are none.
    """
    return _sha256(folder / WEIGHTS_FILE)[:16]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
