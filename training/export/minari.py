"""Datasets of Minari 0.5, as HDF5: an observation more than actions in each episode."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from worldsim.data.episodes import Episode
from worldsim.data.formats.source import EXTRA
from worldsim.data.sequences import EpisodeReference, read_episodes
from worldsim.errors import WorldError
from worldsim.storage.files import write_json

VERSION = "0.5.0"
JPEG_QUALITY = 95
MIN_JPEG_SIDE = 32
"""Minari takes smaller pictures for no pictures, and stores them as they are."""


def write(references: Sequence[EpisodeReference], out: Path, name: str, *, lossless: bool) -> None:
    """Write episodes into the folder `data` in `out`; actions are of the space MultiDiscrete.

    What is not recorded is 0: rewards, or whether the game ended. An episode that the game did not end is
    truncated. Poses become `infos/pose`.

    Args:
        references: Episodes of one folder.
        out: Folder of the dataset.
        name: Its id, to which a version is added; what Minari does not take in one becomes a hyphen.
        lossless: Whether pictures are stored as arrays, and not as JPEG.

    Raises:
        WorldError: If a package is missing, or an episode cannot be read.
        OSError: If it cannot be written.
    """
    try:
        import h5py
    except ImportError as error:
        raise WorldError(
            f"Minari's files are written with the package h5py, which is missing: {EXTRA}"
        ) from error
    folder, info = out / "data", references[0].info
    folder.mkdir()
    is_jpeg = not lossless and min(info.height, info.width) >= MIN_JPEG_SIDE
    steps = 0
    with h5py.File(folder / "main_data.hdf5", "w", track_order=True) as file:
        episodes = read_episodes(references, num_workers=1)
        for index, episode in enumerate(
            tqdm(episodes, total=len(references), unit="episode", desc="exporting")
        ):
            group = file.create_group(f"episode_{index}")
            group.attrs.update({"id": index, "total_steps": len(episode) - 1})
            if episode.game_seed is not None:
                group.attrs["seed"] = episode.game_seed
            for key, values in arrays_of(episode).items():
                group[key] = values
            _store_pictures(group, episode.frames, is_jpeg)
            steps += len(episode) - 1
    write_json(folder / "metadata.json", metadata(references, name, steps, is_jpeg=is_jpeg))


def arrays_of(episode: Episode) -> dict[str, np.ndarray]:
    """Return what an episode of T frames holds beside them, T - 1 entries of each, by Minari's names."""
    steps = len(episode) - 1
    rewards = np.zeros(steps) if episode.rewards is None else episode.rewards[1:].astype(np.float64)
    ended = np.zeros(steps, bool) if episode.terminated is None else episode.terminated[1:]
    cut = np.zeros(steps, bool)
    cut[-1:] = not ended[-1:].any()
    found = {"actions": episode.actions[:-1], "rewards": rewards, "terminations": ended, "truncations": cut}
    return found if episode.poses is None else found | {"infos/pose": episode.poses}


def _store_pictures(group: Any, frames: np.ndarray, is_jpeg: bool) -> None:
    import h5py

    if not is_jpeg:
        shape = (1, *frames.shape[1:])
        group.create_dataset(
            "observations", data=frames, chunks=shape, compression="gzip", compression_opts=1
        )
        return
    stored = group.create_dataset("observations", (len(frames),), dtype=h5py.vlen_dtype(np.uint8))
    for index, frame in enumerate(frames):
        stored[index] = np.frombuffer(encode_jpeg(frame), np.uint8)


def encode_jpeg(frame: np.ndarray) -> bytes:
    """Return `[H, W, 3]` uint8 as the bytes of a JPEG file, its colours in full resolution.

    Raises:
        WorldError: If Pillow is missing.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise WorldError(
            f"JPEG files are written with the package pillow, which is missing: {EXTRA}"
        ) from error
    buffer = BytesIO()
    Image.fromarray(frame).save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def metadata(
    references: Sequence[EpisodeReference], name: str, steps: int, *, is_jpeg: bool
) -> dict[str, Any]:
    """Return what Minari has to know of a dataset."""
    info = references[0].info
    shape = (info.height, info.width, 3)
    picture = {
        "type": "Box",
        "dtype": "uint8",
        "shape": shape,
        "low": np.zeros(shape, int).tolist(),
        "high": np.full(shape, 255).tolist(),
    }
    counts = list(info.actions.num_values)
    action = {"type": "MultiDiscrete", "dtype": "int64", "nvec": counts, "start": [0] * len(counts)}
    return {
        "total_episodes": len(references),
        "total_steps": steps,
        "data_format": "hdf5",
        "jpeg_encoding": is_jpeg,
        "observation_space": json.dumps(picture),
        "action_space": json.dumps(action),
        "dataset_id": re.sub(r"[^\w/-]", "-", f"{name}-v0"),
        "minari_version": VERSION,
        "description": f"{info.name}: {info.source}; {info.frame_rate:g} frames a second",
        "buttons": info.actions.to_json(),
    }
