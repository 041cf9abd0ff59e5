"""Teaching of odometry on recorded poses: `python -m training.odometry world=WORLD`, or `codec=`.

A small recurrent network learns from actions and latents how far the player moves in each frame, forward,
sideways and in degrees, on video that records poses. The network whose memory follows the path learns nothing
here. What it writes is measured on held-out video: errors of heading and place after a hundred frames. A
world whose keys are poses also dreams, at recorded poses, so that it learns from what it will read in play;
the world is then written with it, and can be played.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from training.cli.entry import entry
from training.data.latents import LatentVideo, choose_episodes, digest_of, latent_video, to_device
from training.engine.fabric import Passes, make_fabric, share_passes
from training.engine.lock import locked_folder
from training.engine.loop import fit, is_done, seed_of
from training.engine.run_folder import RunFolder
from training.engine.update import Training, prepare
from training.odometry.dreams import taught_by_dreams
from training.odometry.footage import TaughtVideo, read_displacements, steps_to_learn, taught_by
from training.odometry.join import MEASURES_FILE, NETWORK, join, open_followed
from training.odometry.learner import Clips, OdometryLearner, concatenate, mirror
from training.odometry.measures import format_measures, measure_odometry
from training.odometry.settings import MeasureConfig, TrainOdometryConfig
from training.odometry.sight import READ_FRAMES, TaughtFrames, fit_brightness, teach_sight
from training.world.clips import cache_for, own_shares, own_workers
from training.world.integrated_poses import network_folder
from worldsim.actions import ActionLayout
from worldsim.codec import FrameCodec
from worldsim.data.sequences import EpisodeReference, SequenceIndex
from worldsim.errors import WorldError
from worldsim.model.memory.odometry import Odometry, OdometryConfig, load_odometry, save_odometry
from worldsim.storage.files import write_json
from worldsim.storage.tensors import read_weights, save_weights, sha256_of
from worldsim.world.config import check_odometry
from worldsim.world.rewrite import encoder_digest
from worldsim.world.world import MODEL_FILE, World, find_codec

if TYPE_CHECKING:
    from lightning_fabric import Fabric

SIGHT_FILE = "sight.safetensors"
"""In the run's folder: what was taught before the first update."""


def build_odometry(config: TrainOdometryConfig, codec: FrameCodec, actions: ActionLayout) -> Odometry:
    """Return what is taught: a new network, or that of `init`.

    Raises:
        WorldError: If that one reads other latents, or other actions.
    """
    channels, height, width = codec.latent_shape
    wanted = OdometryConfig(
        latent_shape=[channels, height, width],
        num_values=list(actions.num_values),
        encoder=encoder_digest(codec),
        hidden=config.hidden,
        features=config.features,
        sight=config.sight.num_steps > 0,
        ground=config.ground,
    )
    if not config.init:
        return Odometry(wanted)
    odometry = load_odometry(network_folder(Path(config.init)))
    found = odometry.config
    if (found.latent_shape, found.encoder) != (wanted.latent_shape, wanted.encoder):
        raise WorldError(f"init={config.init} reads the latents of another encoder than codec={config.codec}")
    if odometry.ground is not None and config.mirrored:
        raise WorldError(f"init={config.init} has a map of one level, which has no mirror: mirrored=false")
    if found.num_values != wanted.num_values:
        raise WorldError(
            f"init={config.init} was taught with actions of {found.num_values} values, the video has "
            f"{wanted.num_values}"
        )
    return odometry


def heldout_sets(config: TrainOdometryConfig, actions: ActionLayout) -> dict[str, list[EpisodeReference]]:
    """Return the held-out episodes of each folder.

    Raises:
        WorldError: If they have other buttons, or none of a folder is long enough.
    """
    found = {folder: choose_episodes([folder], 0, actions) for folder in config.data.heldout}
    for folder, references in found.items():
        check_lengths(references, config.measure.length, f"measure.frames: {folder}")
    return found


def check_lengths(references: Sequence[EpisodeReference], length: int, name: str) -> None:
    """Raise `WorldError`, beginning with `name`, if no episode holds so many frames."""
    try:
        SequenceIndex([each.num_frames for each in references], length)
    except WorldError as error:
        raise WorldError(f"{name}: {error}") from error


class Lessons(NamedTuple):
    """What a pass learns from.

    Attributes:
        recorded: Gameplay video.
        dreamt: What the world draws; None where odometry learns from recorded video alone.
    """

    recorded: TaughtVideo
    dreamt: TaughtVideo | None = None


def make_batches(
    parts: dict[int, Lessons], config: TrainOdometryConfig, layout: ActionLayout, device: torch.device
) -> Callable[[int, int], tuple[Clips, Clips, torch.Generator]]:
    """Return the function that draws the clips of a pass of an update from its numbers alone.

    Args:
        parts: What each pass learns from.
        config: How many clips, and how long.
        layout: Of the actions.
        device: Of the video.
    """
    length = config.sequence_length

    def clips_of(video: TaughtVideo, count: int, rng: np.random.Generator, is_seen: bool) -> Clips:
        starts = SequenceIndex(video.lengths, 1 + length).sample(rng, count)
        noisy = rng.random(count) < config.noisy_share
        compared = video.seen(starts, length, noisy) if is_seen else None
        clips = Clips(*video.clips(starts, length), compared, video.begins(starts))
        if not config.mirrored:
            return clips
        return mirror(clips, layout, to_device(rng.random(count) < 0.5, device))

    def batch_at(step: int, number: int) -> tuple[Clips, Clips, torch.Generator]:
        seed, part = seed_of(config.loop.seed, step, number), parts[number]
        rng = np.random.default_rng(seed)
        num_dreamt = 0 if part.dreamt is None else round(config.dreams.share * config.batch_size)
        seen = []
        if num_dreamt < config.batch_size:
            seen.append(clips_of(part.recorded, config.batch_size - num_dreamt, rng, True))
        if part.dreamt is not None and num_dreamt:
            seen.append(clips_of(part.dreamt, num_dreamt, rng, True))
        unseen = clips_of(part.recorded, config.unseen_size, rng, False)
        return concatenate(seen), unseen, torch.Generator(device).manual_seed(seed)

    return batch_at


class Teaching:
    """A run: its data, and what is measured and written at checkpoints.

    Args:
        config: Settings.
        fabric: The devices.
        run: Where to.
        codec: Whose latents are read.
        chosen: Episodes to learn from.
        world: Dreams; None if there are to be no dreams.
        odometry: What is taught, moved to the device of the video; what it reads is taught here.
    """

    def __init__(
        self,
        config: TrainOdometryConfig,
        fabric: Fabric,
        run: RunFolder,
        codec: FrameCodec,
        chosen: Sequence[EpisodeReference],
        world: World | None,
        odometry: Odometry,
    ) -> None:
        self.config, self.fabric, self.run, self.codec = config, fabric, run, codec
        self.world = None if world is None else world.to(fabric.device, torch.float32)
        heldout = heldout_sets(config, chosen[0].info.actions)
        check_lengths(chosen, 1 + config.sequence_length, "sequence_length")
        self.passes: Passes = share_passes(fabric, config.batch_size, config.loop.global_batch_size)
        shares = dict(zip(self.passes.own, own_shares(chosen, self.passes), strict=True))
        if world is not None:
            for name, references in {**shares, **heldout}.items():
                place = name if isinstance(name, str) else "data.train"
                check_lengths(references, config.dreams.length, f"dreams.frames: {place}")
        # Poses are looked for before hours of encoding.
        moved = {key: read_displacements(each) for key, each in (heldout | shares).items()}
        every = [each for references in heldout.values() for each in references]
        digests = {"train": digest_of(codec, chosen), "heldout": digest_of(codec, every)}
        if world is not None and world.folder is not None:
            digests["world"] = sha256_of(world.folder / MODEL_FILE)
        run.check_inputs(fabric, self.passes.total, **digests)
        self.odometry = odometry.to(fabric.device)
        self.parts: dict[int, Lessons] = {}
        for key, references in shares.items():  # one after the other: each is compared and not kept
            video = self._encode(references)
            if not self.parts:
                self._teach_sight(video, moved[key])
            self.parts[key] = self._compare(video, moved[key])
        self.heldout = {key: self._compare(self._encode(each), moved[key]) for key, each in heldout.items()}
        self.world = None
        self.found: dict[str, dict[str, float]] = {}

    def _encode(self, references: Sequence[EpisodeReference]) -> LatentVideo:
        data, device = self.config.data, self.fabric.device
        workers, cache = own_workers(data, self.fabric), cache_for(self.codec, data, device)
        return latent_video(self.codec, references, device, num_workers=workers, cache=cache)

    def _teach_sight(self, video: LatentVideo, moved: Sequence[Tensor]) -> None:
        """Teach sight on the first pass's video; the same one for all devices, since it compares first."""
        sight, config = self.odometry.sight, self.config
        if sight is None:
            return
        file = self.run.path / SIGHT_FILE
        if config.init:
            pass  # it sees already
        elif self.run.latest() is not None:  # a resumed run goes on with the same one, to the bit
            if not file.is_file():
                raise WorldError(
                    f"{self.run.path} holds a run of a network that reads motion energies; choose another "
                    f"out= folder, or go on from it with init={self.run.path}"
                )
            sight.load_state_dict(read_weights(file))
        elif self.fabric.global_rank == 0:
            frames, steps = steps_to_learn(moved, config.sight.max_frames)
            taught = TaughtFrames(
                video.latents, frames.to(video.latents.device), steps.to(video.latents.device)
            )
            some = taught.frames[:: max(1, len(taught.frames) // READ_FRAMES)]
            fit_brightness(sight.flow, self.codec, video.latents[some])
            teach_sight(sight, taught, config.sight.num_steps, config.loop.seed)
            save_weights(sight, file, torch.float32)
        weights = {name: tensor.cpu() for name, tensor in sight.state_dict().items()}
        sight.load_state_dict(self.fabric.broadcast(weights))
        sight.requires_grad_(False)

    def _compare(self, video: LatentVideo, moved: Sequence[Tensor]) -> Lessons:
        noise, odometry = self.config.noise, self.odometry
        recorded = taught_by(video, moved, odometry, noise)
        if self.world is None:
            return Lessons(recorded)
        return Lessons(recorded, taught_by_dreams(self.world, video, odometry, self.config.dreams, noise))

    def on_checkpoint(self, training: Training) -> dict[str, float]:
        """Measure and write the averaged network; returns the numbers of the first folder, dreams last."""
        learner = training.averaged()
        assert isinstance(learner, OdometryLearner)
        odometry = learner.odometry
        self.found = {
            folder: measure_odometry(odometry, lessons.recorded, self.config.measure)
            for folder, lessons in self.heldout.items()
        }
        for folder, lessons in self.heldout.items():
            if lessons.dreamt is not None:
                how = self._measure_of_dreams()
                self.found[f"{folder}, dreamt"] = measure_odometry(odometry, lessons.dreamt, how)
        if self.fabric.global_rank == 0:
            save_odometry(odometry, self.run.path / NETWORK)
            write_json(self.run.path / MEASURES_FILE, {"steps": training.step, **self.found})
        if is_done(training, self.config.loop):
            self.fabric.print(format_measures(self.found))
        folder = next(iter(self.heldout))
        dreamt = self.found.get(f"{folder}, dreamt", {})
        return self.found[folder] | {f"dreamt_{name}": value for name, value in dreamt.items()}

    def _measure_of_dreams(self) -> MeasureConfig:
        """Return how whole dreams are measured, from the last frame that is watched on."""
        dreams = self.config.dreams
        return replace(
            self.config.measure,
            watched_frames=dreams.watched_frames - 1,
            frames=dreams.frames,
            num_clips=dreams.num_clips,
        )


def teach(config: TrainOdometryConfig) -> dict[str, dict[str, float]]:
    """Teach, and return what was measured on each folder of held-out video."""
    if config.fabric.strategy == "fsdp":
        raise WorldError("fabric.strategy=fsdp is for large networks: choose ddp")
    world = open_followed(config.world, Path(config.out)) if config.world else None
    run = RunFolder(config.out, config)
    fabric = make_fabric(config.fabric, run.path)
    codec = find_codec(config.codec) if world is None else world.codec
    codec.eval().requires_grad_(False)
    chosen = choose_episodes(config.data.train, config.data.max_frames)
    torch.manual_seed(config.loop.seed)
    odometry = build_odometry(config, codec, chosen[0].info.actions)
    if world is not None:
        check_odometry(world.config, odometry.config)  # before anything is encoded
    if config.sight.num_steps and not odometry.config.sight:
        fabric.print(
            f"init={config.init} reads motion energies and goes on so: flow is seen by networks that are "
            "taught without init"
        )
    teaching = Teaching(config, fabric, run, codec, chosen, world if config.has_dreams else None, odometry)
    if not config.init:
        odometry.calibrate(torch.cat([part.recorded.compared[0] for part in teaching.parts.values()]))
    learner = OdometryLearner(odometry, config.summed_frames)
    learned = [each for each in odometry.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=config.learning_rate, weight_decay=1e-4)
    training = prepare(fabric, learner, [optimizer], config.loop.ema_decay, teaching.passes)
    fit(
        fabric,
        training,
        make_batches(teaching.parts, config, chosen[0].info.actions, fabric.device),
        config.loop,
        run,
        frames_per_batch=config.batch_size * config.sequence_length,
        on_checkpoint=teaching.on_checkpoint,
    )
    fabric.print(f"odometry in {run.path / NETWORK}, its errors in {run.path / MEASURES_FILE}")
    if world is not None and fabric.global_rank == 0:
        print(f"world in {join(world, run.path / NETWORK, config.measure, run.path)}")
    return teaching.found


@entry("odometry", TrainOdometryConfig)
def main(config: TrainOdometryConfig) -> None:
    """Teach odometry, or join what was taught to a world."""
    if config.teach:
        teach(config)
        return
    out = Path(config.out)
    world = open_followed(config.world, out)
    with locked_folder(out):
        print(f"world in {join(world, Path(config.init), config.measure, out)}")
