"""Checkpoints become worlds, whole or not at all, within a bounded memory; what cannot is one sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from tests.fakes import write_tiny_dataset
from tests.wan_models import (
    REASON,
    import_tiny_world,
    library_transformer,
    save_tiny_checkpoint,
    tiny_autoencoder,
    tiny_transformer,
    zero_weights,
)
from training.cli.entry import describe_error
from training.import_wan.command import ImportWanConfig, main
from training.import_wan.sources import find_checkpoint, licence_of
from training.import_wan.text import cleaned, encode_text
from worldsim.envs.single import ARL2WorldEnv
from worldsim.errors import WorldError
from worldsim.storage.tensors import CONFIG_FILE
from worldsim.wan.config import CausalConfig
from worldsim.world import World
from worldsim.world.video import VideoWorld

pytest.importorskip("diffusers", reason=REASON)

FRAMES = CausalConfig(block=1, window=4)
SMALL = {"height": 32, "width": 48, "causal": FRAMES}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def run(checkpoint: Path | str, out: Path, **settings: Any) -> None:
    main.run(ImportWanConfig(checkpoint=str(checkpoint), out=str(out), **(SMALL | settings)))


def assert_refused(match: str, call: Callable[[], object]) -> None:
    with pytest.raises((WorldError, OSError), match=match) as raised:
        call()
    assert "\n" not in describe_error(raised.value)


def test_a_training_checkpoint_becomes_a_world(checkpoint: Path, tmp_path: Path) -> None:
    run(checkpoint, tmp_path / "wan", actions="doom-rooms", licence="Apache-2.0")
    world = World.from_pretrained(tmp_path / "wan")
    assert isinstance(world, VideoWorld)
    found = world.transformer.state_dict()
    for name, tensor in tiny_transformer().state_dict().items():
        assert torch.equal(found[name], tensor.bfloat16().float()), name
    assert [tuple(each.weight.shape) for each in world.transformer.action_embedding] == [(3, 24)] * 3
    assert not any(each.weight.any() for each in world.transformer.action_embedding)
    codec = tiny_autoencoder().state_dict()
    own = world.autoencoder.autoencoder.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in codec.items())
    assert world.config.name == "wan" and world.config.actions.num_values == (3, 3, 3)
    card = (tmp_path / "wan" / "README.md").read_text()
    for told in ("held for 4 displayed frames", "Licence: Apache-2.0", "checkpoint: model.pt", "No text was"):
        assert told in card


def test_a_pipeline_of_diffusers_becomes_the_same_world(tmp_path: Path) -> None:
    library_transformer(tiny_transformer()).save_pretrained(tmp_path / "pipeline" / "transformer")
    tiny_autoencoder().save_pretrained(tmp_path / "pipeline" / "vae")
    (tmp_path / "pipeline" / "README.md").write_text(
        "---\nlicense: apache-2.0\ntags: [video]\n---\n# Model\n"
    )
    folder = import_tiny_world(tmp_path, causal=FRAMES, checkpoint=tmp_path / "pipeline")
    world = World.from_pretrained(folder)
    assert isinstance(world, VideoWorld)
    found = world.transformer.state_dict()
    assert all(torch.equal(found[name], each) for name, each in tiny_transformer().state_dict().items())
    assert world.config.licence == "apache-2.0"


MEASURE = """
import sys, torch
from pathlib import Path
from training.import_wan.weights import open_checkpoint
from worldsim.wan.checkpoint import load_transformer

def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024

file, out = Path(sys.argv[1]), Path(sys.argv[2])
open_checkpoint(file, None)
written = lambda: open_checkpoint(file, None).write(out, [], torch.bfloat16)
for work in (written, lambda: load_transformer(file)):
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    work()
    print((peak() - before) / file.stat().st_size)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is measured by Linux")
def test_peak_memory_is_bounded_by_the_file(tmp_path: Path) -> None:
    """Of a .pt of fp32: what is loaded in bf16 is half of it, what is written passes through in parts."""
    weights = zero_weights(dim=384, ffn_dim=1536, num_heads=4, num_layers=10)
    (tmp_path / "config.json").write_text(json.dumps({"num_heads": 4, "text_len": 12}))
    torch.save({"generator_ema": weights}, tmp_path / "model.pt")
    assert (tmp_path / "model.pt").stat().st_size > 90e6
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "model.pt"), str(tmp_path / "out")]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    written, loaded = map(float, told.stdout.split())
    assert written < 0.4 and loaded < 0.75, told.stdout


def test_a_text_is_encoded_as_the_pipeline_does(checkpoint: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason=REASON)
    from diffusers import WanPipeline
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {word: number for number, word in enumerate(("<pad>", "</s>", "<unk>", "a", "dark", "room"))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", words["</s>"])]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    fast.save_pretrained(tmp_path / "text" / "tokenizer")
    torch.manual_seed(0)
    shape = {"d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4, "vocab_size": 6}
    encoder = transformers.UMT5EncoderModel(transformers.UMT5Config(**shape)).bfloat16().eval()
    encoder.save_pretrained(tmp_path / "text" / "text_encoder")
    config = tiny_transformer().config
    pipeline = SimpleNamespace(tokenizer=fast, text_encoder=encoder, _execution_device="cpu")
    for text in ("a   dark &amp; room", ""):
        with torch.no_grad():
            expected = WanPipeline._get_t5_prompt_embeds(
                pipeline, text, max_sequence_length=12, device="cpu"
            )[0]
        found = encode_text(text, tmp_path / "text", config)
        assert found.abs().sum() > 0 and not expected[len(found) :].any()
        torch.testing.assert_close(found, expected[: len(found)])
    settings = {"text": "a dark\n room", "text_encoder": str(tmp_path / "text")}
    run(checkpoint, tmp_path / "world", **settings)
    stored = load_file(tmp_path / "world" / "text.safetensors")["text"]
    assert torch.equal(stored, encode_text("a dark room", tmp_path / "text", config))
    assert "Text: a dark room" in (tmp_path / "world" / "README.md").read_text()
    save_file({"any": stored}, tmp_path / "embedding.safetensors")
    run(checkpoint, tmp_path / "other", text_embedding=str(tmp_path / "embedding.safetensors"))
    assert torch.equal(load_file(tmp_path / "other" / "text.safetensors")["text"], stored)
    save_file({"any": torch.zeros(1, 5)}, tmp_path / "embedding.safetensors")
    wrong = {"text_embedding": str(tmp_path / "embedding.safetensors")}
    assert_refused(
        r"must hold one tensor \[1 to 12, 32\], got \[\[1, 5\]\]",
        lambda: run(checkpoint, tmp_path / "x", **wrong),
    )
    assert_refused("holds no text encoder", lambda: encode_text("a", tmp_path / "world", config))


def test_start_moments_come_from_gameplay_video(checkpoint: Path, tmp_path: Path) -> None:
    write_tiny_dataset(tmp_path / "video", frames=14)
    given = {"starts": str(tmp_path / "video"), "actions": "doom-rooms", "num_starts": 2, "start_frames": 8}
    run(checkpoint, tmp_path / "world", **given)
    env = ARL2WorldEnv(tmp_path / "world")
    assert len(env.start_names) == 3 and env.start_names[0] == "from-text"
    frame, _ = env.reset(seed=0, options={"start": 2})
    assert np.array_equal(frame, env.world.starts[2].frames[-1])
    assert env.get_state().memory.num_committed.tolist() == [2], "the latest 5 of 8 frames"
    assert env.step(np.array([1, 0, 0]))[4]["frames_until_action"] == 3


def test_texts_are_cleaned() -> None:
    assert cleaned("  a &amp;amp; b\n\tc ") == "a & b c"


def test_nothing_is_left_of_an_import_that_fails(tmp_path: Path) -> None:
    model = tiny_transformer()
    model.head.head.bias[3] = torch.nan
    path = save_tiny_checkpoint(tmp_path / "checkpoint", model)
    assert_refused(r"head\.head\.bias holds NaN", lambda: run(path, tmp_path / "out" / "world"))
    left = [each.relative_to(tmp_path) for each in tmp_path.rglob("*") if each.is_file()]
    assert all(each.parts[0] == "checkpoint" or each.suffix == ".lock" for each in left)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no multiple": ({"width": 50}, r"must be multiples of 16, got \[32, 50\]"),
    "no window": ({"causal": CausalConfig(window=None)}, "a world's window must be a number"),
    "no game": ({"actions": "nowhere"}, "actions=nowhere is no game .*, no folder of gameplay video"),
    "no entry": ({"group": "critic"}, "has no entry critic; it has generator"),
    "no autoencoder": ({"autoencoder": "nowhere"}, "nowhere does not exist"),
    "no encoder": ({"text": "a room"}, "text needs the folder of its encoder"),
    "no encoder's folder": (
        {"text_encoder": "nowhere"},
        "nowhere does not exist; text_encoder names a folder",
    ),
    "both": ({"text_embedding": "a", "text_encoder": "b"}, "give one of them"),
    "no embedding": ({"text_embedding": "nowhere"}, "nowhere does not exist; text_embedding names"),
    "no video": ({"starts": "nowhere"}, "nowhere"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_fit_nothing_are_named(name: str, checkpoint: Path, tmp_path: Path) -> None:
    settings, message = REFUSED[name]
    assert_refused(message, lambda: run(checkpoint, tmp_path / "out", **settings))
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_not_replaced(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert_refused("is there already", lambda: run(checkpoint, tmp_path))
    alone = tmp_path / "alone" / "model.pt"
    alone.parent.mkdir()
    (alone.parent / CONFIG_FILE).write_text((checkpoint.parent / CONFIG_FILE).read_text())
    alone.write_bytes(checkpoint.read_bytes())
    assert_refused("no autoencoder is beside", lambda: run(alone, tmp_path / "out"))
    other = tmp_path / "vae"
    tiny_autoencoder(z_dim=8, latents_mean=[0.0] * 8, latents_std=[1.0] * 8).save_pretrained(other)
    assert_refused(
        "makes 8 channels, the transformer works on 16",
        lambda: run(checkpoint, tmp_path / "out", autoencoder=str(other)),
    )


def test_the_licence_is_that_of_the_card(tmp_path: Path) -> None:
    assert licence_of(tmp_path) == ""
    (tmp_path / "README.md").write_text("# Nothing\nlicense: mit\n")
    assert licence_of(tmp_path) == ""
    (tmp_path / "README.md").write_text('---\nlanguage: en\nlicense: "cc-by-nc-4.0"\n---\n')
    (tmp_path / "checkpoints").mkdir()
    assert licence_of(tmp_path / "checkpoints" / "model.pt") == "cc-by-nc-4.0"


def test_repositories_of_the_hub_are_found_in_its_cache(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--owner--name" / "snapshots" / ("a" * 40)
    (snapshot / "checkpoints").mkdir(parents=True)
    refs = tmp_path / "models--owner--name" / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    (snapshot / "checkpoints" / "model.pt").write_bytes(checkpoint.read_bytes())
    found = find_checkpoint("owner/name/checkpoints/model.pt")
    assert found == snapshot / "checkpoints" / "model.pt"
    assert find_checkpoint("owner/name") == snapshot
    assert_refused(
        "the repository owner/name of the hub has no file other.pt",
        lambda: find_checkpoint("owner/name/other.pt"),
    )
    assert_refused(
        "the hub gives no such checkpoint: it was not downloaded before",
        lambda: find_checkpoint("owner/other"),
    )
    assert_refused("is a file, a folder or OWNER/NAME", lambda: find_checkpoint("./owner"))
