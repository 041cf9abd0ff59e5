"""Decoding frame by frame equals decoding the whole, from a state that is a value."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.wan_models import REASON, tiny_autoencoder
from worldsim.errors import WorldError
from worldsim.wan.autoencoder import DecoderState, StreamingAutoencoder
from worldsim.wan.autoencoder_files import load_autoencoder

diffusers = pytest.importorskip("diffusers", reason=REASON)


@pytest.fixture(scope="module")
def decoder() -> StreamingAutoencoder:
    return StreamingAutoencoder(tiny_autoencoder())


def latents(frames: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 16, frames, 4, 6, generator=generator)


def decoded(decoder: StreamingAutoencoder, video: Tensor) -> tuple[list[Tensor], list[DecoderState]]:
    pictures, states = [], [DecoderState()]
    for frame in video.unbind(2):
        shown, state = decoder.decode(frame, states[-1])
        pictures.append(shown)
        states.append(state)
    return pictures, states


def test_frame_by_frame_equals_the_whole(decoder: StreamingAutoencoder) -> None:
    video = latents()
    pictures, _ = decoded(decoder, video)
    config = decoder.autoencoder.config
    mean, std = (
        torch.tensor(each).view(1, 16, 1, 1, 1) for each in (config.latents_mean, config.latents_std)
    )
    expected = decoder.autoencoder.decode(video * std + mean).sample
    assert [each.shape for each in pictures] == [(2, 1, 3, 32, 48), *[(2, 4, 3, 32, 48)] * 3]
    assert expected.std() > 0.05
    torch.testing.assert_close(torch.cat(pictures, 1).transpose(1, 2), expected, rtol=1e-5, atol=1e-6)


def test_channels_may_lie_last(decoder: StreamingAutoencoder) -> None:
    other = StreamingAutoencoder(tiny_autoencoder()).lay_out("channels_last")
    kernels = [
        each.weight for each in other.autoencoder.decoder.modules() if isinstance(each, torch.nn.Conv3d)
    ]
    assert any(each.stride() != each.contiguous().stride() for each in kernels)
    video = latents()
    for found, expected in zip(decoded(other, video)[0], decoded(decoder, video)[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_state_is_a_value_that_can_be_gone_on_from_twice(decoder: StreamingAutoencoder) -> None:
    video = latents()
    pictures, states = decoded(decoder, video)
    kept = [each.clone() if isinstance(each, Tensor) else each for each in states[2].features]
    other, _ = decoder.decode(-video[:, :, 2], states[2])
    again, _ = decoder.decode(video[:, :, 2], states[2])
    assert torch.equal(again, pictures[2])
    assert not torch.allclose(other, again)
    for before, after in zip(kept, states[2].features, strict=True):
        assert torch.equal(before, after) if isinstance(before, Tensor) else before == after
    assert states[3].num_bytes == states[4].num_bytes > 0


def test_a_saved_autoencoder_is_loaded(decoder: StreamingAutoencoder, tmp_path: Path) -> None:
    decoder.autoencoder.save_pretrained(tmp_path / "vae")
    frame = latents(1)[:, :, 0]
    for path in (tmp_path, tmp_path / "vae"):
        found, _ = load_autoencoder(path).decode(frame, DecoderState())
        assert torch.equal(found, decoder.decode(frame, DecoderState())[0])


def test_what_does_not_fit_is_named(decoder: StreamingAutoencoder, tmp_path: Path) -> None:
    with pytest.raises(WorldError, match=r"latents must be \[batch, 16, h, w\], got \[2, 8, 4, 6\]"):
        decoder.decode(torch.zeros(2, 8, 4, 6), DecoderState())
    _, state = decoder.decode(latents()[:, :, 0], DecoderState())
    with pytest.raises(WorldError, match="do not go on from a video of batch 2, height 4 and width 6"):
        decoder.decode(torch.zeros(2, 16, 4, 8), state)
    with pytest.raises(WorldError, match="only Wan 2.1's is supported"):
        StreamingAutoencoder(tiny_autoencoder(patch_size=2, in_channels=12, out_channels=12))
    for wrong in ({"temperal_downsample": [True] * 3}, {"dim_mult": [1, 1, 1]}, {"out_channels": 4}):
        with pytest.raises(WorldError, match="does not make 4 x 8 x 8 pixels a latent"):
            StreamingAutoencoder(tiny_autoencoder(**wrong))
    with pytest.raises(WorldError, match=r"latents_mean must be 16 finite numbers, got \[0\.0, 0\.0\]"):
        StreamingAutoencoder(tiny_autoencoder(latents_mean=[0.0] * 2))
    with pytest.raises(WorldError, match="latents_std must be 16 positive numbers"):
        StreamingAutoencoder(tiny_autoencoder(latents_std=[1.0] * 15 + [0.0]))
    with pytest.raises(WorldError, match="does not exist"):
        load_autoencoder(tmp_path / "none")
    with pytest.raises(WorldError, match="holds no checkpoint"):
        load_autoencoder(tmp_path)


def test_a_video_is_encoded_as_the_library_does(decoder: StreamingAutoencoder) -> None:
    generator = torch.Generator().manual_seed(2)
    video = torch.rand(1, 5, 3, 32, 48, generator=generator) * 2 - 1
    found = decoder.encode(video)
    config = decoder.autoencoder.config
    mean, std = (
        torch.tensor(each).view(1, 16, 1, 1, 1) for each in (config.latents_mean, config.latents_std)
    )
    expected = decoder.autoencoder.encode(video.transpose(1, 2)).latent_dist.mode()
    assert found.shape == (1, 16, 2, 4, 6)
    torch.testing.assert_close(found, (expected - mean) / std)
    with pytest.raises(WorldError, match=r"a video has 1, 5, 9 \.\.\. pictures to encode"):
        decoder.encode(video[:, :4])


def test_features_keep_their_shapes_from_the_first_frame_on(decoder: StreamingAutoencoder) -> None:
    _, states = decoded(decoder, latents(3))
    shapes = [[each.shape for each in state.features] for state in states]
    assert shapes[1] == shapes[2] == shapes[3] == [(2, *each[1:]) for each in decoder.feature_shapes(4, 6)]


ORIGINAL = (
    (r"^quant_conv", "conv1"),
    (r"^post_quant_conv", "conv2"),
    (r"coder\.conv_in", "coder.conv1"),
    (r"coder\.norm_out", "coder.head.0"),
    (r"coder\.conv_out", "coder.head.2"),
    (r"mid_block\.attentions\.0", "middle.1"),
    (r"mid_block\.resnets\.0", "middle.0"),
    (r"mid_block\.resnets\.1", "middle.2"),
    (r"encoder\.down_blocks", "encoder.downsamples"),
    (r"decoder\.up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"decoder.upsamples.{4 * int(m[1]) + int(m[2])}"),
    (r"decoder\.up_blocks\.(\d)\.upsamplers\.0", lambda m: f"decoder.upsamples.{4 * int(m[1]) + 3}"),
    (r"\.norm1\.", ".residual.0."),
    (r"(?<!coder)\.conv1\.", ".residual.2."),
    (r"\.norm2\.", ".residual.3."),
    (r"(?<!coder)\.conv2\.", ".residual.6."),
    (r"\.conv_shortcut\.", ".shortcut."),
)
"""Names of diffusers on the left, those that Wan's authors published on the right."""


def original_name(name: str) -> str:
    for pattern, other in ORIGINAL:
        name = re.sub(pattern, other, name)
    return name


def test_the_original_layout_is_read(tmp_path: Path) -> None:
    module = tiny_autoencoder(num_res_blocks=2, dim_mult=[1, 2, 4, 4])
    weights = {original_name(name): tensor for name, tensor in module.state_dict().items()}
    assert "decoder.upsamples.14.residual.6.weight" in weights
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKLWan", **module.config}))
    torch.save(weights, tmp_path / "Wan2.1_VAE.pth")
    found = load_autoencoder(tmp_path).autoencoder.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in module.state_dict().items())
    torch.save({n: t for n, t in weights.items() if n != "conv1.bias"}, tmp_path / "Wan2.1_VAE.pth")
    with pytest.raises(WorldError, match=r"it lacks quant_conv\.bias"):
        load_autoencoder(tmp_path)
