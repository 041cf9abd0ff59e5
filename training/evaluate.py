"""Measure a world against the real game: `python -m training.evaluate world=doom-rooms profile=quick`.

Writes OUT/report.json, and of the roll-outs a filmstrip, a video and a plot; prints where the world stands
beside what it must reach. The report is written anew after each part: a stopped run keeps what it has.
`benchmark=env` measures how fast environments step instead, `benchmark=endurance` whether they can go on and
on, `benchmark=step` what a step consists of, `benchmark=video` what long videos cost and
`benchmark=video_training` their training, `benchmark=pose_recall` what states say of places,
`suite=consistency` what worlds remember, and `suite=level` what buttons, walls and monsters do in dreams.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from training.cli.entry import entry
from training.engine.lock import locked_folder
from training.suites.consistency import measure_consistency
from training.suites.environments import benchmark_endurance, benchmark_env
from training.suites.level import measure_level
from training.suites.operators import benchmark_step
from training.suites.pose_recall import benchmark_pose_recall
from training.suites.quality import measure_quality
from training.suites.settings import CONSISTENCY, LEVEL, EvaluateConfig
from training.suites.video_shape import benchmark_video
from training.suites.video_training import benchmark_video_training
from worldsim.runtime.device import set_threads

SUITES: dict[str, Callable[[EvaluateConfig, Path], None]] = {
    "env": benchmark_env,
    "endurance": benchmark_endurance,
    "step": benchmark_step,
    "video": benchmark_video,
    "video_training": benchmark_video_training,
    "pose_recall": benchmark_pose_recall,
    CONSISTENCY: measure_consistency,
    LEVEL: measure_level,
    "quality": measure_quality,
}


@entry("evaluate", EvaluateConfig)
def main(config: EvaluateConfig) -> None:
    """Measure what was asked for, write the report after each part, print a table."""
    set_threads(config.threads)
    out = Path(config.out)
    with locked_folder(out):  # a folder that cannot be written to is found before an hour of work
        SUITES[config.benchmark or config.suite or "quality"](config, out)


if __name__ == "__main__":
    main()
