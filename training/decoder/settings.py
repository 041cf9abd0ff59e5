"""Settings of the training of a decoder alone."""

from __future__ import annotations

from dataclasses import dataclass

from worldsim.errors import WorldError
from worldsim.settings import check_settings, setting


@dataclass(kw_only=True, slots=True)
class OwnLatentsConfig:
    """Latents that a world draws itself, with the recorded frames as what they are to show."""

    share: float = setting(
        0.5, "Of the pairs of a pass; only where there is decoder.world.", minimum=0, maximum=1
    )
    pieces: int = setting(512, "Roll-outs that are drawn at a time.", minimum=1)
    every: int = setting(500, "Updates after which others are drawn.", minimum=1)
    context_frames: int = setting(8, "Recorded frames that are watched before each.", minimum=1)
    horizon: int = setting(
        4,
        "Frames of each, with the recorded actions: the longer, the less they are what was recorded.",
        minimum=2,
    )
    at_a_time: int = setting(0, "Roll-outs of a batch; 0 is 16 on a CPU and 128 on a GPU.", minimum=0)

    def __post_init__(self) -> None:
        check_settings(self, "decoder.own.")


@dataclass(kw_only=True, slots=True)
class PatchCriticConfig:
    """Shape and goals of the critic."""

    widths: list[int] = setting([96, 192, 256], "Channels at 1/2, 1/4 and 1/8 of the frame.", minimum=1)
    learning_rate: float = setting(3e-4, "Of AdamW, at full height.", above=0)
    alone_steps: int = setting(200, "Updates at the beginning in which the critic alone learns.", minimum=0)
    crop: int = setting(96, "Height and width in pixels of the crops that it sees.", minimum=16)
    penalty: float = setting(
        0.002, "Weight of the mean squared slope of its scores, at real and at decoded frames.", minimum=0
    )
    perturbation: float = setting(0.01, "Standard deviation of the noise that shows the slope.", above=0)

    def __post_init__(self) -> None:
        check_settings(self, "decoder.critic.")
        if len(self.widths) != 3:
            raise WorldError(f"decoder.critic.widths must be 3 numbers, got {self.widths}")


@dataclass(kw_only=True, slots=True)
class DecoderConfig:
    """How a decoder is trained behind the frozen encoder of `init`: by the codec's loss, then with a critic.

    Batches are pairs of frames in a row, batch_size of them; loop and learning_rate are those of the second
    stage (docs/decisions/0045).
    """

    alone: bool = setting(
        False, "Train the decoder of init alone: encoder and latents stay as they are, bit for bit."
    )
    widths: list[int] = setting(
        [], "Channels of a new decoder at 1/2, 1/4 and 1/8, from random weights; [] goes on from init's."
    )
    world: str = setting(
        "", "World of the same encoder, whose own latents are learned from, too; '' is none."
    )
    into: str = setting(
        "", "Train nothing: write this world with the decoder of init, of the same encoder, to out."
    )
    reconstruct_steps: int = setting(
        0, "Updates of the first stage, by the codec's loss; a new decoder needs some.", minimum=0
    )
    reconstruct_seconds: float = setting(0.0, "Its length by the clock instead; 0 is off.", minimum=0)
    reconstruct_learning_rate: float = setting(1e-3, "Its learning rate.", above=0)
    energy: float = setting(
        1.0,
        "Gradient energy of decoded frames over that of recorded ones to which the critic's weight is "
        "steered, of encoded and of own latents apart.",
        above=0,
    )
    steering: float = setting(
        0.005,
        "Relative change of the weight in an update for each unit of missing energy.",
        minimum=0,
    )
    weight: float = setting(
        0.5,
        "Of the critic at first: what its gradient by a pixel is to be, over that of the other losses.",
        above=0,
    )
    max_weight: float = setting(4.0, "At most.", above=0)
    own: OwnLatentsConfig = setting(OwnLatentsConfig, "Latents that the world draws.")
    critic: PatchCriticConfig = setting(PatchCriticConfig, "The critic.")

    def __post_init__(self) -> None:
        check_settings(self, "decoder.")
        if len(self.widths) not in (0, 3):
            raise WorldError(f"decoder.widths must be 3 numbers or none, got {self.widths}")
        if self.alone and self.into:
            raise WorldError("decoder.alone trains and decoder.into writes a world: give one of them")
        if self.alone and self.widths and not (self.reconstruct_steps or self.reconstruct_seconds):
            raise WorldError(
                "a decoder of new decoder.widths begins from random weights: give it a first stage, "
                "decoder.reconstruct_steps or decoder.reconstruct_seconds"
            )
        if not (self.alone or self.into) and (self.widths or self.world):
            raise WorldError("decoder.widths and decoder.world need decoder.alone=true")
        if self.alone and self.own.share == 1 and self.world:
            raise WorldError("decoder.own.share must be below 1: encoded latents are learned from as well")
