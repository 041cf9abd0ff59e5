"""Suite of recall by true poses, `benchmark=pose_recall`: OUT/pose_recall.json holds means with intervals."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from training.data.latents import DataConfig, choose_episodes, fixed_starts, latent_video
from training.data.tables import check_poses
from training.suites.settings import EvaluateConfig
from training.world.clips import cache_for
from training.world.recall import GAIN, RecallConfig, RecallScores, measure_recall, measure_rollouts
from worldsim.errors import WorldError
from worldsim.evaluation.report.report import Report, describe_run
from worldsim.evaluation.report.text import align
from worldsim.evaluation.statistics import bootstrap_known
from worldsim.model.config import MemoryKeys
from worldsim.simulator import open_world

REPORT_FILE = "pose_recall.json"
TURN = 0.5
"""Share of a clip after which roll-outs begin: where a player of out_frames=[n-5,n-5] turns back."""


def benchmark_pose_recall(config: EvaluateConfig, out: Path) -> None:
    """Ask a world with keys of poses for views, roll it out at true poses, print a table, write a report."""
    world, choice = open_world(config.world, config.runtime())
    described = world.config
    if described.denoiser.memory_keys != MemoryKeys.POSE:
        keys = described.denoiser.memory_keys
        raise WorldError(f"benchmark=pose_recall is of worlds with memory_keys pose, but these are {keys}")
    references = choose_episodes([config.data], 0, described.actions)[: config.num_episodes or None]
    check_poses(references)
    video_config = DataConfig(train=[config.data], heldout=[config.data])
    cache = cache_for(world.codec, video_config, world.device)
    video = latent_video(world.codec, references, world.device, cache=cache)
    asked = RecallConfig(
        num_clips=config.num_rollouts,
        length=config.horizon,
        num_steps=config.denoising_steps or described.sampler.num_steps,
    )
    print(f"on {choice}, {asked.num_steps} passes a frame", flush=True)
    starts = fixed_starts(video.lengths, asked.length, asked.num_clips)
    episodes = np.searchsorted(np.cumsum(video.lengths), starts, side="right").tolist()
    turned = replace(asked, prefix_share=TURN)
    measured = {
        "views asked for": measure_recall(world, video, asked),
        "roll-outs": measure_rollouts(world, video, turned),
    }
    found = {name: estimates(scores, episodes) for name, scores in measured.items()}
    head = describe_run(world.device, world.dtype)
    report = Report(out / REPORT_FILE, head | {"world": world.identity, "asked": asdict(asked), **found})
    report.write()
    print(f"\n{table(found)}\n\nwritten to {report.path}")


def estimates(scores: RecallScores, episodes: list[int]) -> dict[str, Any]:
    """Return means with intervals over episodes, by kind of frame and by state; None where there are none."""
    return {
        kind: {name: bootstrap_known(values, episodes) for name, values in means.items()}
        for kind, means in scores.clip_means().items()
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    """Return PSNR in dB as a table: a row for each kind of frame, a column for each state."""
    asked = [(name, kind, states) for name, kinds in found.items() for kind, states in kinds.items()]
    names = list(dict.fromkeys(name for *_, states in asked for name in states if name != GAIN))
    rows = [["PSNR, dB", "frames", "clips", *names, GAIN]]
    for name, kind, states in asked:
        if any(states.values()):
            told = [f"{states[each].mean:.2f}" if each in states else "-" for each in (*names, GAIN)]
            gain = states[GAIN]
            ends = "" if gain.low is None else f" ({gain.low:.2f} to {gain.high:.2f})"
            rows.append([name, kind, str(gain.count), *told[:-1], told[-1] + ends])
    return align(rows)
