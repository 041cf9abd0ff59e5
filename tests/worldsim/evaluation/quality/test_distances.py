"""FID and KID of features: known values, equal counts, and a floor that a perfect dream reaches."""

from __future__ import annotations

import pytest
import torch

from worldsim.evaluation.quality.distances import distances_to_real, fid, kid

pytestmark = pytest.mark.usefixtures("one_thread")


def draw(count: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def test_fid_is_the_frechet_distance_of_two_gaussians() -> None:
    features = draw(4000, 4)
    assert fid(features, features) == pytest.approx(0, abs=1e-6)
    assert fid(features, features + 2) == pytest.approx(4 * 2**2, rel=1e-4)
    # Twice the deviation: tr(C + 4 C - 2 * 2 C) = tr(C) once the means agree.
    centred = features - features.mean(dim=0)
    assert fid(centred, 2 * centred) == pytest.approx(float(centred.var(dim=0).sum()), rel=1e-3)


def test_kid_of_equal_distributions_is_zero_on_average_and_fid_of_few_frames_is_not() -> None:
    pairs = [(draw(32, 8, seed=2 * k), draw(32, 8, seed=2 * k + 1)) for k in range(30)]
    kids, fids = ([distance(*pair) for pair in pairs] for distance in (kid, fid))
    assert abs(sum(kids) / 30) < 0.1 * kid(pairs[0][0], pairs[0][1] + 1)
    assert min(kids) < 0
    assert min(fids) > 5 * fid(draw(4000, 8), draw(4000, 8, seed=1))


def test_distances_leave_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert kid(draw(8, 4), draw(8, 4, seed=1)) == kid(draw(8, 4), draw(8, 4, seed=1))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("shapes", [((1, 4), (8, 4)), ((8, 4), (8, 5)), ((8,), (8,))])
@pytest.mark.parametrize("distance", [fid, kid])
def test_sets_that_have_no_distance_are_refused(distance, shapes) -> None:
    with pytest.raises(ValueError, match="distances need features"):
        distance(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


def test_a_perfect_dream_is_at_the_floor_and_a_worse_one_above_it() -> None:
    real = draw(12, 1, 6) + 0.3 * draw(12, 8, 6, seed=1)  # frames of an episode resemble each other
    perfect, shifted, worse = (distances_to_real(real + shift, real) for shift in (0, 1, 2))
    for name in ("fid", "kid"):
        assert perfect[name].over_floor.mean == 0
        assert perfect[name].value.mean != 0
        assert shifted[name].over_floor.mean > 0
        assert worse[name].over_floor.low > shifted[name].over_floor.mean
        assert worse[name].value.count == 12
    odd = distances_to_real(torch.cat([real, real[:1] + 9]), torch.cat([real, real[:1] + 9]))
    assert odd["fid"].value.mean == perfect["fid"].value.mean


def test_two_episodes_have_no_interval_and_one_no_distance() -> None:
    found = distances_to_real(draw(2, 4, 3), draw(2, 4, 3, seed=1))
    assert found["fid"].value.low is None
    with pytest.raises(ValueError, match="at least 2 episodes"):
        distances_to_real(draw(1, 4, 3), draw(1, 4, 3))
