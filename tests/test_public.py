"""The program as it is seen from outside: names, settings, files, and the numbers that it computes.

Everything here is compared with values stored in `tests/public`. A change of the program's structure leaves
them as they are. A change that is meant to alter one of them stores it anew, and its commit says why:

    pytest tests/test_public.py --update-public             # all of them; -k chooses

Only what is documented is imported: commands run as `training.NAME` with settings as they are typed. The
inputs in `tests/public/inputs` (worlds, gameplay video, a state, a stopped training) stay as an older
version wrote them; `tests/public_inputs.py` says how. Numbers are exact on a machine whose arithmetic is that
of the machine that stored them, and close on others: `tests/goldens.py`.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import lzma
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import load_env_creator, registry
from safetensors import safe_open

import worldsim
import worldsim.state
from tests.goldens import FOLDER, INPUTS, Golden, digest_of
from tests.public_commands import REPORTS, TRAININGS, steady
from tests.public_runs import RESUMED, compute_alone, results_of, run_command
from worldsim.data.episodes import DatasetInfo, EpisodeWriter, list_episodes, read_episode, read_table, verify
from worldsim.starts import draw_starts
from worldsim.world import World

ROOT = Path(__file__).resolve().parents[1]
WORLDS = (
    *("car-racing", "doom-fresh-rooms", "doom-health", "doom-rooms", "doom-take-cover", "grid-recall"),
    "minigrid-playground",
)
COMMANDS = (
    *(
        "benchmark",
        "calibrate",
        "codec",
        "collect",
        "convert",
        "evaluate",
        "features",
        "finetune",
        "long_play",
        "matched",
    ),
    *("odometry", "outcome_heads", "play", "pretrain", "report_conversion", "rl", "select_layers", "sharpen"),
    *("check", "export", "import_wan", "ingest", "learn"),
)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    compute_alone()
    return Golden(update=request.config.getoption("--update-public"))


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder that holds the stored inputs."""
    shutil.copytree(INPUTS, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Names and settings.

IMPORTS = {
    "worldsim": ("ENV_ID", "GAME_ID", "__version__"),
    "worldsim.world": ("World",),
    "worldsim.state": ("save", "load"),
    "worldsim.starts": ("draw_starts",),
    "worldsim.sb3": ("SB3VecEnv",),
    "worldsim.data.episodes": (
        *("DatasetInfo", "Episode", "EpisodeTable", "EpisodeWriter", "count_episode_frames", "count_lines"),
        *("list_episodes", "read_episode", "read_table", "verify"),
    ),
    "policies.ppo": ("PPOPolicy",),
    "kernels": ("commit", "read", "scan_frames"),
}


def parameters_of(function: Callable[..., Any]) -> dict[str, str]:
    """Return the parameters of a function with their kinds and defaults."""
    found = inspect.signature(function).parameters.values()
    return {
        each.name: each.kind.name.lower() + ("" if each.default is each.empty else f" = {each.default!r}")
        for each in found
    }


def test_documented_names_can_be_imported_and_take_the_same_arguments(golden: Golden) -> None:
    found: dict[str, Any] = {}
    for module, names in IMPORTS.items():
        for name in names:
            value = getattr(importlib.import_module(module), name)
            told = parameters_of(value) if callable(value) else value
            found[f"{module}.{name}"] = told
    methods = ("from_pretrained", "save_pretrained")
    found |= {f"World.{name}": parameters_of(getattr(World, name)) for name in methods}
    golden.check("imports", found)


def test_environments_are_registered_with_the_same_arguments(golden: Golden) -> None:
    found: dict[str, Any] = {}
    for name, spec in registry.items():
        entries = [spec.entry_point, spec.vector_entry_point]
        if not str(spec.entry_point).startswith("worldsim"):
            continue
        creators = [load_env_creator(entry) if isinstance(entry, str) else entry for entry in entries]
        found[name] = {
            "arguments": [parameters_of(creator) if creator else None for creator in creators],
            "order_enforce": spec.order_enforce,
            "disable_env_checker": spec.disable_env_checker,
            "max_episode_steps": spec.max_episode_steps,
            "kwargs": spec.kwargs,
        }
    assert set(found) == {"ARL2World-v0", "DoomGame-v0"} == {worldsim.ENV_ID, worldsim.GAME_ID}
    golden.check("environments", found)


def test_custom_operators_keep_their_names(golden: Golden) -> None:
    import torch

    import kernels  # noqa: F401 - registers them

    names = sorted(name for name in torch._C._dispatch_get_all_op_names() if name.startswith("arl2::"))
    golden.check("operators", names)


@pytest.mark.parametrize("name", COMMANDS)
def test_settings_of_a_command_are_the_same(
    name: str, golden: Golden, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As the command is given them, by each option of each group of settings."""
    monkeypatch.chdir(tmp_path)
    path = FOLDER / f"settings-{name}.json"
    options = known_options() if golden.update else list(json.loads(path.read_text())["values"])
    base = effective_settings(name, [], monkeypatch)
    assert base is not None
    found: dict[str, Any] = {"": base}
    for option in options:
        settings = effective_settings(name, [option], monkeypatch) if option else base
        if settings is None:
            assert golden.update, f"{name} does not take {option}"
        elif option:
            changed = {key: value for key, value in settings.items() if base.get(key) != value}
            found[option] = changed | dict.fromkeys(base.keys() - settings.keys(), "is gone")
    golden.check(path.stem, found)


def known_options() -> list[str]:
    """Return each file of each group in `conf`, as it is typed; a command refuses those of other commands."""
    files = [path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*.yaml")]
    return sorted(f"{path.parent.as_posix()}={path.stem}" for path in files if len(path.parts) > 1)


def effective_settings(
    name: str, settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any] | None:
    """Return what a command's function is given, flat, or None if the command refuses the settings."""
    main = importlib.import_module("play" if name == "play" else f"training.{name}").main
    given: list[Any] = []
    monkeypatch.setattr(main, "run", given.append)
    required = [f"{key}=given" for key in REQUIRED.get(name, ())]
    try:
        run_command(name, *settings, *required)
    except SystemExit:
        return None
    (config,) = given
    return flat(dataclasses.asdict(config))


REQUIRED = {
    "calibrate": ("world", "out"),
    "convert": ("teacher",),
    "finetune": ("init",),
    "outcome_heads": ("world", "out"),
    "select_layers": ("teacher",),
    "sharpen": ("init",),
}
"""Settings without a default."""


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Return nested settings by their paths, as JSON has them."""
    if isinstance(value, dict) and value:
        entries = [flat(each, f"{path}.{key}" if path else str(key)) for key, each in value.items()]
        return {key: each for entry in entries for key, each in entry.items()}
    if isinstance(value, Enum):
        value = value.value
    return {path: str(value) if isinstance(value, Path) else value}


# Files.


def tensors_of(path: Path) -> dict[str, str]:
    """Return the shape and the number format of each tensor of a file."""
    with safe_open(path, "np") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    return {name: f"{each.get_dtype()} {each.get_shape()}" for name, each in sorted(slices.items())}


@pytest.mark.parametrize("name", WORLDS)
def test_tensors_of_a_shipped_world_keep_their_names(name: str, golden: Golden, tmp_path: Path) -> None:
    shipped = ROOT / "worldsim" / "assets" / "worlds" / name
    files = sorted(path.relative_to(shipped) for path in shipped.rglob("*.safetensors"))
    found = {str(path): tensors_of(shipped / path) for path in files}
    golden.check(f"tensors-{name}", found)
    world = World.from_pretrained(name)
    for bits in (8, 16):
        world.save_pretrained(tmp_path / str(bits), starts=[], bits=bits)
    for weights in ("model.safetensors", "codec.safetensors"):  # worlds in 8 bits had decoders in 16
        bits = 8 if any(each.startswith("I8") for each in found[weights].values()) else 16
        assert tensors_of(tmp_path / str(bits) / weights) == found[weights], weights
    written = json.loads((tmp_path / "16" / "config.json").read_text())
    golden.check(f"config-{name}", written | {"files": sorted(written["files"])})


def test_a_stored_state_goes_on_as_it_did(golden: Golden, inputs: Path) -> None:
    state = worldsim.state.load("state.safetensors")
    env = gym.make("worldsim:ARL2World-v0", world="world", device="cpu", dtype="float32")
    play: Any = env.unwrapped
    env.reset(seed=0)
    play.set_state(state)
    frames, told = [], []
    for index in range(6):
        frame, *step = env.step(np.array([2, index % 3, 1]))
        frames.append(frame)
        told.append(step)
    worldsim.state.save(state, inputs / "again.safetensors")
    with safe_open("state.safetensors", "np") as old, safe_open("again.safetensors", "np") as new:
        assert old.metadata() == new.metadata()
        for name in old.keys():  # noqa: SIM118
            assert np.array_equal(old.get_tensor(name), new.get_tensor(name)), name
        metadata = old.metadata()
    found = {"tensors": tensors_of(inputs / "state.safetensors"), "metadata": metadata, "told": told}
    found |= {"frames": digest_of(*frames), "colours": [colours_of(frame) for frame in frames]}
    golden.check("state", found, absolute=0.5)


def test_stored_gameplay_video_is_read_and_written_as_it_was(golden: Golden, inputs: Path) -> None:
    found: dict[str, Any] = {}
    for folder in ("data", "turns", "recall/recall-003"):
        info = DatasetInfo.load(inputs / folder)
        info.save(inputs / "again" / folder)
        texts = [(inputs / path / folder / "dataset.json").read_text() for path in ("", "again")]
        assert texts[0] == texts[1]
        found[folder] = {"frames": verify(inputs / folder), "episodes": list_episodes(inputs / folder)}
        for name in found[folder]["episodes"]:
            episode, table = (
                read_episode(inputs / folder, name, info),
                read_table(inputs / folder, name, info.actions),
            )
            assert np.array_equal(episode.actions, table.actions)
            values = {field.name: getattr(episode, field.name) for field in dataclasses.fields(episode)}
            frames = values.pop("frames")
            plain = {
                key: each.tolist() if isinstance(each, np.ndarray) else each for key, each in values.items()
            }
            means = [colours_of(frame) for frame in frames[::8]]
            found[folder][name] = plain | {"pixels": digest_of(frames), "colours": means}
            rewrite(inputs / "again" / folder, name, info, episode)
            tables = [(inputs / path / folder / f"{name}.jsonl").read_text() for path in ("", "again")]
            assert tables[0] == tables[1]
    golden.check("dataset", found, absolute=1.0)


def rewrite(folder: Path, name: str, info: DatasetInfo, episode: Any) -> None:
    """Write an episode that was read."""
    with EpisodeWriter(folder, name, info) as writer:
        for index, frame in enumerate(episode.frames):
            action = episode.actions[index] if index < len(episode.frames) - 1 else None
            told: dict[str, Any] = {}
            if episode.rewards is not None:
                told |= {
                    "reward": float(episode.rewards[index]),
                    "terminated": bool(episode.terminated[index]),
                }
            if episode.poses is not None:
                told["pose"] = tuple(float(value) for value in episode.poses[index])
            writer.add(frame, action, **told)


def test_start_moments_are_drawn_from_the_same_places(golden: Golden, inputs: Path) -> None:
    info = DatasetInfo.load(inputs / "data")
    size = info.height, info.width
    starts = draw_starts(inputs / "data", 6, 4, actions=info.actions, size=size, seed=3)
    golden.check("starts", {start.name: start.actions.tolist() for start in starts})


# Frames.

FRAMES = """
import sys, gymnasium as gym, numpy as np, torch
torch.set_num_threads(1)
for name in sys.argv[2:]:
    env = gym.make("worldsim:ARL2World-v0", world=name, device="cpu", dtype="float32")
    rng, shown = np.random.default_rng(0), [env.reset(seed=0, options={"start": 0})]
    told = [[0.0, 0.0, sorted(shown[0][1])]]
    for _ in range(20):
        frame, reward, ended, _, info = env.step(rng.integers(env.action_space.nvec))
        shown.append((frame, info))
        told.append([float(reward), float(info.get("end_probability", 0.0)), sorted(info)])
    frames = np.stack([frame for frame, _ in shown])
    np.savez(f"{sys.argv[1]}/{name}.npz", frames=frames, told=np.array(told, dtype=object))
"""


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of what each shipped world drew on the reference form.

    In a process of its own: the form is chosen when the operators are imported.
    """
    environment = os.environ | {
        "ARL2_KERNELS": os.environ.get("ARL2_KERNELS", "reference"),
        "OMP_NUM_THREADS": "1",
    }
    folder = tmp_path_factory.mktemp("drawn")
    command = [sys.executable, "-c", FRAMES, str(folder), *WORLDS]
    subprocess.run(command, check=True, cwd=ROOT, env=environment)
    return folder


def colours_of(frame: np.ndarray) -> list[float]:
    """Return the mean colours of an 8 by 8 grid over a frame."""
    height, width, _ = frame.shape
    cut = frame[: height // 8 * 8, : width // 8 * 8].astype(np.float64)
    means = cut.reshape(8, height // 8, 8, width // 8, 3).mean((1, 3))
    return [round(float(value), 3) for value in means.reshape(-1)]


@pytest.mark.parametrize("name", WORLDS)
def test_a_shipped_world_draws_the_same_frames(name: str, golden: Golden, drawn: Path) -> None:
    stored = np.load(drawn / f"{name}.npz", allow_pickle=True)
    frames, told = stored["frames"], stored["told"].tolist()
    found = {"told": told, "digests": [digest_of(frame) for frame in frames]}
    found["colours"] = {str(index): colours_of(frames[index]) for index in (0, 1, 2, 4, 8, 20)}
    golden.check(f"frames-{name}", found, relative=1e-2, absolute=0.25)


# Losses.


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_gives_the_same_losses(name: str, golden: Golden, inputs: Path) -> None:
    command, settings = TRAININGS[name]
    if command == "rl":
        pytest.importorskip("stable_baselines3", reason='needs Stable-Baselines3: pip install -e ".[rl]"')
    folder = inputs / "out"
    if command == "outcome_heads":  # what a world of random weights draws looks like nothing that ends
        with pytest.raises(SystemExit):
            run_command(command, *settings, "out=out")
        folder = inputs / "out-uncalibrated"
    else:
        run_command(command, *settings, "out=out")
    golden.check(f"losses-{name}", results_of(folder), relative=2e-2, absolute=2e-2)


def test_a_stored_run_goes_on_from_its_checkpoint(golden: Golden, inputs: Path) -> None:
    for path in (inputs / "run" / "checkpoints").iterdir():
        path.with_suffix("").write_bytes(lzma.decompress(path.read_bytes()))
        path.unlink()
    run_command("pretrain", *RESUMED)
    found = results_of(inputs / "run")
    losses = next(values for name, values in found.items() if name.endswith(" loss"))
    assert losses[::2] == list(range(5, 21)), "it did not go on behind the fourth update"
    golden.check("losses-resumed", found, relative=2e-2, absolute=2e-2)


# Reports.


@pytest.mark.filterwarnings("ignore:.*no outcome heads")
@pytest.mark.parametrize("name", REPORTS)
def test_a_report_holds_the_same_keys_and_numbers(name: str, golden: Golden, inputs: Path) -> None:
    command, file, settings = REPORTS[name]
    run_command(command, *settings, "out=out")
    report = steady(json.loads((inputs / "out" / file).read_text()))
    golden.check(f"report-{name}", report, same=1e-9, relative=5e-2, absolute=5e-2)
