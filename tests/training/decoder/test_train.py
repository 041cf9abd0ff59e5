from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.fakes import save_tiny_world, tiny_codec_config, write_tiny_dataset
from training.codec import TrainCodecConfig, main, train_decoder, write_world
from training.data.latents import DataConfig
from training.decoder.footage import draw_own, load_footage
from training.decoder.measures import second_difference, stillest
from training.decoder.settings import DecoderConfig, OwnLatentsConfig, PatchCriticConfig
from training.engine.fabric import FabricConfig
from training.engine.loop import LoopConfig
from worldsim.codec import CodecConfig, FrameCodec, load_codec, save_codec
from worldsim.data.sequences import load_episodes
from worldsim.errors import WorldError
from worldsim.simulator import Simulator
from worldsim.storage.tensors import CODEC_FILE
from worldsim.world import World
from worldsim.world.rewrite import is_same_encoder

OWN = OwnLatentsConfig(pieces=5, every=2, context_frames=3, horizon=3, at_a_time=3)
SLIM = [2, 4, 8]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_world(tmp_path_factory.mktemp("world") / "tiny")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_dataset(tmp_path_factory.mktemp("video"), frames=20)


def settings(out: Path, world: Path, video: Path) -> TrainCodecConfig:
    decoder = DecoderConfig(
        alone=True,
        widths=SLIM,
        world=str(world),
        reconstruct_steps=2,
        own=OWN,
        critic=PatchCriticConfig(widths=[4, 4, 4], alone_steps=1, crop=16),
    )
    return TrainCodecConfig(
        out=str(out),
        data=DataConfig(train=[str(video)], heldout=[str(video)], num_workers=1),
        init=str(world),
        decoder=decoder,
        loop=LoopConfig(num_steps=4, warmup_steps=1, decay_fraction=0, ema_decay=0.5, checkpoint_seconds=1e9),
        fabric=FabricConfig(accelerator="cpu", precision="32-true"),
        batch_size=4,
    )


def settings_of(config: TrainCodecConfig, **changes: object) -> TrainCodecConfig:
    return replace(config, decoder=replace(config.decoder, **changes))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, world: Path, video: Path) -> Path:
    out = tmp_path_factory.mktemp("run") / "decoder"
    train_decoder(settings(out, world, video))
    return out


def test_the_encoder_stays_bit_for_bit_and_the_decoder_learns(trained: Path, world: Path) -> None:
    before, after = load_codec(world), load_codec(trained / "codec")
    frames = torch.randint(256, (3, 32, 48, 3), dtype=torch.uint8)
    assert is_same_encoder(before, after) and torch.equal(before.encode(frames), after.encode(frames))
    assert after.config.widths == before.config.widths and after.config.decoder_widths == SLIM
    assert load_codec(trained / "reconstruct" / "codec").config == after.config


def test_measures_and_pictures_lie_beside_the_codec(trained: Path) -> None:
    measures = json.loads((trained / "measures.json").read_text())
    names = {f"{kind}_{name}" for kind in ("encoded", "own") for name in ("psnr_db", "energy", "flicker")}
    assert set(measures["before"]) == set(measures["after"]) == names
    assert measures["before"] != measures["after"] and measures["steps"] == 4
    assert set(measures["decode_ms_2_threads"]) == {"before", "after"}
    assert (trained / "decoded.png").stat().st_size > 1000


def test_a_resumed_training_equals_an_unbroken_one(
    trained: Path, world: Path, video: Path, tmp_path: Path
) -> None:
    """Own latents are drawn anew in between, and both networks and the critic's weights go on."""
    for steps in (1, 3, 4):
        config = settings(tmp_path / "run", world, video)
        train_decoder(replace(config, loop=replace(config.loop, num_steps=steps)))
    whole, parts = load_codec(trained / "codec"), load_codec(tmp_path / "run" / "codec")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, parts.state_dict()[name]), name


def test_without_a_world_the_present_decoder_goes_on_from_encoded_latents(
    world: Path, video: Path, tmp_path: Path
) -> None:
    config = settings_of(settings(tmp_path, world, video), world="", widths=[], reconstruct_steps=0)
    found = train_decoder(replace(config, learning_rate=1e-9))
    assert set(found) == {"encoded_psnr_db", "encoded_energy", "encoded_flicker"}
    before, after = load_codec(world), load_codec(tmp_path / "codec")
    assert after.config == before.config
    for old, new in zip(before.decoder.parameters(), after.decoder.parameters(), strict=True):
        torch.testing.assert_close(old, new, atol=1e-6, rtol=0)


def test_own_latents_are_what_the_world_draws_after_recorded_frames(world: Path, video: Path) -> None:
    loaded = World.from_pretrained(world)
    footage = load_footage(load_episodes([video]), loaded.codec, torch.device("cpu"), 1)
    own, again = (draw_own(Simulator(loaded), footage.video, OWN, seed) for seed in (3, 3))
    assert own.latents.shape == (5, 4, 4, 4, 6) and own.index.shape == (5, 4)
    assert torch.equal(own.latents, again.latents) and torch.equal(own.index, again.index)
    assert torch.equal(own.latents[:, 0], footage.video.latents[own.index[:, 0]])
    assert not torch.equal(own.latents[:, 1], footage.video.latents[own.index[:, 1]])
    assert (own.index.diff(dim=1) == 1).all()
    assert (own.index // 20 == own.index[:, :1] // 20).all()  # within one episode
    other = draw_own(Simulator(loaded), footage.video, OWN, 4)
    assert not torch.equal(own.latents, other.latents)


def test_a_world_takes_the_decoder_and_keeps_all_else(trained: Path, world: Path, tmp_path: Path) -> None:
    config = settings_of(settings(tmp_path / "new", world, tmp_path), alone=False, into=str(world))
    write_world(replace(config, init=str(trained / "codec")))
    before, after = World.from_pretrained(world), World.from_pretrained(tmp_path / "new")
    for name in ("model.safetensors", "starts/start-00.mp4"):
        assert (world / name).read_bytes() == (tmp_path / "new" / name).read_bytes()
    assert is_same_encoder(before.codec, after.codec) and before.identity == after.identity
    latents = torch.randn(2, 4, 4, 6)
    assert torch.equal(after.codec.decode(latents), load_codec(trained / "codec").decode(latents))
    assert "2, 4, 8 channels" in (tmp_path / "new" / "README.md").read_text()
    assert after.num_parameters < before.num_parameters


def test_a_world_stored_in_bf16_keeps_the_bytes_of_its_encoder(
    trained: Path, world: Path, tmp_path: Path
) -> None:
    World.from_pretrained(world).save_pretrained(tmp_path / "half")
    half = load_codec(tmp_path / "half")
    made = FrameCodec(replace(half.config, decoder_widths=SLIM))
    made.encoder.load_state_dict(half.encoder.state_dict())
    made.latent_mean.copy_(half.latent_mean)
    made.latent_std.copy_(half.latent_std)
    save_codec(made, tmp_path / "codec")
    config = settings_of(
        settings(tmp_path / "new", world, tmp_path), alone=False, into=str(tmp_path / "half")
    )
    write_world(replace(config, init=str(tmp_path / "codec")))
    assert is_same_encoder(load_codec(tmp_path / "new"), half)
    assert (tmp_path / "new" / "codec.safetensors").stat().st_size < 3 * sum(
        parameter.numel() for parameter in made.parameters()
    )
    with pytest.raises(WorldError, match="another encoder than world 'tiny'"):
        write_world(replace(config, init=str(trained / "codec"), out=str(tmp_path / "other")))
    assert not (tmp_path / "other").exists()


def test_a_world_in_8_bits_takes_a_decoder_in_8_bits(tmp_path: Path) -> None:
    World.from_pretrained("grid-recall").save_pretrained(tmp_path / "half", bits=8)
    made = load_codec(tmp_path / "half")
    torch.nn.init.normal_(max(made.decoder.parameters(), key=torch.numel), std=0.02)
    save_codec(made, tmp_path / "codec")
    config = settings_of(settings(tmp_path / "new", tmp_path, tmp_path), alone=False, into=f"{tmp_path}/half")
    write_world(replace(config, init=str(tmp_path / "codec")))
    stored, before = (load_file(tmp_path / name / CODEC_FILE) for name in ("new", "half"))
    assert {name: tensor.dtype for name, tensor in stored.items()} == {
        name: tensor.dtype for name, tensor in before.items()
    }
    assert torch.int8 in {tensor.dtype for tensor in stored.values()}
    found = load_codec(tmp_path / "new").state_dict()
    for name, tensor in made.state_dict().items():
        assert (found[name] - tensor).norm() <= 0.01 * tensor.norm(), name


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda run: replace(run, init=""), "need init="),
        (lambda run: settings_of(run, widths=[2, 4]), "3 numbers or none"),
        (lambda run: settings_of(run, reconstruct_steps=0), "random weights"),
        (lambda run: settings_of(run, own=replace(OWN, horizon=30)), "data.train: no episode"),
        (lambda run: replace(run, data=replace(run.data, train=[])), "no folder"),
        (lambda run: settings_of(run, alone=False), "need decoder.alone=true"),
        (lambda run: replace(run, batch_size=1), "batch_size must be at least 2"),
        (lambda run: replace(run, loop=replace(run.loop, global_batch_size=8)), "an update is one pass"),
    ],
    ids=[
        "no init",
        "widths",
        "no first stage",
        "short episodes",
        "no data",
        "not alone",
        "no own pair",
        "passes",
    ],
)
def test_what_cannot_be_trained_is_refused(
    make, sentence: str, world: Path, video: Path, tmp_path: Path
) -> None:
    with pytest.raises(WorldError, match=sentence):
        train_decoder(make(settings(tmp_path / "run", world, video)))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_world_of_another_encoder_and_frames_of_another_size_are_refused(
    world: Path, video: Path, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    save_codec(FrameCodec(tiny_codec_config()), tmp_path / "codec")
    with pytest.raises(WorldError, match="another encoder than init="):
        train_decoder(replace(settings(tmp_path / "a", world, video), init=str(tmp_path / "codec")))
    wide = CodecConfig(height=32, width=64, latent_channels=4, widths=[4, 4, 8])
    save_codec(FrameCodec(wide), tmp_path / "wide")
    config = settings_of(settings(tmp_path / "b", world, video), world="")
    with pytest.raises(WorldError, match="frames of 48 x 32, the codec makes 64 x 32"):
        train_decoder(replace(config, init=str(tmp_path / "wide")))


def test_flicker_is_measured_where_least_changes() -> None:
    still = torch.full((3, 8, 8, 3), 100, dtype=torch.uint8)
    moving = torch.arange(0, 240, 40, dtype=torch.uint8)[:, None, None, None].expand(6, 8, 8, 3)
    frames = torch.cat([moving, still])
    triples = torch.tensor([[0, 1, 2], [6, 7, 8], [3, 4, 5]])
    assert stillest(frames, triples).tolist() == [1]
    shaking = torch.stack([still[0], still[0] + 4, still[0]])[None]
    assert second_difference(shaking) == 8.0 and second_difference(still[None]) == 0.0
    assert second_difference(moving[None, :3]) == 0.0  # what moves steadily does not flicker


def test_the_command_says_what_is_missing(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["codec", "decoder.alone=true"])
    with pytest.raises(SystemExit):
        main()
    assert "need init=" in capsys.readouterr().err
