"""Small recordings in formats of others, made by what makes them there: Minari, h5py, NumPy, FFmpeg."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import gymnasium as gym
import h5py
import minari
import numpy as np
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer

HEIGHT, WIDTH = 48, 64


def gradient(index: int, height: int = HEIGHT, width: int = WIDTH, shade: int = 0) -> np.ndarray:
    """A colour gradient that drifts, `[height, width, 3]`: video codecs keep it nearly as it is."""
    y, x = np.mgrid[:height, :width]
    picture = np.stack([60 + x + 5 * index, 40 + 2 * y + 5 * index, 180 - x - y // 2 + shade], axis=-1)
    return picture.clip(0, 255).astype(np.uint8)


def gradients(count: int, **options: int) -> list[np.ndarray]:
    return [gradient(index, **options) for index in range(count)]


def write_film(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    rate: int = 20,
    times: Sequence[int] | None = None,
    pixel_format: str = "yuv420p",
    matrix: tuple[int, ...] | None = None,
    has_sound: bool = False,
) -> None:
    """Write a video as other programs do; `times` are in thousandths of a second."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=rate, options={"crf": "8"})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], pixel_format
        stream.codec_context.time_base = Fraction(1, 1000)
        if matrix is not None:
            stream.set_display_matrix(matrix)
        sound = output.add_stream("aac", rate=8000, layout="mono") if has_sound else None
        for index, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = (
                (times or range(0, 10**6, 1000 // rate))[index],
                Fraction(1, 1000),
            )
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))
        if isinstance(sound, av.AudioStream):
            silence = av.AudioFrame.from_ndarray(
                np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
            )
            silence.sample_rate, silence.pts = 8000, 0
            output.mux([*sound.encode(silence), *sound.encode(None)])


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def record_minari(
    action_space: gym.Space[Any],
    *,
    data_format: str = "hdf5",
    episodes: int = 2,
    length: int = 6,
    size: int = 40,
) -> minari.MinariDataset:
    """Write episodes of drifting pictures and random actions with Minari, as `test/game-v0`."""
    picture = spaces.Box(0, 255, (size, size + 8, 3), np.uint8)
    action_space.seed(0)
    frames = np.stack(gradients(length + 1, height=size, width=size + 8))
    buffers = []
    for _ in range(episodes):
        actions = [action_space.sample() for _ in range(length)]
        is_dict = isinstance(action_space, spaces.Dict)
        buffers.append(
            EpisodeBuffer(
                observations={"camera": frames, "speed": np.zeros((length + 1, 1), np.float32)},
                actions={k: np.stack([a[k] for a in actions]) for k in actions[0]} if is_dict else actions,
                rewards=[0.5 * (index + 1) for index in range(length)],
                terminations=[index == length - 1 for index in range(length)],
                truncations=[False] * length,
            )
        )
    return minari.create_dataset_from_buffers(
        "test/game-v0",
        buffers,
        observation_space=spaces.Dict({"camera": picture, "speed": spaces.Box(-9, 9)}),
        action_space=action_space,
        data_format=data_format,
        **dict.fromkeys(
            ("algorithm_name", "author", "author_email", "code_permalink", "description"), "none"
        ),
    )


def write_counter_strike(path: Path, count: int = 8) -> list[tuple[np.ndarray, np.ndarray]]:
    """Write a file as Pearce and Zhu describe it; return its frames, in BGR, and actions."""
    random, made = np.random.default_rng(0), []
    with h5py.File(path, "w") as file:
        for index in range(count):
            numbers = np.zeros(51, np.float64)
            numbers[:13] = random.integers(0, 2, 13)
            numbers[13 + random.integers(23)] = numbers[36 + random.integers(15)] = 1
            made.append((gradient(index), numbers))
            file[f"frame_{index}_x"], file[f"frame_{index}_y"] = made[-1]
            file[f"frame_{index}_xaux"] = np.zeros(54)
            file[f"frame_{index}_helperarr"] = np.array([index == 3, index == 5], np.float64)
    return made


def contractor_line(index: int, **mouse: Any) -> dict[str, Any]:
    """Return a line of a contractor's file; the player walks, and turns with the mouse."""
    keys = ["key.keyboard.w"] if index % 2 else []
    still = {"x": 640.0, "y": 360.0, "dx": 0.0, "dy": 0.0, "dwheel": 0.0, "buttons": [], "newButtons": []}
    return {
        "mouse": still | mouse,
        "keyboard": {"keys": keys, "newKeys": [], "chars": ""},
        "hotbar": 2 if index >= 4 else 0,
        "tick": index,
        "isGuiOpen": False,
    }
