"""A world's card: what a person should know before using it, written from its description."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worldsim.world.config import WorldConfig

TITLES = {
    "data": "Data",
    "training": "Training",
    "conversion": "Conversion",
    "memory": "Memory",
    "measured": "Measured",
    "calibration": "Calibration",
    "limits": "Limits",
}


def _section(value: Any) -> str:
    """Return a value of `provenance` as Markdown."""
    if isinstance(value, dict):
        return "\n".join(
            f"- {name}: {text if isinstance(text, str) else json.dumps(text)}" for name, text in value.items()
        )
    if isinstance(value, list):
        return "\n".join(f"- {entry}" for entry in value)
    return str(value)


def _reward(config: WorldConfig) -> str:
    outcome = config.outcome
    if outcome is None:
        return "always 0; episodes never end by themselves"
    return (
        f"learned, {outcome.reward_mean:.3g} a frame on average; "
        f"an episode ends at a probability of {outcome.end_threshold:.3g}"
    )


def world_card(config: WorldConfig, num_parameters: int) -> str:
    """Return the Markdown of a world's README.

    Args:
        config: The world's description; each entry of its `provenance` becomes a section.
        num_parameters: Of network and codec together.
    """
    axes = "; ".join(f"{axis.name} ({', '.join(axis.buttons)})" for axis in config.actions.axes)
    tokens = config.denoiser.tokens_per_frame
    size = f"- Size: {num_parameters / 1e6:.1f} M parameters, {tokens} tokens a frame"
    facts = [
        f"# {config.name}",
        config.description or "A learned world.",
        "\n".join(
            [
                f"- Frames: {config.width} x {config.height}, {config.frame_rate:g} a second",
                f"- Buttons: {axes}",
                size,
                f"- Memory phase: {config.denoiser.memory_phase}",
                f"- Denoising steps: {config.sampler.num_steps}",
                f"- Reward: {_reward(config)}",
                f"- Licence: {config.licence or 'not stated'}",
            ]
        ),
    ]
    for name, value in config.provenance.items():
        facts.append(f"## {TITLES.get(name, name)}\n\n{_section(value)}")
    return "\n\n".join(facts) + "\n"
