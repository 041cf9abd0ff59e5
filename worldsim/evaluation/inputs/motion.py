"""Motion of the picture between two frames: sideways (turning), towards the viewer (walking), scrolling.

Pictures are luminance, `[N, H, W]` fp32. Both estimators work on a reduced picture, so that their cost does
not depend on its size, and need no weights. Their error on the real game is measured beside every result that
uses them (`controllability.calibrate`).
"""

# N pairs of pictures, H W size, Z zooms, S shifts

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

SHIFT_WIDTH, ZOOM_WIDTH = 80, 40
"""Width in pixels that a picture is reduced to."""
PEAK_WIDTH = 1.0
"""Standard deviation in pixels that the peak of the phase correlation is given, so that its place can be
read between pixels: a Gaussian's logarithm is a parabola."""
MAX_VERTICAL_SHIFT = 2
ZOOMS = tuple(step * 0.02 for step in range(-10, 11))
"""Natural logarithms of the scales tried."""
MAX_ZOOM_SHIFT = 6
SHIFT_COST, ZOOM_COST = 0.002, 0.1
"""Where two motions explain a picture as well (a plain wall), the smaller one is meant."""
DETAIL = 7
"""Detail is what differs from the mean of a square of this many pixels."""


def _reduce(pictures: Tensor, width: int) -> tuple[Tensor, int]:
    factor = max(1, round(pictures.shape[-1] / width))
    return functional.avg_pool2d(pictures[:, None], factor)[:, 0], factor


def horizontal_shift(before: Tensor, after: Tensor) -> Tensor:
    """Estimate the shift of whole pictures `[N, H, W]` by phase correlation, `[N]` in pixels of these.

    It is positive when the content moved to the right, 0 for plain pictures.
    """
    before, factor = _reduce(before, SHIFT_WIDTH)
    after, _ = _reduce(after, SHIFT_WIDTH)
    height, width = before.shape[1:]
    window = _hann(height, before)[:, None] * _hann(width, before)
    first, second = (
        torch.fft.rfft2((x - x.mean(dim=(1, 2), keepdim=True)) * window) for x in (before, after)
    )
    cross = second * first.conj()
    # Frequencies that are hardly there must not count as much as the others: their phase is noise.
    floor = 1e-3 * cross.abs().amax(dim=(1, 2), keepdim=True) + 1e-12
    smooth = _gaussian_spectrum(height, width, before)
    correlation = torch.fft.irfft2(cross / (cross.abs() + floor) * smooth, s=(height, width))
    rows = torch.arange(-MAX_VERTICAL_SHIFT, MAX_VERTICAL_SHIFT + 1, device=before.device) % height
    profile = correlation[:, rows].amax(dim=1)  # [N, W]
    peak = profile.argmax(dim=1)
    signed = torch.where(peak > width // 2, peak - width, peak).float()
    shift = (signed + _between_pixels(profile, peak)) * factor
    return torch.where(profile.amax(dim=1) > 1e-6, shift, torch.zeros_like(shift))


def _hann(size: int, like: Tensor) -> Tensor:
    return torch.hann_window(size, periodic=False, device=like.device)


def _gaussian_spectrum(height: int, width: int, like: Tensor) -> Tensor:
    squared = torch.fft.fftfreq(height, device=like.device)[:, None] ** 2
    squared = squared + torch.fft.rfftfreq(width, device=like.device) ** 2
    return torch.exp(-2 * (math.pi * PEAK_WIDTH) ** 2 * squared)


def _between_pixels(profile: Tensor, peak: Tensor) -> Tensor:
    """Return where the top of a Gaussian peak lies beside its highest pixel, in [-0.5, 0.5]."""
    width = profile.shape[1]
    places = torch.stack([(peak - 1) % width, peak, (peak + 1) % width], dim=1)
    left, middle, right = profile.gather(1, places).clamp(min=1e-9).log().unbind(dim=1)
    return _parabola_top(left, middle, right)


def _parabola_top(left: Tensor, middle: Tensor, right: Tensor) -> Tensor:
    curvature = (left - 2 * middle + right).clamp(max=-1e-9)
    return ((left - right) / (2 * curvature)).clamp(-0.5, 0.5)


def zoom(before: Tensor, after: Tensor) -> Tensor:
    """Estimate how much pictures `[N, H, W]` grew about their centre, by trying scales and shifts.

    A walk through rooms is no uniform zoom: near things grow faster. The scale that fits best is an average
    that has the right sign; a sideways shift is fitted with it, so that a turn is not taken for a walk.
    Returns the natural logarithm of the scale `[N]`; positive when the content grew (walking forward), in the
    range of `ZOOMS`. Zero for plain pictures.
    """
    before, after = (_detail(_reduce(x, ZOOM_WIDTH)[0]) for x in (before, after))
    scores = torch.stack(
        [_best_over_shifts(before, after, log_scale) for log_scale in ZOOMS], dim=1
    )  # [N, Z]
    inner = scores[:, 1:-1].argmax(dim=1) + 1
    left, middle, right = scores.gather(1, torch.stack([inner - 1, inner, inner + 1], dim=1)).unbind(dim=1)
    estimate = (inner - len(ZOOMS) // 2 + _parabola_top(left, middle, right)) * (ZOOMS[1] - ZOOMS[0])
    plain = torch.minimum(before.std(dim=(1, 2)), after.std(dim=(1, 2))) < 1e-4
    return torch.where(plain, torch.zeros_like(estimate), estimate)


def _detail(pictures: Tensor) -> Tensor:
    """Return pictures without their slow changes in brightness."""
    padded = functional.pad(pictures[:, None], (DETAIL // 2,) * 4, mode="replicate")
    return pictures - functional.avg_pool2d(padded, DETAIL, stride=1)[:, 0]


def _best_over_shifts(before: Tensor, after: Tensor, log_scale: float) -> Tensor:
    """Return the best correlation over shifts at one scale, `[N]`, less what the motion costs."""
    height, width = before.shape[1:]
    scale = math.exp(log_scale)
    y = ((torch.arange(height, device=before.device) + 0.5) * 2 / height - 1) * scale
    x = ((torch.arange(width, device=before.device) + 0.5) * 2 / width - 1) * scale
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)  # [H, W, 2]
    scaled = functional.grid_sample(
        after[:, None], grid.expand(len(after), -1, -1, -1), align_corners=False, padding_mode="border"
    )[:, 0]
    inside = (grid.abs() < 1).all(dim=-1)
    best = torch.full((len(before),), -torch.inf, device=before.device)
    for shift in range(-MAX_ZOOM_SHIFT, MAX_ZOOM_SHIFT + 1):
        here = slice(max(0, -shift), width - max(0, shift))
        there = slice(max(0, shift), width - max(0, -shift))
        mask = inside[:, there]
        first, second = before[:, :, here] * mask, scaled[:, :, there] * mask
        power = first.square().sum(dim=(1, 2)) * second.square().sum(dim=(1, 2))
        match = (first * second).sum(dim=(1, 2)) / (power.sqrt() + 1e-9)
        best = torch.maximum(best, match - SHIFT_COST * abs(shift) - ZOOM_COST * abs(log_scale))
    return best


SCROLL_WIDTH = 56
"""Width in pixels that a picture is reduced to before its scrolling is estimated."""
SCROLL_COST = 1e-5
MAX_SCROLL = 0.3
"""Share of the picture's size along the axis, the longest way that is tried."""


def scroll(before: Tensor, after: Tensor, *, axis: int) -> Tensor:
    """Estimate by how much whole pictures `[N, H, W]` scrolled, by trying all whole steps.

    For views from above, which scroll without a change of perspective, also by repeating tiles, which phase
    correlation takes for another. Along axis 1, the rows, or 2, the columns. Returns pixels of the full
    picture `[N]`; positive when the content moved down or to the right, 0 for plain pictures.
    """
    before, factor = _reduce(before, SCROLL_WIDTH)
    after, _ = _reduce(after, SCROLL_WIDTH)
    size = before.shape[axis]
    steps = range(-int(MAX_SCROLL * size), int(MAX_SCROLL * size) + 1)
    errors = []
    for step in steps:
        moved = after.narrow(axis, max(step, 0), size - abs(step))
        still = before.narrow(axis, max(-step, 0), size - abs(step))
        errors.append((moved - still).square().mean(dim=(1, 2)) + SCROLL_COST * abs(step))
    best = torch.stack(errors).argmin(dim=0)
    return (best + steps[0]).float() * factor
