"""Clips with a prefix: what counts, and that a frame asked for by its pose is drawn from the states alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.fakes import draw, make_denoiser, tiny_denoiser_config
from training.objectives.flow_matching import SequenceFlowMatching
from training.objectives.noise import ObjectiveConfig, add_noise
from training.objectives.prefixes import SUFFIX_NOISE, draw_prefixes, jittered
from worldsim.errors import WorldError
from worldsim.model.config import MemoryKeys, MemoryPhase
from worldsim.model.denoiser import Denoiser
from worldsim.model.segments import SequencePass

ROWS, FRAMES, PREFIX = 8, 20, 4


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_last_clips_have_prefixes_and_every_clip_counts_as_much() -> None:
    clips = torch.arange(FRAMES).expand(ROWS, FRAMES)
    lengths = []
    for seed in range(20):
        drawn = draw_prefixes(clips, 2, 3, seeded(seed))
        assert not (drawn.prefix | drawn.noised | drawn.alone)[:3].any()
        assert drawn.noised.any(1).tolist() == [False] * 3 + [True] * 2 + [False] * 3
        assert drawn.alone.any(1).tolist() == [False] * 5 + [True] * 3
        assert (drawn.prefix ^ drawn.noised ^ drawn.alone)[3:].all()
        length = drawn.prefix[3:].sum(1)
        assert (drawn.prefix[3:] == (clips[3:] < length[:, None])).all()
        lengths += length.tolist()
        weights = drawn.weigh(torch.ones(ROWS, FRAMES))
        torch.testing.assert_close(weights.sum(1), torch.full((ROWS,), float(FRAMES)))
        assert not weights[drawn.prefix].any()
        taken = drawn.take(clips)
        assert torch.equal(taken[~drawn.alone], clips[~drawn.alone])
        asked = drawn.alone & (taken < length.max())
        assert asked.any()
        assert ((taken == clips) | (taken[:, :] < drawn.prefix.sum(1, keepdim=True))).all()
    assert not drawn.misled.any()
    assert min(lengths) == FRAMES // 2 and FRAMES * 0.8 <= max(lengths) <= FRAMES * 0.9


def test_prefixes_are_clean_and_the_context_of_noised_suffixes_is_noised_strongly() -> None:
    latents = torch.randn(ROWS, FRAMES, 2, 2, 2, generator=seeded())
    prefixes = draw_prefixes(latents, 4, 2, seeded(1))
    config = ObjectiveConfig(context_noise_probability=1.0)
    levels = add_noise(latents, config, seeded(2), prefixes).levels[..., 0]
    assert not levels[prefixes.prefix].any()
    noised = levels[prefixes.noised]
    assert noised.min() >= SUFFIX_NOISE[0] and noised.max() > 0.8
    assert 0 < levels[:2].max() <= config.context_noise


def test_misleading_frames_are_of_another_clip_or_another_time() -> None:
    row, frame = torch.meshgrid(torch.arange(ROWS), torch.arange(FRAMES), indexing="ij")
    clips = torch.stack([row, frame], dim=-1).float()
    for seed in range(20):
        drawn = draw_prefixes(clips, 1, 1, seeded(seed), num_misled=4)
        assert drawn.misled.any(1).tolist() == [False] * 3 + [True] * 4 + [False]
        assert torch.equal(drawn.recalled, drawn.misled | drawn.alone)
        taken = drawn.take(clips)
        assert (taken[drawn.misled][:, 1] < frame[drawn.misled]).any(), "frames of the prefix are asked for"
        context = drawn.mislead(taken, clips)
        assert torch.equal(context[~drawn.misled], taken[~drawn.misled])
        wrong = context[drawn.misled]
        own = row[drawn.misled] % 2 == 0
        assert (wrong[own, 0] == row[drawn.misled][own]).all() and own.any()
        assert (wrong[~own, 0] == row[drawn.misled][~own] - 1).all() and not own.all()
        apart = (wrong[:, 1] - frame[drawn.misled]) % FRAMES
        assert apart.min() >= FRAMES // 4 and apart.max() < 3 * FRAMES // 4


def test_misleading_frames_are_the_context_and_never_the_target() -> None:
    module, (latents, actions, poses) = pose_module(recall_share=0.0, misled_share=0.5), pose_batch()
    seen = []
    run = module.denoiser.run_sequences

    def watched(clean: Tensor, noisy: Tensor, *args: Tensor, **told: Tensor) -> SequencePass:
        seen.append((clean, noisy, told["alone"], told["unwritten"]))
        return run(clean, noisy, *args, **told)

    module.denoiser.run_sequences = watched
    module.config = replace(module.config, context_noise_probability=0.0, suffix_share=0.0)
    losses = module(latents, actions, seeded(3), None, poses)
    assert losses["loss_misled"] > 0 and losses["loss_recall"] == 0
    ((clean, noisy, alone, unwritten),) = seen
    assert not alone.any() and unwritten[4:].any() and not unwritten[:4].any()
    prefixes = draw_prefixes(latents, 0, 0, seeded(3), 4)
    assert torch.equal(unwritten, prefixes.misled)
    torch.testing.assert_close(clean, prefixes.mislead(prefixes.take(latents), latents))
    apart = (noisy - prefixes.take(latents))[prefixes.misled].flatten(1).norm(dim=1)
    assert (apart < (noisy - clean)[prefixes.misled].flatten(1).norm(dim=1)).float().mean() > 0.6


@pytest.mark.parametrize("change_weight", [0.0, 1.0])
def test_how_the_player_is_is_not_asked_of_a_place(change_weight: float) -> None:
    module, (latents, actions, poses) = pose_module(misled_share=0.25), pose_batch()
    module.config = replace(module.config, change_weight=change_weight, status_rows=1)
    squared = torch.zeros_like(latents)
    squared[..., -1, :] = 1.0
    prefixes = draw_prefixes(latents, 0, 4, seeded(3), 2)
    asked = prefixes.recalled
    means = module.frame_means(squared, latents, None, asked)
    assert not means[asked].any() and (means[~asked] > 0).all()
    squared = 1 - squared  # the rest counts as much as whole frames do
    torch.testing.assert_close(
        module.frame_means(squared, latents, None, asked)[asked], torch.ones(()).expand(asked.sum())
    )
    losses = module(latents, actions, seeded(3), None, poses)
    module.config = replace(module.config, status_rows=0)
    others = module(latents, actions, seeded(3), None, poses)
    assert all(losses[name] != others[name] for name in ("loss", "loss_recall", "loss_misled"))


def pose_module(
    *, recall_share: float = 0.5, misled_share: float = 0.0, **changed: object
) -> SequenceFlowMatching:
    shape = replace(tiny_denoiser_config(MemoryPhase.NONE, **changed), memory_keys="pose")
    torch.manual_seed(0)
    shares = {"recall_share": recall_share, "misled_share": misled_share}
    objective = ObjectiveConfig(**shares, suffix_share=0.25, change_weight=1.0)
    return SequenceFlowMatching(Denoiser(shape), objective)


def pose_batch() -> tuple[Tensor, Tensor, Tensor]:
    latents = torch.randn(ROWS, FRAMES, 4, 4, 6, generator=seeded())
    return (
        latents,
        torch.randint(3, latents.shape[:2] + (3,), generator=seeded()),
        100 * torch.randn(ROWS, FRAMES, 3, generator=seeded(1)),
    )


@pytest.mark.parametrize("recycled", [False, True], ids=["ordinary", "recycled"])
def test_recall_is_a_loss_of_its_own_that_teaches_what_is_written(recycled: bool) -> None:
    module, (latents, actions, poses) = pose_module(recycled=recycled), pose_batch()
    for parameter in module.parameters():
        parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=seeded(5)))
    losses = module(latents, actions, seeded(3), None, poses)
    assert {"loss", "loss_pure", "loss_recall"} <= losses.keys()
    losses["loss"].backward()
    phi_v = module.denoiser.get_parameter("blocks.0.self_attn.phi_v.weight")
    assert phi_v.grad is not None and phi_v.grad.abs().max() > 0


def asked_gradients(denoiser: Denoiser) -> tuple[Tensor, Tensor]:
    """Return how strongly frames asked for by their pose depend on each clean frame, and the others do."""
    clean, noisy = draw(1, 8, 4, 8, 8).requires_grad_(), draw(1, 8, 4, 8, 8, seed=2)
    levels, actions = draw(1, 8, 2, seed=3).sigmoid(), torch.ones(1, 8, 3, dtype=torch.int64)
    alone = torch.arange(8)[None] >= PREFIX
    noise = draw(1, 8, 4, 8, 8, seed=5) if denoiser.config.recycled else None
    passed = denoiser.run_sequences(
        clean,
        noisy,
        levels,
        actions,
        denoiser.initial_memory(1),
        noise=noise,
        poses=50 * draw(1, 8, 3, seed=6),
        alone=alone,
        unwritten=alone,
    )
    found = []
    for chosen in (alone, ~alone):
        velocity = passed.velocity[chosen].square().sum()
        (gradient,) = torch.autograd.grad(velocity, clean, retain_graph=True)
        found.append(gradient.abs().amax(dim=(0, 2, 3, 4)))
    return found[0], found[1]


@pytest.mark.parametrize("recycled", [False, True], ids=["ordinary", "recycled"])
def test_a_frame_asked_for_by_its_pose_sees_the_prefix_through_the_states_alone(recycled: bool) -> None:
    denoiser = make_denoiser(MemoryPhase.NONE, memory_keys=MemoryKeys.POSE, recycled=recycled)
    asked, others = asked_gradients(denoiser)
    written = PREFIX - recycled  # the pass that would write the last frame is asked for another view
    assert (asked[:written] > 1e-6).all()
    assert not asked[written:].any(), "neither the frame before it nor one after the prefix"
    assert (others[: PREFIX - 1] > 1e-6).all()
    windows = make_denoiser(MemoryPhase.NONE, [0, 1, 2], memory_keys=MemoryKeys.POSE, recycled=recycled)
    assert not asked_gradients(windows)[0].any(), "no window"
    assert asked_gradients(windows)[1][: PREFIX - 1].all()


def test_frames_that_follow_the_prefix_write_nothing() -> None:
    denoiser = make_denoiser(MemoryPhase.NONE, memory_keys=MemoryKeys.POSE)
    clean, levels = draw(1, 8, 4, 8, 8), torch.zeros(1, 8, 2, dtype=torch.float64)
    actions, poses = torch.ones(1, 8, 3, dtype=torch.int64), 50 * draw(1, 8, 3, seed=6)

    def states(length: int, alone: Tensor | None) -> list[Tensor]:
        part = [each[:, :length] for each in (clean, clean, levels, actions)]
        memory = denoiser.initial_memory(1)
        passed = denoiser.run_sequences(*part, memory, poses=poses[:, :length], unwritten=alone)
        return [state for state in passed.final_states if isinstance(state, Tensor)]

    expected, found = states(PREFIX, None), states(8, torch.arange(8)[None] >= PREFIX)
    assert len(found) == len(expected) == 2
    for got, right in zip(found, expected, strict=True):
        torch.testing.assert_close(got, right)
        assert right.abs().max() > 1e-3


def test_jitter_has_the_sizes_that_were_asked_for() -> None:
    errors = jittered(torch.zeros(200, 50, 3), (8.0, 2.0), seeded())
    torch.testing.assert_close(errors.std(dim=(0, 1)), torch.tensor([8.0, 8.0, 2.0]), rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"recall_share": 0.5, "suffix_share": 0.4, "own_context_share": 0.2}, "together at most 1"),
        ({"pose_jitter": [8.0]}, "a length and an angle"),
        ({"recall_share": 0.5, "misled_share": 0.6}, "misled_share 0.6 are parts of one batch"),
        ({"recall_share": 1.5}, "recall_share"),
    ],
)
def test_shares_that_are_no_parts_of_a_batch_are_refused(settings: dict[str, object], told: str) -> None:
    with pytest.raises(WorldError, match=told):
        ObjectiveConfig(**settings)
