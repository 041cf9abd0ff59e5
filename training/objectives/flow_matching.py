"""Rectified flow over a clean and a noisy stream of the same frames: the objective of a world model."""

# B batch, F frames, C h w latent size, A action axes

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from training.data.latents import OutcomeTargets
from training.engine.carry import Carry
from training.objectives.noise import NoisyBatch, ObjectiveConfig, add_noise
from training.objectives.outcome import OutcomeLoss
from training.objectives.prefixes import Prefixes, draw_prefixes, jittered
from worldsim.model.denoiser import Denoiser
from worldsim.model.memory.state import MemoryState
from worldsim.model.segments import SequencePass, check_constant_memory, merge_memory

STILL = 1e-3
"""Mean squared change of latents of unit variance below which a frame stands still: what the video's
compression leaves is not to be taken for motion."""


def change_weights(latents: Tensor, weight: float, cap: float) -> Tensor:
    """Return how much each cell of each frame counts, by how much it changes from the frame before.

    A cell whose squared change is r times the mean of its frame counts `1 + weight * min(r, cap)`, over the
    mean of that in the frame: every frame as a whole counts as much as without weights. But for the cap, the
    share `weight / (1 + weight)` of a frame's weight is laid out by change, the rest evenly. If the whole
    picture moves, r is about 1 nearly everywhere; what is small and moves on its own has a large r.

    Args:
        latents: `[B, F, C, h, w]`, clean, unit variance.
        weight: At least 0; 0 weighs all cells alike.
        cap: Largest r, above 0.

    Returns:
        `[B, F, 1, h, w]`, mean 1 in each frame; all 1 in the first, which has none before it.
    """
    change = latents.diff(dim=1).square().mean(dim=2, keepdim=True)
    ratio = change / (change.mean(dim=(3, 4), keepdim=True) + STILL)
    weights = 1 + weight * ratio.clamp(max=cap)
    weights = weights / weights.mean(dim=(3, 4), keepdim=True)
    return torch.cat([torch.ones_like(latents[:, :1, :1]), weights], dim=1)


class FlowMatchingLoss(nn.Module):
    """Mean squared error of the predicted velocity: what the objectives below share.

    With `change_weight`, the mean over the cells of a frame is weighted by how much each changes. Where
    the network sees too little to tell what comes, the velocity that minimises it is then that of a game in
    which changes are likelier than they are; where it sees enough, it is the same (docs/decisions/0021).
    The frame with which a game ends counts as often as it comes, and no cell of it for its change: it mostly
    repeats the one before it, so that all that changes would be the sign of death (docs/decisions/0029).

    Args:
        denoiser: What learns.
        config: Noise and weights.
        outcome: What its outcome heads learn; None teaches none.
    """

    def __init__(
        self, denoiser: Denoiser, config: ObjectiveConfig, outcome: OutcomeLoss | None = None
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        pure = 0.0 if denoiser.config.recycled else config.pure_noise_probability
        self.config = replace(config, pure_noise_probability=pure)
        self.outcome = outcome

    def compute(
        self,
        latents: Tensor,
        actions: Tensor,
        generator: torch.Generator,
        memory: MemoryState | None,
        targets: OutcomeTargets | None = None,
        poses: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], MemoryState | None]:
        """Return the losses of a batch, and the memory after it.

        What is carried on is what the frames that stood as context wrote: noised ones, or the model's own.

        Args:
            latents: `[B, F, C, h, w]`, unit variance.
            actions: `[B, F, A]`, the action that leads to each frame.
            generator: Decides noise and levels; on the latents' device.
            memory: Before the first frame; None begins with nothing, and none is returned then.
            targets: What the outcome heads are to say; frames that are not real count nowhere.
            poses: `[B, F, 3]`, where frames are seen from; for keys of poses.

        Returns:
            `loss`, and for the log the loss at pure noise, `loss_pure`, those of frames drawn by their pose
            alone, `loss_recall`, and after misleading ones, `loss_misled`, and those of the heads; the
            memory, without gradients.
        """
        latents = latents.float()
        prefixes, context = self.draw_prefixes(latents, generator), None
        if prefixes is not None:
            clips = latents
            latents, actions = prefixes.take(clips), prefixes.take(actions)
            poses = None if poses is None else prefixes.take(poses)
            context = prefixes.mislead(latents, clips) if self.config.misled_share else None
        if poses is not None:
            poses = jittered(poses, (self.config.pose_jitter[0], self.config.pose_jitter[1]), generator)
        batch = self.add_noise(latents, actions, generator, memory, poses, prefixes, context)
        given = (batch.clean, batch.noisy, batch.levels)
        asked = prefixes if self.config.recalls else None
        recalled, alone = (None, None) if asked is None else (asked.recalled, asked.alone)
        passed, memory_after = self._run(*given, actions, memory, batch.noise, poses, alone, recalled)
        squared = (passed.velocity.float() - batch.velocity).square()
        ended = None if targets is None else targets.ends
        error = self.frame_means(squared, latents, ended, recalled)  # [B, F]
        # A sequence's first frame has nothing to go by; the second is the first that an action led to.
        counted = has_past(latents, memory)
        if targets is not None:
            counted = counted & targets.is_real
        weight = self.frame_weights(counted, ended)
        weight = weight if prefixes is None else prefixes.weigh(weight)
        losses = {"loss": masked_mean(error, weight)}
        if passed.first_velocity is None:
            pure = counted & (batch.levels[..., 1] == 1)
            losses["loss_pure"] = masked_mean(error, weight * pure).detach()
        else:
            first = (passed.first_velocity.float() - batch.velocity).square()
            loss_pure = masked_mean(self.frame_means(first, latents, ended, recalled), weight)
            losses["loss"] = losses["loss"] + self.config.first_pass_weight * loss_pure
            losses["loss_pure"] = loss_pure.detach()
        if asked is not None:
            kinds = {"recall": asked.alone, "misled": asked.misled}
            means = self.place_means(squared).detach()
            losses |= {f"loss_{kind}": masked_mean(means, chosen) for kind, chosen in kinds.items()}
        if self.config.change_weight:  # what runs with other weights are compared by
            losses["loss_unweighted"] = masked_mean(squared.mean(dim=(2, 3, 4)), counted).detach()
        if targets is not None and self.outcome is not None:
            heads, summary = self.denoiser.outcome, passed.summary
            assert heads is not None
            assert summary is not None
            told = counted if recalled is None else counted & ~recalled
            predicted = self.outcome(heads, summary, targets, told)
            losses["loss_picture"] = losses["loss"].detach()
            losses["loss"] = losses["loss"] + predicted.pop("loss_outcome")
            losses |= predicted
        return losses, memory_after

    def frame_means(
        self, squared: Tensor, latents: Tensor, ended: Tensor | None = None, recalled: Tensor | None = None
    ) -> Tensor:
        """Return the mean of squared errors `[B, F, C, h, w]` over each frame, `[B, F]`.

        Cells count as `change_weight` says, by how much the clean `latents` change there; those of frames
        that ended a game, where `ended` `[B, F]` says so, as a cell that does not change does in others, and
        those of frames that are `recalled` all alike: the frame before them is another's. Of these
        `status_rows` do not count at all.
        """
        config = self.config
        if config.change_weight:
            weights = change_weights(latents, config.change_weight, config.change_cap)
            if ended is not None:
                still = 1 / (1 + config.change_weight)
                weights = torch.where(ended[..., None, None, None], still, weights)
            if recalled is not None:
                weights = torch.where(recalled[..., None, None, None], 1.0, weights)
            squared = squared * weights
        means = squared.mean(dim=(2, 3, 4))
        if recalled is None or not config.status_rows:
            return means
        return torch.where(recalled, self.place_means(squared), means)

    def place_means(self, squared: Tensor) -> Tensor:
        """Return the mean of errors `[B, F, C, h, w]` over what a place shows, `[B, F]`.

        The lowest rows show how the player is: the states know how that was when they last saw the place.
        """
        return squared[..., : squared.shape[-2] - self.config.status_rows, :].mean(dim=(2, 3, 4))

    def frame_weights(self, counted: Tensor, ended: Tensor | None) -> Tensor:
        """Return how much each frame counts, `[B, F]`: those that end a game as often as games end.

        Sequences that hold an end are drawn more often than they come, for the heads; drawn as often, ends
        would be learned as often, and dreams would be so much deadlier than the game.
        """
        if ended is None or self.outcome is None:
            return counted
        return torch.where(ended, self.outcome.end_frequency, 1.0) * counted

    def draw_prefixes(self, latents: Tensor, generator: torch.Generator) -> Prefixes | None:
        """Return which frames of clips `[B, F, C, h, w]` follow a prefix; None if none is to."""
        config = self.config
        shares = (config.suffix_share, config.recall_share, config.misled_share)
        if not any(shares):
            return None
        noised, alone, misled = (round(share * len(latents)) for share in shares)
        return draw_prefixes(latents, noised, alone, generator, misled)

    def add_noise(
        self,
        latents: Tensor,
        actions: Tensor,
        generator: torch.Generator,
        memory: MemoryState | None,
        poses: Tensor | None = None,
        prefixes: Prefixes | None = None,
        context: Tensor | None = None,
    ) -> NoisyBatch:
        """Return a batch with its noise drawn; a share of its clips has the model's own frames as context."""
        batch = add_noise(latents, self.config, generator, prefixes, context)
        num_own = round(self.config.own_context_share * len(latents))
        if not num_own:
            return batch
        poses = None if poses is None else poses[:num_own]
        own = self._predict_context(latents[:num_own], batch, actions[:num_own], generator, memory, poses)
        levels = batch.levels.clone()
        levels[:num_own, :, 0] = 0.0
        return replace(batch, clean=torch.cat([own, batch.clean[num_own:]]), levels=levels)

    def _run(
        self,
        clean: Tensor,
        noisy: Tensor | None,
        levels: Tensor,
        actions: Tensor,
        memory: MemoryState | None,
        noise: Tensor,
        poses: Tensor | None = None,
        alone: Tensor | None = None,
        unwritten: Tensor | None = None,
    ) -> tuple[SequencePass, MemoryState | None]:
        """Run the network over sequences; `noise` is what the first passes of a recycled one begin from."""
        denoiser = self.denoiser
        if memory is not None:
            check_constant_memory(denoiser.config)
        before = denoiser.initial_memory(len(clean)) if memory is None else memory
        first = noise if denoiser.config.recycled else None
        given = (clean, noisy, levels, actions, before)
        passed = denoiser.run_sequences(*given, noise=first, poses=poses, alone=alone, unwritten=unwritten)
        return passed, None if memory is None else merge_memory(memory, passed, clean)

    @torch.no_grad()
    def _predict_context(
        self,
        latents: Tensor,
        batch: NoisyBatch,
        actions: Tensor,
        generator: torch.Generator,
        memory: MemoryState | None = None,
        poses: Tensor | None = None,
    ) -> Tensor:
        """Return the model's own predictions of the clips, to stand in the place of their clean frames.

        One pass predicts all frames from noise, each after the true ones before it; as context they carry the
        very errors that play makes, at the price of a forward pass. A second pass, after these frames, makes
        the errors of two frames, and so on: after as many passes as frames it is a free roll-out. A frame
        that has nothing before it, the first of a sequence, stays true.
        """
        clips, depth = len(latents), self.config.own_context_depth
        own, levels = batch.clean[:clips], batch.levels[:clips].clone()
        memory = memory.first_rows(clips) if memory is not None else None
        is_drawn = has_past(latents, memory)[..., None, None, None]
        levels[..., 1] = 1.0
        if self.denoiser.config.recycled:  # as in play, the pass that draws a frame is the one that writes
            noise, noisy = batch.noise[:clips], None
        else:
            noise = noisy = torch.randn(latents.shape, generator=generator, device=latents.device)
        for done in range(depth):
            passed, _ = self._run(own, noisy, levels, actions, memory, noise, poses)
            drawn = noise - passed.velocity.float()
            drawn = torch.where(is_drawn, drawn, latents)
            kept = clips * done // depth  # predicted often enough; a pass over all keeps one shape to compile
            own = torch.cat([own[:kept], drawn[kept:]])
            levels[..., 0] = 0.0  # what it has drawn it takes for clean, as in play
        return own


def has_past(latents: Tensor, memory: MemoryState | None) -> Tensor:
    """Return which frames of `[B, F, C, h, w]` have one before them, `[B, F]` bool."""
    past = torch.ones(latents.shape[:2], dtype=torch.bool, device=latents.device)
    past[:, 0] = False if memory is None else memory.num_committed > 0
    return past


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of the values where `mask` is True, or weighted by it; 0 where it nowhere is."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


class SequenceFlowMatching(FlowMatchingLoss):
    """The objective on sequences that begin with an empty memory."""

    def forward(
        self,
        latents: Tensor,
        actions: Tensor,
        generator: torch.Generator,
        targets: OutcomeTargets | None = None,
        poses: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the losses of a batch; see `FlowMatchingLoss.compute`."""
        return self.compute(latents, actions, generator, None, targets, poses)[0]


class SegmentFlowMatching(FlowMatchingLoss):
    """The objective on segments that go on from the memory of those of the step before."""

    def forward(
        self,
        latents: Tensor,
        actions: Tensor,
        generator: torch.Generator,
        is_new: Tensor,
        targets: OutcomeTargets | None = None,
        poses: Tensor | None = None,
        *,
        carry: Carry,
    ) -> tuple[dict[str, Tensor], Carry]:
        """Return the losses of a batch, and what the next one goes on from; see `FlowMatchingLoss.compute`.

        Args:
            latents: `[B, F, C, h, w]`.
            actions: `[B, F, A]`.
            generator: Decides noise and levels.
            is_new: `[B]` bool, which rows begin a sequence, and so with an empty memory.
            targets: What the outcome heads are to say.
            poses: `[B, F, 3]`, where frames are seen from; for keys of poses.
            carry: From the step before.
        """
        before = carry.memory.reset_rows(is_new)
        losses, memory = self.compute(latents, actions, generator, before, targets, poses)
        assert memory is not None
        return losses, Carry(memory)
