"""Training frames of the outcome heads: recorded ones, and those that a world draws in their place.

What the heads pool is kept, the tokens that enter the network's last layer; the network itself is then no
longer needed, and an update costs as much as the heads do (docs/decisions/0029).
"""

# B sequences at a time, M frames in all, N tokens per frame, D model width

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from training.data.latents import LatentVideo, OutcomeTargets
from training.data.sampling import EndDraws
from worldsim.data.sequences import SequenceIndex
from worldsim.errors import WorldError
from worldsim.evaluation.quality.outcome import TOLERANCE
from worldsim.model.outcome_heads import OutcomeHeads
from worldsim.sampler import watch
from worldsim.settings import check_settings, setting
from worldsim.simulator import Simulator
from worldsim.state import WorldState
from worldsim.world import World


@dataclass(kw_only=True, slots=True)
class SequencesConfig:
    """Which pieces of recorded play are shown to a world, and how it draws along them."""

    num: int = setting(
        256, "How many pieces; a frame takes about 0.2 s on a CPU core and 100 KB of memory.", minimum=1
    )
    length: int = setting(24, "Frames of each that are learned from, as recorded and as drawn.", minimum=1)
    watched: int = setting(32, "Recorded frames before them that are only remembered.", minimum=1)
    depth: int = setting(
        4,
        "Frames that are drawn one after the other before recorded ones are shown again: the first of them "
        "follows recorded frames, the last depth - 1 drawn ones. Labels are those of the recording: the "
        "more frames, the less the dream is still the game that was recorded.",
        minimum=1,
    )
    end_share: float = setting(
        0.5, "Share of pieces with an episode's end; the calibration corrects for it.", minimum=0, maximum=1
    )
    at_a_time: int = setting(0, "Pieces at a time; 0 is 16 on a CPU and 128 on a GPU.", minimum=0)

    def __post_init__(self) -> None:
        check_settings(self, "sequences.")


@dataclass(frozen=True, slots=True)
class OutcomeFrames:
    """What heads pool and what they are to say of it; every frame twice, as recorded and as drawn.

    Attributes:
        tokens: `[M, 2, N, D]` fp16, of the recorded frame and of the drawn one.
        rewards: `[M]` float32, in the game's units.
        ends: `[M]` bool, with which frames the game ended.
        is_before_end: `[M]` bool, the frames so shortly before an end that it may be found there; a drawn one
            of them may show the end already.
    """

    tokens: Tensor
    rewards: Tensor
    ends: Tensor
    is_before_end: Tensor

    def __len__(self) -> int:
        return len(self.ends)

    def targets(self, chosen: Tensor) -> OutcomeTargets:
        """Return what is to be said of frames `[K]`, as `[K, 2]`; drawn ones before an end are left out."""
        is_real = torch.stack([torch.ones_like(self.ends), ~self.is_before_end], dim=1)[chosen]
        pair = self.rewards[chosen], self.ends[chosen]
        rewards, ends = (values[:, None].expand(-1, 2) for values in pair)
        return OutcomeTargets(rewards, ends, is_real)


class TokenKeeper(OutcomeHeads):
    """Heads that pool nothing: what a memory has for a summary are then all tokens of its frame."""

    def __init__(self) -> None:
        nn.Module.__init__(self)

    def pool(self, tokens: Tensor) -> Tensor:
        """Return the tokens."""
        return tokens


def index_pieces(config: SequencesConfig, lengths: Sequence[int], ended: np.ndarray) -> SequenceIndex:
    """Return all places where a piece fits into an episode.

    Args:
        config: Which pieces.
        lengths: Frames of each of E episodes.
        ended: `[E]` bool, which of them ended with their last frame.

    Raises:
        WorldError: If no episode is as long as a piece, or none that is ends.
    """
    index = SequenceIndex(lengths, config.watched + config.length)
    if not index.last_starts(ended).size:
        raise WorldError(
            f"no episode to learn from ends and is as long as a piece of {index.sequence_length} frames "
            "(sequences.watched and sequences.length): there is no end to learn"
        )
    return index


def draw_along(world: World, video: LatentVideo, config: SequencesConfig, seed: int) -> OutcomeFrames:
    """Let a world watch recorded play and draw the same frames itself; keep what heads see of both.

    Args:
        world: On the video's device. It draws in its own way, as in play.
        video: With rewards and ends.
        config: Which pieces.
        seed: Decides the pieces and the noise.

    Raises:
        WorldError: As `index_pieces`.
    """
    index = index_pieces(config, video.lengths, video.ended_episodes())
    rng = np.random.default_rng(seed)
    draws = EndDraws(video, index, config.end_share, config.length)
    starts = draws.replace(index.sample(rng, config.num), rng)
    at_a_time = config.at_a_time or (128 if world.device.type == "cuda" else 16)
    parts: list[OutcomeFrames] = []
    heads, world.denoiser.outcome = world.denoiser.outcome, TokenKeeper()
    simulator = Simulator(world)
    try:
        with tqdm(total=config.num * config.length, desc="drawing", unit="frame") as bar:
            for first in range(0, config.num, at_a_time):
                chunk = starts[first : first + at_a_time]
                seeds = torch.arange(first, first + len(chunk)) + seed
                for part in _draw_batch(simulator, video, chunk, seeds, config):
                    parts.append(part)
                    bar.update(len(chunk))
    finally:
        world.denoiser.outcome = heads
    fields = zip(*((p.tokens, p.rewards, p.ends, p.is_before_end) for p in parts), strict=True)
    return OutcomeFrames(*(torch.cat(field) for field in fields))


@torch.inference_mode()
def _draw_batch(
    simulator: Simulator, video: LatentVideo, starts: np.ndarray, seeds: Tensor, config: SequencesConfig
) -> Iterator[OutcomeFrames]:
    """Yield the frames of some pieces, a frame of all of them at a time; those past an end are left out."""
    world = simulator.world
    memory = world.initial_memory(len(starts))
    no_frames = torch.zeros(len(starts), world.config.height, world.config.width, 3, dtype=torch.uint8)
    index = torch.zeros_like(seeds)
    dream = WorldState(memory=memory, frame_index=index, seed=seeds, frames=no_frames)
    for number in range(config.watched + config.length):
        latents, actions, targets = video.sequences_with_outcomes(starts, 1, np.full(len(starts), number))
        past = number - config.watched
        if past >= 0:
            if past % config.depth == 0:
                dream = replace(dream, memory=memory)
            dream = simulator.step(dream, actions[:, 0])[1]
        at = torch.full_like(seeds, number)
        given = latents[:, 0].float(), actions[:, 0], memory, seeds, at
        skipped, on_map = np.full(len(starts), number), world.on_level_map
        pose = video.pose_sequences(starts, 1, skipped, on_map=True)[:, 0] if on_map else None
        memory = watch(world.denoiser, *given, pose, world.odometry)
        if past >= 0:
            assert memory.summary is not None
            assert dream.memory.summary is not None
            real = targets.is_real[:, 0]
            tokens = torch.stack([memory.summary, dream.memory.summary], dim=1).half()
            later = video.sequences_with_outcomes(starts, TOLERANCE, np.full(len(starts), number + 1))[2].ends
            yield OutcomeFrames(
                tokens[real], targets.rewards[real, 0], targets.ends[real, 0], later.any(dim=1)[real]
            )
