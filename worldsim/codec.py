"""The frame autoencoder: one frame of pixels to a small grid of latents, and back.

The heavy layers work at 1/8, 1/4 and 1/2 of the frame's size; full resolution is only ever reached by
a pixel shuffle, so that a frame decodes in a few milliseconds on a CPU.
"""

# B batch, C latent channels, H W frame height and width, h w latent height and width

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from worldsim.errors import WorldError
from worldsim.model.pictures import frames_of, move_first
from worldsim.settings import check_settings, setting
from worldsim.storage.tensors import (
    CODEC_FILE,
    CONFIG_FILE,
    check_file,
    filling,
    load_weights,
    read_shape,
    save_weights,
    sha256_of,
    swap_folder,
)

CODEC_CONFIG_FILE = "codec.json"
DOWNSAMPLING = 8
MAX_FRAME_PIXELS = 2**21
"""A frame of 1920 x 1088: what a network draws at once must fit into memory."""
MAX_WIDTH, MAX_BLOCKS, MAX_LAYER_BYTES = 4096, 64, 2**30
"""Of one layer: its channels, its blocks, and what it makes of one frame in fp32."""


@dataclass(kw_only=True, slots=True)
class CodecConfig:
    """Shape of a `FrameCodec`."""

    height: int = setting(120, "Frame height in pixels.", minimum=1)
    width: int = setting(160, "Frame width in pixels.", minimum=1)
    latent_channels: int = setting(
        16, "Numbers kept for each square of 8 x 8 pixels.", minimum=1, maximum=MAX_WIDTH
    )
    size_multiple: int = setting(
        16, "Frames are padded to a multiple of so many pixels: 8 times the model's patch size.", minimum=1
    )
    widths: list[int] = setting(
        [64, 128, 256], "Channels at 1/2, 1/4 and 1/8 of the frame's size.", minimum=1, maximum=MAX_WIDTH
    )
    decoder_widths: list[int] = setting(
        [], "The same of the decoder, where it has others than the encoder.", minimum=1, maximum=MAX_WIDTH
    )
    encoder_blocks: list[int] = setting(
        [1, 2, 1], "Residual blocks of the encoder at 1/2, 1/4 and 1/8.", minimum=0, maximum=MAX_BLOCKS
    )
    decoder_blocks: list[int] = setting(
        [1, 1, 1], "Residual blocks of the decoder at 1/2, 1/4 and 1/8.", minimum=0, maximum=MAX_BLOCKS
    )
    latent_bound: float = setting(
        1.0,
        "Raw latents stay inside +-latent_bound. Trained ones spread by 0.1 to 0.3, so that 1 is several "
        "standard deviations: only outliers are held back.",
        above=0,
    )

    def __post_init__(self) -> None:
        check_settings(self, "codec ")
        if self.size_multiple % DOWNSAMPLING:
            raise WorldError(
                f"codec size_multiple must be a multiple of {DOWNSAMPLING}, got {self.size_multiple}"
            )
        for name in ("widths", "encoder_blocks", "decoder_blocks"):
            if len(values := list(getattr(self, name))) != 3:
                raise WorldError(f"codec {name} must be 3 numbers, got {values}")
        if len(self.decoder_widths) not in (0, 3):
            raise WorldError(f"codec decoder_widths must be 3 numbers or none, got {self.decoder_widths}")
        for name in ("widths", "decoder_widths"):
            self._check_size(name, getattr(self, name))

    def _check_size(self, name: str, widths: Sequence[int]) -> None:
        height, width = self.padded_size
        if height * width > MAX_FRAME_PIXELS:
            raise WorldError(
                f"codec height, width and size_multiple make frames of {width} x {height}, more than "
                f"{MAX_FRAME_PIXELS:,} pixels"
            )
        layers = (4 * height * width * channels >> 2 * i for i, channels in enumerate(widths, start=1))
        if max(layers, default=0) > MAX_LAYER_BYTES:
            raise WorldError(
                f"codec {name} {list(widths)} need more than {MAX_LAYER_BYTES / 2**30:g} GiB "
                f"for a layer of a frame of {width} x {height}"
            )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one frame's latents."""
        height, width = self.padded_size
        return self.latent_channels, height // DOWNSAMPLING, width // DOWNSAMPLING

    @property
    def min_weights(self) -> int:
        """Number of weights of the codec, its biases and statistics left out."""
        sides = ((self.widths, self.encoder_blocks), (self.widths_of_decoder, self.decoder_blocks))
        return sum(_min_weights(*side, self.latent_channels) for side in sides)

    @property
    def widths_of_decoder(self) -> list[int]:
        """Channels of the decoder at 1/2, 1/4 and 1/8 of the frame's size."""
        return self.decoder_widths or self.widths

    @property
    def padded_size(self) -> tuple[int, int]:
        """Height and width in pixels after padding."""
        height = -(-self.height // self.size_multiple) * self.size_multiple
        width = -(-self.width // self.size_multiple) * self.size_multiple
        return height, width


def _min_weights(widths: Sequence[int], blocks: Sequence[int], latent_channels: int) -> int:
    half, quarter, eighth = widths
    residual = sum(18 * width**2 * count for width, count in zip(widths, blocks, strict=True))
    return residual + 9 * 12 * half + 4 * half * quarter + 4 * quarter * eighth + 9 * eighth * latent_channels


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a skip.

    There is no normalisation: at batch 1 on a CPU it costs as much as a convolution, and LayerNorm over the
    channels learned more slowly. Starting each branch at zero keeps the signal's size through any depth.
    ReLU, because SiLU costs three times as much there and reconstructed no better.
    """

    def __init__(self, width: int) -> None:
        """Build a block of `width` channels in and out."""
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, width, h, w]` to the same shape."""
        return x + self.conv2(functional.relu(self.conv1(functional.relu(x))))


def _blocks(width: int, count: int) -> list[nn.Module]:
    return [ResidualBlock(width) for _ in range(count)]


def _initialise(network: nn.Module) -> None:
    # Without normalisation the first steps depend on every layer keeping the variance of what it is given.
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, ResidualBlock):
            nn.init.kaiming_normal_(module.conv1.weight, nonlinearity="relu")
            nn.init.zeros_(module.conv2.weight)


def bound_softly(x: Tensor, bound: float) -> Tensor:
    """Return `x` squashed into (-bound, bound), the identity near 0.

    The gradient of tanh vanishes exponentially: at a learning rate of 3e-3 a codec saturated it and never
    came back. This one vanishes as a power, and rates up to 4e-3 trained.
    """
    return x * torch.rsqrt(1 + (x / bound) ** 2)


def build_encoder(config: CodecConfig) -> nn.Sequential:
    """Return the network from `[B, 3, H, W]` images in [-1, 1] to `[B, C, h, w]`, not yet bounded."""
    half, quarter, eighth = config.widths
    blocks = config.encoder_blocks
    return nn.Sequential(
        nn.PixelUnshuffle(2),
        nn.Conv2d(12, half, 3, padding=1),
        *_blocks(half, blocks[0]),
        nn.Conv2d(half, quarter, 2, stride=2),
        *_blocks(quarter, blocks[1]),
        nn.Conv2d(quarter, eighth, 2, stride=2),
        *_blocks(eighth, blocks[2]),
        nn.Conv2d(eighth, config.latent_channels, 3, padding=1),
    )


def build_decoder(config: CodecConfig) -> nn.Sequential:
    """Return the network from `[B, C, h, w]` to `[B, 3, H, W]` images, nominally in [-1, 1].

    The last activation is no ReLU: ReLUs before the last layers of encoder and decoder left the
    reconstruction 2 dB behind after a short training.
    """
    half, quarter, eighth = config.widths_of_decoder
    blocks = config.decoder_blocks
    return nn.Sequential(
        nn.Conv2d(config.latent_channels, eighth, 3, padding=1),
        *_blocks(eighth, blocks[2]),
        nn.Conv2d(eighth, 4 * quarter, 1),
        nn.PixelShuffle(2),
        *_blocks(quarter, blocks[1]),
        nn.Conv2d(quarter, 4 * half, 1),
        nn.PixelShuffle(2),
        *_blocks(half, blocks[0]),
        nn.SiLU(),
        nn.Conv2d(half, 12, 3, padding=1),
        nn.PixelShuffle(2),
    )


class FrameCodec(nn.Module):
    """Encode frames to latents of unit variance and decode them again.

    "Raw" latents are what the encoder returns, inside +-`latent_bound`; latents are raw ones less
    `latent_mean`, over `latent_std` (both `[C]`, buffers saved with the weights, set by `calibrate`).

    The bound is a squash rather than a penalty on the latents' size: it holds for every frame, leaves no
    weight to tune, and tells `decode` which latents no encoder could have made. Normalising the latents in
    training by each batch's statistics was tried and lost 3 dB: it gave every channel the same contents.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: CodecConfig) -> None:
        """Build an untrained codec, with latents as the encoder returns them until `calibrate` is called."""
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config)
        self.decoder = build_decoder(config)
        self.register_buffer("latent_mean", torch.zeros(config.latent_channels))
        self.register_buffer("latent_std", torch.ones(config.latent_channels))
        _initialise(self)
        # The overloads of `to` leave this form out.
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one frame's latents."""
        return self.config.latent_shape

    def forward(
        self, images: Tensor, latent_noise: Tensor | None = None, shifts: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Do what `reconstruct` does; wrappers that distribute training call this."""
        return self.reconstruct(images, latent_noise, shifts)

    def reconstruct(
        self, images: Tensor, latent_noise: Tensor | None = None, shifts: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encode and decode images, with gradients.

        Args:
            images: `[B, 3, H, W]`, floating point in [0, 1].
            latent_noise: `[B, C, h, w]`, in units of each channel's standard deviation over this batch;
                added to the raw latents before they are decoded.
            shifts: `[S, 2]`, cells of `DOWNSAMPLING` pixels to the right and down by which the raw latents of
                the first S images are moved (`move_pictures`) before noise is added.

        Returns:
            The images again, fp32, same shape, not clamped; the raw latents `[B, C, h, w]` as encoded.
        """
        raw = self._encode_images(images)
        noisy = raw if shifts is None else move_first(raw, shifts)
        if latent_noise is not None:
            # The scale carries no gradient: shrinking all latents must not look like less noise.
            scale = raw.detach().float().std(dim=(0, 2, 3), keepdim=True)
            noisy = noisy + (latent_noise * scale).to(raw.dtype)
        return self._decode_images(noisy).float(), raw

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Encode frames.

        Args:
            frames: `[B, H, W, 3]`, uint8.

        Returns:
            Latents `[B, C, h, w]`, fp32, of unit variance per channel once calibrated.

        Raises:
            TypeError: The frames are not uint8.
            WorldError: The frames have another size.
        """
        self._check_frames(frames)
        images = frames.movedim(-1, 1).to(self.latent_mean.dtype) / 255
        raw = self._encode_images(images).float()
        mean, std = self._statistics()
        return (raw - mean) / std

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents.

        Args:
            latents: `[B, C, h, w]`, floating point, of unit variance per channel.

        Returns:
            Frames `[B, H, W, 3]`, uint8, on the latents' device.

        Raises:
            WorldError: The latents have another shape.
        """
        return frames_of(self.decode_images(latents))

    def decode_images(self, latents: Tensor) -> Tensor:
        """Decode latents as `decode` does, with gradients.

        Args:
            latents: `[B, C, h, w]`, floating point, of unit variance per channel.

        Returns:
            Images `[B, 3, H, W]`, fp32, nominally in [0, 1], not clamped.

        Raises:
            WorldError: The latents have another shape.
        """
        if latents.ndim != 4 or tuple(latents.shape[1:]) != self.latent_shape:
            expected = ", ".join(map(str, self.latent_shape))
            raise WorldError(f"expected latents [batch, {expected}], got {tuple(latents.shape)}")
        mean, std = self._statistics()
        bound = self.config.latent_bound
        raw = (latents.float() * std + mean).clamp(-bound, bound)
        return self._decode_images(raw.to(self.latent_mean.dtype)).float()

    @torch.no_grad()
    def calibrate(self, latents_sample: Tensor) -> None:
        """Set `latent_mean` and `latent_std` from raw latents of many frames.

        Args:
            latents_sample: `[N, C, h, w]`, raw latents as `reconstruct` returns them.

        Raises:
            WorldError: The sample is empty, has other channels, or holds a channel without variance or
                with values that are not finite.
        """
        sample = latents_sample.detach().double()
        if sample.ndim != 4 or sample.shape[1] != self.config.latent_channels or sample.numel() == 0:
            expected = f"[N, {self.config.latent_channels}, h, w]"
            raise WorldError(f"calibration expects raw latents {expected}, got {tuple(sample.shape)}")
        std, mean = torch.std_mean(sample, dim=(0, 2, 3), correction=0)
        if not (torch.isfinite(std).all() and (std > 1e-4).all()):
            raise WorldError(
                f"calibration needs latents that vary in every channel, got deviations {std.tolist()}"
            )
        self.latent_mean.copy_(mean)
        self.latent_std.copy_(std)

    def _statistics(self) -> tuple[Tensor, Tensor]:
        return self.latent_mean.float().view(1, -1, 1, 1), self.latent_std.float().view(1, -1, 1, 1)

    def _check_frames(self, frames: Tensor) -> None:
        if frames.dtype != torch.uint8:
            raise TypeError(f"frames must be uint8, got {frames.dtype}")
        expected = (self.config.height, self.config.width, 3)
        if frames.ndim != 4 or tuple(frames.shape[1:]) != expected:
            raise WorldError(
                f"expected frames [batch, {expected[0]}, {expected[1]}, 3], got {tuple(frames.shape)}"
            )

    def _encode_images(self, images: Tensor) -> Tensor:
        height, width = self.config.padded_size
        bottom, right = height - self.config.height, width - self.config.width
        if bottom or right:
            images = functional.pad(images, (0, right, 0, bottom), mode="replicate")
        images = (images * 2 - 1).contiguous(memory_format=torch.channels_last)
        return bound_softly(self.encoder(images), self.config.latent_bound)

    def _decode_images(self, raw: Tensor) -> Tensor:
        images = self.decoder(raw.contiguous(memory_format=torch.channels_last))
        return images[:, :, : self.config.height, : self.config.width] * 0.5 + 0.5


def save_codec(codec: FrameCodec, folder: Path) -> None:
    """Write a codec on its own, as a folder; worlds carry a copy of it."""
    with filling(folder) as part:
        save_weights(codec, part / CODEC_FILE, torch.float32)
        data = {"codec": asdict(codec.config), "files": {CODEC_FILE: sha256_of(part / CODEC_FILE)}}
        (part / CODEC_CONFIG_FILE).write_text(json.dumps(data, indent=2) + "\n")
        swap_folder(part, folder)


def load_codec(folder: Path) -> FrameCodec:
    """Read a codec that `save_codec` or a world's `save_pretrained` wrote.

    Raises:
        WorldError: If the folder holds none, or it is damaged.
    """
    found = [folder / name for name in (CODEC_CONFIG_FILE, CONFIG_FILE) if (folder / name).is_file()]
    if not found:
        raise WorldError(f"{folder} holds no codec: it has neither {CODEC_CONFIG_FILE} nor {CONFIG_FILE}")
    config, checksums = read_shape(found[0], "codec", CodecConfig, "codec")
    path = check_file(folder, CODEC_FILE, checksums.get(CODEC_FILE))
    return load_weights(lambda: FrameCodec(config), path, config.min_weights, found[0].name)
