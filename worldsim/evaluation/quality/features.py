"""Features of frames for FID and KID: a small network of our own, trained on frames of the real games.

`python -m training.features` trains it. The one that ships is in `worldsim/assets/features`; nothing is
downloaded. It is a module that `torchmetrics` takes as it is: `FrechetInceptionDistance(load_features())`.
"""

# N frames, H W frame size, h w the size that frames are scaled to, D features

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldsim.errors import WorldError
from worldsim.settings import check_settings, setting
from worldsim.storage import tensors

FEATURES_FILE = "features.safetensors"
SHIPPED_FEATURES = Path(__file__).resolve().parents[2] / "assets" / "features"
EMBED_BATCH = 64
MAX_LAYERS, MAX_LAYER_NUMBERS = 12, 2**26
MIN_VARIANCE = 1e-4
"""So that a flat picture has a logarithm; noise of a few steps of 8 bits has more."""


@dataclass(kw_only=True, slots=True)
class FeatureConfig:
    """Shape of the feature network."""

    height: int = setting(96, "Frames of all games are scaled to this height.")
    width: int = setting(128, "Frames of all games are scaled to this width.")
    widths: list[int] = setting(
        [16, 32, 64, 128],
        "Channels of the layers, each of half the resolution of the one before; multiples of 8.",
    )
    num_features: int = setting(
        64, "Numbers of a frame; the more there are, the more frames FID needs.", minimum=2
    )

    def __post_init__(self) -> None:
        """Refuse sizes that no layer can have."""
        self.widths = list(self.widths)
        if not self.widths or any(width < 8 or width % 8 for width in self.widths):
            raise WorldError(f"widths of a feature network must be multiples of 8, got {self.widths}")
        if len(self.widths) > MAX_LAYERS:
            raise WorldError(f"a feature network has at most {MAX_LAYERS} layers, got {len(self.widths)}")
        least = 2 ** len(self.widths)
        if min(self.height, self.width) < least:
            raise WorldError(
                f"a feature network of {len(self.widths)} layers needs frames of at least {least} x {least}, "
                f"got {self.height} x {self.width}"
            )
        check_settings(self, "features.")
        if self.height * self.width * self.widths[0] > MAX_LAYER_NUMBERS:
            raise WorldError(
                f"a feature network of {self.height} x {self.width} pixels and {self.widths[0]} channels is "
                f"too large: at most {MAX_LAYER_NUMBERS:,} numbers in a layer"
            )

    @property
    def min_weights(self) -> int:
        """Number of weights, biases and statistics left out."""
        pairs = zip(self.widths, self.widths[1:], strict=False)
        stages = 75 * self.widths[0] + sum(9 * (before + width) * width for before, width in pairs)
        return stages + 2 * sum(self.widths) * self.num_features


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        return images + self.conv(F.silu(self.norm(images)))


class FeatureNetwork(nn.Module):
    """Frames of any size to features of mean 0 and deviation 1 over the frames that it was trained on.

    Attributes:
        num_features: D, where `torchmetrics` looks for it.
    """

    feature_mean: Tensor
    feature_std: Tensor

    def __init__(self, config: FeatureConfig) -> None:
        super().__init__()
        self.config = config
        self.num_features = config.num_features
        first, *rest = config.widths
        # No norm before the second layer: it would hide how strong the finest structures are.
        stages: list[nn.Module] = [nn.Conv2d(3, first, 5, stride=2, padding=2)]
        for before, width in zip(config.widths, rest, strict=False):
            conv = nn.Conv2d(before, width, 3, stride=2, padding=1)
            stages.append(nn.Sequential(nn.SiLU(), conv, _Residual(width)))
        self.stages = nn.ModuleList(stages)
        self.norm = nn.BatchNorm1d(2 * sum(config.widths), affine=False)
        self.out = nn.Linear(2 * sum(config.widths), config.num_features)
        self.register_buffer("feature_mean", torch.zeros(config.num_features))
        self.register_buffer("feature_std", torch.ones(config.num_features))

    def raw_features(self, images: Tensor) -> Tensor:
        """Return features `[N, D]` of images `[N, 3, h, w]` in [0, 1], before they get unit variance.

        Training crops them: h and w may be smaller than configured.
        """
        centred = (images - 0.5).contiguous(memory_format=torch.channels_last)  # half the time on a CPU
        pooled, hidden = [], centred
        for stage in self.stages:
            hidden = stage(hidden)
            # What is there on average, and how much it varies: fine stages tell blur and noise by that.
            variance, mean = torch.var_mean(hidden, dim=(2, 3), correction=0)
            pooled += [mean, (variance + MIN_VARIANCE).log()]
        return self.out(self.norm(torch.cat(pooled, dim=1)))

    def scale(self, images: Tensor) -> Tensor:
        """Return images `[N, 3, H, W]` uint8 as `[N, 3, h, w]` fp32 in [0, 1]."""
        size = (self.config.height, self.config.width)
        scaled = images.float() / 255
        if tuple(images.shape[2:]) != size:
            scaled = F.interpolate(scaled, size, mode="bilinear", antialias=True, align_corners=False)
        return scaled.clamp(0, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return features `[N, D]` fp32 of images `[N, 3, H, W]` uint8, as `torchmetrics` hands them on."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise TypeError(f"expected uint8 images [N, 3, H, W], got {images.dtype} {tuple(images.shape)}")
        return (self.raw_features(self.scale(images)).float() - self.feature_mean) / self.feature_std

    @torch.no_grad()
    def embed(self, frames: Tensor) -> Tensor:
        """Return the features of frames `[N, H, W, 3]` uint8 on any device, `[N, D]` fp32 on the CPU."""
        if not len(frames):
            return torch.empty(0, self.num_features)
        device = self.feature_mean.device
        return torch.cat([self(part.to(device).movedim(-1, 1)).cpu() for part in frames.split(EMBED_BATCH)])

    def digest(self) -> str:
        """Return a short digest of the weights: distances of two networks cannot be compared."""
        digest = hashlib.sha256()
        for tensor in self.state_dict().values():
            digest.update(tensor.cpu().float().numpy().tobytes())
        return digest.hexdigest()[:16]

    @torch.no_grad()
    def calibrate(self, raw: Tensor) -> None:
        """Set mean and deviation of the features, from `raw_features` `[N, D]` of many frames.

        Raises:
            WorldError: If a feature does not vary, or is not finite.
        """
        std, mean = torch.std_mean(raw.double(), dim=0)
        if not (torch.isfinite(std).all() and (std > 1e-4).all()):
            raise WorldError("the feature network cannot be calibrated: a feature is the same for all frames")
        self.feature_mean.copy_(mean)
        self.feature_std.copy_(std)


def save_features(network: FeatureNetwork, folder: Path, card: Mapping[str, Any]) -> None:
    """Write a feature network as a folder, in fp16, completely or not at all.

    A folder that is there is replaced. The card says what it was trained on and what was measured.
    """
    with tensors.filling(folder) as part:
        tensors.save_weights(network, part / FEATURES_FILE, torch.float16)
        data = {
            "features": asdict(network.config),
            "card": dict(card),
            "files": {FEATURES_FILE: tensors.sha256_of(part / FEATURES_FILE)},
        }
        (part / tensors.CONFIG_FILE).write_text(json.dumps(data, indent=2) + "\n")
        tensors.swap_folder(part, folder)


def load_features(folder: Path = SHIPPED_FEATURES, device: torch.device | None = None) -> FeatureNetwork:
    """Read a feature network that `save_features` wrote, ready to be used on a device or the CPU.

    Raises:
        WorldError: If the folder holds none, or it is damaged.
    """
    path = folder / tensors.CONFIG_FILE
    if not (path.is_file() and (folder / FEATURES_FILE).is_file()):
        raise WorldError(
            f"{folder} holds no feature network: it needs {tensors.CONFIG_FILE} and {FEATURES_FILE}"
        )
    config, checksums = tensors.read_shape(path, "features", FeatureConfig, "feature network")
    weights = tensors.check_file(folder, FEATURES_FILE, checksums.get(FEATURES_FILE))
    network = tensors.load_weights(lambda: FeatureNetwork(config), weights, config.min_weights)
    return network.to(device or torch.device("cpu")).eval().requires_grad_(False)
