"""The trainings and reports of `tests/test_public.py`: their commands, and what is steady in a report."""

from __future__ import annotations

import fnmatch
from typing import Any

from tests.public_runs import CPU, DATA, DEVICE, LOOP, PRETRAIN, SHAPE, VALIDATION, WORLD

STAGES = [
    setting
    for stage in ("stage1", "stage2")
    for setting in (f"{stage}.{LOOP_SETTING}" for LOOP_SETTING in LOOP)
]
TINY_CODEC = ["codec.height=32", "codec.width=48", "codec.latent_channels=4", "codec.widths=[4,4,8]"]
TINY_CODEC += ["codec.encoder_blocks=[0,0,1]", "codec.decoder_blocks=[0,0,1]"]
STUDENT = ["batch_size=2", "sequence_length=6"]
TRAININGS: dict[str, tuple[str, list[str]]] = {
    "codec": ("codec", [*DATA, *LOOP, *CPU, *TINY_CODEC, "batch_size=8", "learning_rate=5e-3"]),
    "codec-init": ("codec", [*DATA, *LOOP, *CPU, "init=world", "batch_size=8", "loss.latent_noise=0.05"]),
    "pretrain": ("pretrain", PRETRAIN),
    "pretrain-window": (
        "pretrain",
        [*WORLD, *SHAPE, "codec=world", "model.window_layers=[0,1]", "model.memory_phase=none"],
    ),
    "finetune": ("finetune", [*WORLD, "init=world", "segments=3", "outcome_heads=true"]),
    "finetune-teacher": ("finetune", [*WORLD, "init=teacher", "outcome_heads=true"]),
    "matched": (
        "matched",
        [*WORLD, *SHAPE, "name=tiny", "codec=world", "model.memory_keys=axes", "model.window_layers=[1]"],
    ),
    "convert": (
        "convert",
        [
            *(*DATA, *STAGES, *CPU, *VALIDATION, "teacher=teacher", "layers=[0,2]", "window=2"),
            *(f"{stage}.{setting}" for stage in ("stage1", "stage2") for setting in STUDENT),
            *("stage2.lora.rank=2", "objective.own_context_share=0.5"),
        ],
    ),
    "select_layers": (
        "select_layers",
        [
            *(*DATA, *CPU, *VALIDATION, "teacher=teacher", "stage1.loop.num_steps=7"),
            *(f"stage1.{setting}" for setting in (*LOOP[1:], *STUDENT)),
        ],
    ),
    "features": (
        "features",
        [
            *(*LOOP, *CPU, "data=[data,turns]", "heldout=[data,turns]", "near_frames=2", "batch_size=16"),
            *("features.height=16", "features.width=24", "features.widths=[8,8]", "features.num_features=8"),
            "num_workers=1",
        ],
    ),
    "outcome_heads": (
        "outcome_heads",
        [
            *(*DATA, *DEVICE, "world=world", "sequences.num=8", "sequences.watched=3", "sequences.length=4"),
            *("sequences.depth=2", "training.num_steps=20", "training.frames=8"),
            *("num_dreams=4", "context_frames=4", "horizon=6"),
        ],
    ),
    "calibrate": ("calibrate", [*DEVICE, "world=world", "data.heldout=[data]", "num_dreams=0", "seed=1"]),
    "rl": (
        "rl",
        [
            *(
                *DEVICE,
                "world=world",
                "num_envs=2",
                "total_steps=320",
                "max_episode_steps=5",
                "action_repeat=2",
            ),
            *("starts=data", "num_starts=6", "context_frames=3"),
            *("ppo.n_steps=8", "ppo.batch_size=16", "ppo.n_epochs=1"),
        ],
    ),
}

SMALL = ["context_frames=4", *DEVICE]
REPORTS: dict[str, tuple[str, str, list[str]]] = {
    "evaluate": (
        "evaluate",
        "report.json",
        [
            *(*SMALL, "world=world", "data=data", "num_rollouts=3", "horizon=8", "num_next_clips=2"),
            *(
                "next_frames=4",
                "num_action_starts=2",
                "num_idle_starts=2",
                "idle_frames=10",
                "cost_frames=10",
            ),
            "startup_runs=0",
        ],
    ),
    "consistency": (
        "evaluate",
        "report.json",
        [
            *(*DEVICE, "suite=consistency", "worlds={hybrid:world,full:teacher}", "data=recall"),
            *(
                "consistency.intervention_gaps=[3]",
                "consistency.tile_pixels=8",
                "consistency.zeroed=[hybrid]",
            ),
            *("consistency.context_frames=3", "consistency.fidelity_frames=6", "consistency.num_fidelity=4"),
            "parts=[recall,interventions,pairs,fidelity,continuation]",
        ],
    ),
    "consistency-long": (
        "evaluate",
        "report.json",
        [
            *(*DEVICE, "suite=consistency", "world=world", "data=recall", "consistency.long_frames=8"),
            *("consistency.num_long=2", "consistency.num_idle=2", "consistency.idle_frames=6"),
            *("consistency.context_frames=3", "consistency.cost_frames=12"),
            "parts=[controllability,drift,idle,probe,cost]",
        ],
    ),
    "conversion": (
        "report_conversion",
        "conversion.json",
        [
            *(
                *SMALL,
                "teacher=teacher",
                "worlds=[same:teacher]",
                "zeroed=[]",
                "data=turns",
                "num_rollouts=3",
            ),
            *("horizon=9", "memory_frames=6", "return_absence=3", "early_frame=3", "late_frame=8"),
            *("total_frames=6", "parts=[in_turn,cost,rollouts,memory]"),
        ],
    ),
    "endurance": (
        "evaluate",
        "endurance.json",
        [
            *(
                *DEVICE,
                "world=world",
                "benchmark=endurance",
                "endurance.num_envs=2",
                "endurance.num_steps=12",
            ),
            "endurance.max_episode_steps=5",
        ],
    ),
    "throughput": (
        "evaluate",
        "env.json",
        [*DEVICE, "world=world", "benchmark=env", "env_counts=[1,3]", "env_frames=9"],
    ),
    "long_play": ("long_play", "day.json", [*DEVICE, "world=teacher", "num_frames=60"]),
}
VOLATILE = (
    *("command", "*/command", "commit", "*/commit", "date", "*/date", "versions/*", "*/versions/*"),
    *("hardware/processor", "*/hardware/processor", "hardware/cores", "*/hardware/cores"),
    *("*measured_in_seconds", "seconds", "*/seconds", "*_ms", "*_ms/*", "*_ms_curve/*", "*p99_over_p50"),
    *("*late_over_early", "*late_over_early/*", "*steps_per_second*", "*over_single", "*peak_bytes"),
    *("*process_bytes*", "*/growth/process", "samples/*/seconds", "samples/*/1"),
)
"""Paths of values that depend on the machine, its clock, or the checkout: of these the type is kept."""
TIMED_BARS = ("step", "start-up")
"""Beginnings of the names of bars and goals that depend on the clock."""


def steady(value: Any, path: str = "") -> Any:
    """Return a report without what depends on the machine, its clock, or the checkout."""
    if isinstance(value, dict):
        is_timed = "must" in value and str(value["name"]).startswith(TIMED_BARS)
        kept = ("name", "unit", "must", "aim") if is_timed else tuple(value)
        return {key: steady(value[key], f"{path}/{key}" if path else key) for key in kept}
    if isinstance(value, list):
        return [steady(each, f"{path}/{index}") for index, each in enumerate(value)]
    if any(fnmatch.fnmatchcase(path, pattern) for pattern in VOLATILE):
        return f"<{type(value).__name__}>"
    return value
