"""Video is encoded once for all commands: kept by codec and video, whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import training.data.latents
from tests.fakes import TINY_ACTIONS, save_tiny_world, tiny_codec_config, write_outcome_dataset
from training.conversion.stage import load_for
from training.convert import ConvertConfig
from training.data.latent_cache import LatentCache
from training.data.latents import DataConfig, LatentVideo, choose_episodes, encode_frames, latent_video
from training.engine.fabric import FabricConfig, make_fabric
from training.engine.run_folder import FREE_SETTINGS
from training.world.clips import Episodes, load_footage
from training.world.validation import ValidationConfig
from worldsim.codec import FrameCodec
from worldsim.data import sequences
from worldsim.errors import WorldError
from worldsim.world import World

CPU = torch.device("cpu")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_outcome_dataset(tmp_path / "data", episodes=3)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Give the lengths of the episodes that are encoded, as it happens."""
    lengths: list[int] = []

    def counting(codec: FrameCodec, frames: Any, device: torch.device) -> torch.Tensor:
        lengths.append(len(frames))
        return encode_frames(codec, frames, device)

    monkeypatch.setattr(training.data.latents, "encode_frames", counting)
    return lengths


def fresh_codec(seed: int = 0, **changes: Any) -> FrameCodec:
    torch.manual_seed(seed)
    config = tiny_codec_config()
    for name, value in changes.items():
        setattr(config, name, value)
    return FrameCodec(config)


def cached(data: Path, codec: FrameCodec | None = None, folder: Path | None = None) -> LatentVideo:
    codec = codec or fresh_codec()
    cache = LatentCache(codec, torch.float32, folder)
    return latent_video(codec, choose_episodes([str(data)], 0), CPU, num_workers=1, cache=cache)


def test_video_is_encoded_once_and_read_with_what_happens_in_it(data: Path, encoded: list[int]) -> None:
    first = cached(data)
    assert encoded == [24, 25, 26]
    second = cached(data)
    assert encoded == [24, 25, 26]
    for name in ("latents", "leading", "rewards", "ends"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    rewards, ends = second.outcomes()
    assert set(rewards.tolist()) == {0.0, 2.0}
    assert int(ends.sum()) == 2
    assert second.ended_episodes().tolist() == [True, True, False]
    without = latent_video(fresh_codec(), choose_episodes([str(data)], 0), CPU, num_workers=1)
    assert torch.equal(without.latents, first.latents)


def test_commands_share_what_lies_beside_the_video(tmp_path: Path, data: Path, encoded: list[int]) -> None:
    world = World.from_pretrained(save_tiny_world(tmp_path / "world"))
    chosen = DataConfig(train=[str(data)], heldout=[str(data)], num_workers=1)
    validation = ValidationConfig(num_rollouts=2, context_frames=2, horizons=[1, 2])
    episodes = Episodes.of(chosen, validation, TINY_ACTIONS)
    fabric = make_fabric(FabricConfig(accelerator="cpu"), tmp_path)
    footage = load_footage(world.codec, episodes, chosen, validation, fabric)
    assert len(encoded) == 3  # held out is the same video
    config = ConvertConfig(out=str(tmp_path / "other"), teacher="", data=chosen, validation=validation)
    again = load_for(config, World.from_pretrained(tmp_path / "world"), episodes, fabric)
    assert len(encoded) == 3
    assert torch.equal(footage.train.latents, again.heldout.latents)
    assert len(list((data / "latents").glob("*/*"))) == 3
    assert not (tmp_path / "other").exists()


def test_nothing_is_kept_where_nothing_shall_be(tmp_path: Path, data: Path) -> None:
    world = World.from_pretrained(save_tiny_world(tmp_path / "world"))
    chosen = DataConfig(train=[str(data)], heldout=[str(data)], num_workers=1, cache_latents=False)
    validation = ValidationConfig(num_rollouts=2, context_frames=2, horizons=[1, 2])
    episodes = Episodes.of(chosen, validation, TINY_ACTIONS)
    load_footage(
        world.codec, episodes, chosen, validation, make_fabric(FabricConfig(accelerator="cpu"), tmp_path)
    )
    assert not (data / "latents").exists()


def test_another_codec_another_size_and_other_video_are_not_mixed_up(data: Path, encoded: list[int]) -> None:
    cached(data)
    other = cached(data, fresh_codec(seed=1))
    assert len(encoded) == 6
    assert not torch.equal(other.latents, cached(data).latents)
    smaller = cached(data, fresh_codec(height=16))  # the same weights
    assert smaller.latents.shape[2] == 2
    assert len(encoded) == 9
    write_outcome_dataset(data, episodes=3, seed=1)  # the same names and lengths
    assert not torch.equal(cached(data).latents, other.latents)
    assert len(encoded) == 12


def test_rewards_added_to_video_that_stays_are_read(data: Path, encoded: list[int]) -> None:
    cached(data)
    table = data / "episode-000.jsonl"
    table.write_text(table.read_text().replace('"reward": 2.0', '"reward": 7.0'))
    assert 7.0 in cached(data).outcomes()[0].tolist()
    assert len(encoded) == 3


def test_an_encoding_that_was_killed_goes_on_where_it_was(
    data: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    save, saved = LatentCache.save, []

    def killed(self: LatentCache, reference: Any, latents: torch.Tensor) -> None:
        if saved:
            raise KeyboardInterrupt
        saved.append(reference.name)
        save(self, reference, latents)

    with monkeypatch.context() as patch:
        patch.setattr(LatentCache, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            cached(data)
    encoded.clear()
    expected = latent_video(fresh_codec(), choose_episodes([str(data)], 0), CPU, num_workers=1)
    encoded.clear()
    assert torch.equal(cached(data).latents, expected.latents)
    assert encoded == [25, 26]


def test_a_write_that_fails_leaves_nothing_and_a_damaged_file_is_replaced(
    data: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        patch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            cached(data)
    assert list((data / "latents").glob("*/*")) == []
    expected = cached(data).latents
    first, second, _ = sorted((data / "latents").glob("*/*"))
    first.write_bytes(first.read_bytes()[:-100])
    second.write_bytes(b"")
    encoded.clear()
    assert torch.equal(cached(data).latents, expected)
    assert len(encoded) == 2
    assert torch.equal(cached(data).latents, expected)
    assert len(encoded) == 2


def test_two_that_write_the_same_episode_do_not_share_a_file_while_they_do(data: Path) -> None:
    (reference, *_) = choose_episodes([str(data)], 0)
    cache, seen = LatentCache(fresh_codec(), torch.float32), []
    latents = torch.ones(reference.num_frames, 4, 4, 6, dtype=torch.float16)
    replace = Path.replace

    def other_finishes_first(self: Path, target: Path) -> Path:
        seen.append(self.name)
        return replace(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", other_finishes_first)
        cache.save(reference, latents)
        patch.setattr(os, "getpid", lambda: 1)
        cache.save(reference, latents)
    assert len(set(seen)) == len(seen) == 4
    found = cache.load(reference)
    assert found is not None
    assert torch.equal(found, latents)


def test_several_processes_decode_for_the_same_latents(
    data: Path, monkeypatch: pytest.MonkeyPatch, encoded: list[int]
) -> None:
    references = choose_episodes([str(data)], 0)
    alone = latent_video(fresh_codec(), references, CPU, num_workers=1).latents
    monkeypatch.setattr(sequences, "FRAMES_PER_PROCESS", 1)
    assert sequences.decoding_processes(references, 3) == 3
    for num_workers in (1, 3):
        assert torch.equal(
            latent_video(fresh_codec(), references, CPU, num_workers=num_workers).latents, alone
        )
    assert encoded == 3 * [24, 25, 26]


def test_what_another_process_encodes_is_waited_for(data: Path, encoded: list[int]) -> None:
    references = choose_episodes([str(data)], 0)
    cache = LatentCache(fresh_codec(), torch.float32)
    cache.check_writable(references)
    lock = cache.claim(references[0])
    assert lock is not None
    assert cache.claim(references[0]) is None
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(cached, data)
        while len(encoded) < 2:
            time.sleep(0.01)
        assert not waiting.done()
        others = torch.ones(references[0].num_frames, 4, 4, 6, dtype=torch.float16)
        cache.save(references[0], others)
        cache.release(lock)
        found = waiting.result()
    assert encoded == [25, 26]
    assert torch.equal(found.latents[: len(others)], others)
    assert list((data / "latents").glob("*/*.lock")) == []


def test_an_episode_that_is_there_twice_is_encoded_once_and_not_waited_for(
    data: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has one file and one lock: who waited for the other one would wait for itself."""
    for suffix in (".jsonl", ".mp4"):
        (data / f"episode-001-copy{suffix}").write_bytes((data / f"episode-001{suffix}").read_bytes())
    claims: list[dict[str, bool]] = []
    claim = LatentCache.claim

    def counting(cache: LatentCache, reference: Any, **options: bool) -> Any:
        claims.append(options)
        return claim(cache, reference, **options)

    monkeypatch.setattr(LatentCache, "claim", counting)
    video = cached(data)
    assert sorted(encoded) == [24, 25, 26] and claims == [{}] * 3
    assert video.lengths == [24, 25, 25, 26]
    assert torch.equal(video.latents[24:49], video.latents[49:74]) and video.latents[49:74].any()


def test_what_another_process_began_and_was_killed_in_is_encoded(data: Path, encoded: list[int]) -> None:
    references = choose_episodes([str(data)], 0)
    cache = LatentCache(fresh_codec(), torch.float32)
    cache.check_writable(references)
    lock = cache.claim(references[1])
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(cached, data)
        while len(encoded) < 2:
            time.sleep(0.01)
        cache.release(lock)
        waiting.result()
    assert encoded == [24, 26, 25]


RANK = """
import sys
from pathlib import Path
import torch
import training.data.latents as latents
from tests.fakes import TINY_ACTIONS, tiny_codec_config
from training.data.latents import DataConfig
from training.engine.fabric import FabricConfig, make_fabric
from training.world.clips import Episodes, load_footage
from training.world.validation import ValidationConfig
from worldsim.codec import FrameCodec

out = Path(sys.argv[1])
torch.manual_seed(0)
codec = FrameCodec(tiny_codec_config())
data = DataConfig(train=[str(out / "train")], heldout=[str(out / "heldout")])
validation = ValidationConfig(num_rollouts=2, context_frames=2, horizons=[1, 2])
fabric = make_fabric(FabricConfig(accelerator="cpu", devices="2", strategy="ddp"), out)
encode, mine = latents.encode_frames, []
latents.encode_frames = lambda _, frames, device: mine.append(len(frames)) or encode(codec, frames, device)
footage = load_footage(codec, Episodes.of(data, validation, TINY_ACTIONS), data, validation, fabric)
told = f"{sum(mine)} {len(footage.train.latents)} {len(footage.heldout.latents)}"
(out / f"rank-{fabric.global_rank}.txt").write_text(told)
"""


def test_devices_share_the_encoding_and_each_episode_is_encoded_once(tmp_path: Path) -> None:
    for name, seed in (("train", 0), ("heldout", 1)):
        write_outcome_dataset(tmp_path / name, episodes=4, seed=seed)
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(script), str(tmp_path)], env=environment, check=True)
    told = [(tmp_path / f"rank-{rank}.txt").read_text().split() for rank in range(2)]
    assert sum(int(encoded) for encoded, _, _ in told) == 2 * (24 + 25 + 26 + 27)
    assert [train for _, train, _ in told] == [str(24 + 26), str(25 + 27)]
    assert [heldout for _, _, heldout in told] == 2 * [str(24 + 25 + 26 + 27)]


def test_a_folder_that_cannot_be_written_to_is_named_before_anything_is_encoded(
    tmp_path: Path, data: Path, encoded: list[int]
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WorldError, match=r"cannot be kept in .*file/.*data\.cache_folder= another"):
        cached(data, folder=tmp_path / "file")
    assert encoded == []
    assert "data.cache_folder" in FREE_SETTINGS  # a resumed run may look elsewhere
    cached(data, folder=tmp_path / "elsewhere")
    assert len(list((tmp_path / "elsewhere").glob("*/*.safetensors"))) == 3
    assert not (data / "latents").exists()
