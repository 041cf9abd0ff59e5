"""Ranking of a softmax world's layers by what replacing them costs: `python -m training.select_layers`.

A new layer learns from nothing but the teacher's inputs, so that one pass trains a candidate for every layer.
Then each layer alone is replaced by its candidate, and the roll-outs of the whole are scored.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from training.cli.entry import entry
from training.conversion.selection import LayerScore, Selection, teacher_digest
from training.conversion.stage import (
    TeacherConfig,
    averaged,
    heldout_losses,
    list_episodes,
    load_for,
    load_teacher,
    roll_out,
    stage_settings,
    student_of,
    train_stage,
)
from training.engine.fabric import make_fabric
from training.engine.run_folder import RunFolder
from training.objectives.distillation import LayerDistillation
from training.world.clips import Episodes, Footage
from worldsim.errors import WorldError
from worldsim.model.conversion import Rest, convert, new_parameters, student_config, take_layer
from worldsim.model.denoiser import Denoiser
from worldsim.storage.files import check_number, read_json, write_json
from worldsim.world import World

if TYPE_CHECKING:
    from lightning_fabric import Fabric

SELECTION_FILE, SCORES = "selection.json", "scores-{}.json"


@dataclass(kw_only=True, slots=True)
class SelectLayersConfig(TeacherConfig):
    """Settings of `python -m training.select_layers`: those of every command with a teacher."""


def swapped(teacher: World, layer: int, candidates: Denoiser, config: SelectLayersConfig) -> World:
    """Return the teacher with one layer replaced by its candidate."""
    original = teacher.config.denoiser
    shape = student_config(original, [layer], config.hybrid, Rest.FULL, original.window)
    student = convert(teacher.denoiser, shape, config.hybrid.memory_scale, config.hybrid.gates)
    take_layer(student, layer, candidates)
    return World(
        replace(teacher.config, denoiser=shape), student.to(teacher.device), teacher.codec, teacher.folder
    )


def train_candidates(
    config: SelectLayersConfig, teacher: World, episodes: Episodes, fabric: Fabric, run: RunFolder
) -> tuple[Denoiser, Footage, dict[str, float], dict[str, float]]:
    """Train a candidate for every layer; returns them, the video, and their losses before and after."""
    settings = stage_settings(config, config.stage1, run.path)
    footage = load_for(config, teacher, episodes, fabric)
    run.check_inputs(fabric, fabric.world_size, teacher=teacher_digest(teacher), **footage.digests)
    layers = list(range(teacher.config.denoiser.num_layers))
    shape = student_config(
        teacher.config.denoiser, layers, config.hybrid, Rest.FULL, teacher.config.denoiser.window
    )
    torch.manual_seed(settings.loop.seed)
    student = convert(teacher.denoiser, shape, config.hybrid.memory_scale, config.hybrid.gates)
    module = LayerDistillation(
        teacher.denoiser, student, layers, config.objective, compile=config.fabric.compile
    )
    before = heldout_losses(fabric, module.to(fabric.device), footage, settings)
    training = train_stage(fabric, module, new_parameters(student), settings, run, footage)
    after = heldout_losses(fabric, training.average.module, footage, settings)
    return student_of(averaged(training)), footage, before, after


def score_swaps(
    config: SelectLayersConfig,
    teacher: World,
    candidates: Denoiser,
    footage: Footage,
    known: Path,
) -> dict[str, dict[str, float]]:
    """Return the PSNR of the teacher (`teacher`) and of each single swap (its number) by horizon.

    Those that `known` holds from a run that was killed are not measured again.
    """
    scores = read_scores(known) if known.is_file() else {}
    names = ["teacher", *map(str, range(teacher.config.denoiser.num_layers))]
    for name in tqdm([name for name in names if name not in scores], unit="roll-out"):
        world = teacher if name == "teacher" else swapped(teacher, int(name), candidates, config)
        scores[name] = roll_out(world, footage, config.validation)
        write_json(known, scores)
    return scores


def read_scores(known: Path) -> dict[str, dict[str, float]]:
    """Return the scores that a run measured before it was stopped.

    Raises:
        WorldError: If the file is damaged.
    """
    scores = read_json(known)
    if not isinstance(scores, dict):
        raise WorldError(f"{known} is damaged: it holds no scores; remove it to measure them again")
    for name, by_horizon in scores.items():
        if not isinstance(by_horizon, dict):
            raise WorldError(f"{known} is damaged: {name} has no scores; remove it to measure them again")
        for horizon, value in by_horizon.items():
            check_number(value, f"{known}: {name} after {horizon} frames")
    return scores


def describe(selection: Selection) -> str:
    """Return a table of the layers, the one that hurt least first."""
    horizons = list(selection.baseline_db)
    by_layer = {score.layer: score for score in selection.scores}
    lines = ["layer  loss before  after  change of PSNR in dB after " + ", ".join(horizons) + " frames"]
    for layer in selection.ranking:
        score = by_layer[layer]
        changes = "  ".join(f"{score.psnr_change_db[horizon]:+.3f}" for horizon in horizons)
        lines.append(f"{layer:5d}  {score.loss_before:11.4f}  {score.loss_after:.4f}  {changes}")
    return "\n".join(lines)


def selection_of(
    teacher: World, scores: dict[str, dict[str, float]], before: dict[str, float], after: dict[str, float]
) -> Selection:
    """Return what was measured of each layer, beside the teacher's own scores."""
    baseline = scores["teacher"]

    def score(layer: int) -> LayerScore:
        change = {horizon: scores[str(layer)][horizon] - psnr for horizon, psnr in baseline.items()}
        name = f"layer_{layer:02d}"
        return LayerScore(
            layer=layer, psnr_change_db=change, loss_before=before[name], loss_after=after[name]
        )

    return Selection(
        teacher=teacher.config.name,
        teacher_sha256=teacher_digest(teacher),
        baseline_db=baseline,
        scores=[score(layer) for layer in range(teacher.config.denoiser.num_layers)],
    )


@entry("select_layers", SelectLayersConfig)
def main(config: SelectLayersConfig) -> None:
    """Measure which layers of a softmax world can be replaced."""
    teacher = load_teacher(config.teacher)
    episodes = list_episodes(config, teacher, {"stage1": config.stage1})
    out = Path(config.out)
    run = RunFolder(out, stage_settings(config, config.stage1, out))
    if run.latest() is None:
        for scores in out.glob(SCORES.format("*")):  # of candidates that are gone
            scores.unlink()
    fabric = make_fabric(config.fabric, out)
    candidates, footage, before, after = train_candidates(config, teacher, episodes, fabric, run)
    if fabric.global_rank != 0:
        return
    checkpoint = run.latest()
    assert checkpoint is not None
    known = out / SCORES.format(checkpoint.name)  # of these candidates, not of longer trained ones
    scores = score_swaps(config, teacher, candidates, footage, known)
    selection = selection_of(teacher, scores, before, after)
    selection.save(out / SELECTION_FILE)
    print(f"{describe(selection)}\nranking in {out / SELECTION_FILE}")


if __name__ == "__main__":
    main()
