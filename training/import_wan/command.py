"""Import of a Wan checkpoint as a world: `python -m training.import_wan checkpoint=model.pt out=worlds/wan`.

Writes a world that is played and stepped like others: the transformer in its causal form, the autoencoder,
the embedding of one text, and buttons that have no effect until they are taught: docs/paper-scale.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.cli.entry import entry
from training.engine.lock import locked_folder
from training.import_wan.sources import find_actions, find_checkpoint, licence_of
from training.import_wan.text import cleaned, encode_text, no_text, read_embedding
from training.import_wan.weights import Checkpoint, open_checkpoint
from worldsim.actions import NO_BUTTONS, ActionLayout
from worldsim.errors import WorldError
from worldsim.settings import REQUIRED, check_settings, setting
from worldsim.starts import Start, draw_starts, write_starts
from worldsim.storage.files import files_below, user_path
from worldsim.storage.tensors import CODEC_FILE, filling, save_weights, swap_folder, write_tensors
from worldsim.wan.autoencoder_files import find_autoencoder, load_autoencoder
from worldsim.wan.config import CausalConfig, WanConfig
from worldsim.world.config import world_card
from worldsim.world.video import TEXT_FILE, TEXT_NAME, TRANSFORMER_FOLDER
from worldsim.world.video_config import UNTAUGHT_BUTTONS, VideoWorldConfig
from worldsim.world.world import CARD_FILE, STARTS_FOLDER, write_config

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(kw_only=True, slots=True)
class ImportWanConfig:
    """What to import, and what the world is to be."""

    checkpoint: str = setting(
        REQUIRED, "File, folder, or OWNER/NAME or OWNER/NAME/FILE of the Hugging Face Hub."
    )
    out: str = setting(REQUIRED, "Folder of the world; new.")
    name: str = setting("", "Of the world; '' is that of its folder.")
    group: str = setting(
        "",
        "Entry of a training's checkpoint, e.g. generator; '' is the average of weights, where there is one.",
    )
    autoencoder: str = setting(
        "",
        "File or folder of the autoencoder, of either layout, also of the hub; '' is the one beside the "
        "checkpoint.",
    )
    text: str = setting("", "What the video is of; needs text_encoder.")
    text_encoder: str = setting("", "Folder of UMT5 and its tokenizer; '' encodes no text.")
    text_embedding: str = setting("", "Safetensors file of an embedding, instead of a text; '' reads none.")
    actions: str = setting(
        "", "Game, folder of gameplay video or world whose buttons it is given; '' gives none."
    )
    height: int = setting(480, "Of a displayed frame in pixels, a multiple of 16.", minimum=16)
    width: int = setting(832, "Of a displayed frame in pixels, a multiple of 16.", minimum=16)
    frame_rate: float = setting(16.0, "Displayed frames a second.", above=0, maximum=1000)
    causal: CausalConfig = setting(CausalConfig, "Its blocks and steps, as the checkpoint was trained.")
    starts: str = setting("", "Folder of gameplay video to take start moments from; '' takes none.")
    num_starts: int = setting(4, "Start moments that are taken.", minimum=1, maximum=1000)
    start_frames: int = setting(9, "Displayed frames of each.", minimum=1, maximum=1000)
    dtype: str = setting("bfloat16", "What the transformer is stored in.", choices=tuple(DTYPES))
    licence: str = setting("", "Of the weights; '' is what the checkpoint's card says.")

    def __post_init__(self) -> None:
        check_settings(self)
        if self.text and not self.text_encoder:
            raise WorldError("text needs the folder of its encoder: text_encoder=FOLDER")
        if self.text_embedding and self.text_encoder:
            raise WorldError("text_embedding stands instead of text and text_encoder: give one of them")


@entry("import_wan", ImportWanConfig)
def main(config: ImportWanConfig) -> None:
    """Write a world, completely or not at all."""
    out = user_path(config.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise WorldError(f"{out} is there already: give another out, or remove it")
    path = find_checkpoint(config.checkpoint)
    checkpoint, actions = open_checkpoint(path, config.group or None), find_actions(config.actions)
    given = find_checkpoint(config.autoencoder) if config.autoencoder else find_autoencoder(path)
    if given is None:
        raise WorldError(f"no autoencoder is beside {path}: name one, autoencoder=FILE_OR_FOLDER")
    description = describe(config, checkpoint.config, actions, path, out)
    starts, text = _starts(config, description), _text(config, checkpoint.config)
    with locked_folder(out, is_new=True), filling(out) as part:
        autoencoder = load_autoencoder(given)
        if autoencoder.channels != checkpoint.config.in_dim:
            raise WorldError(
                f"{given} makes {autoencoder.channels} channels, the transformer works on "
                f"{checkpoint.config.in_dim}"
            )
        description.autoencoder = autoencoder.config
        num_parameters = sum(p.numel() for p in autoencoder.autoencoder.parameters())
        save_weights(autoencoder.autoencoder, part / CODEC_FILE, torch.float32)
        del autoencoder  # before the transformer, the larger part, is read
        description.transformer = write_transformer(checkpoint, description, part, DTYPES[config.dtype])
        num_parameters += checkpoint.num_parameters
        write_tensors({TEXT_NAME: text}, part / TEXT_FILE)
        if starts:
            source = "start moments from gameplay video"
            write_starts(
                part / STARTS_FOLDER, starts, description.dataset(f"{description.name}-starts", source)
            )
        (part / CARD_FILE).write_text(world_card(description, num_parameters), encoding="utf-8")
        write_config(part, description)
        size = sum(file.stat().st_size for file in files_below(part))
        swap_folder(part, out)
    print(f"{out}: {num_parameters / 1e6:.1f} M parameters, {size / 1e9:.2f} GB")
    held = description.action_repeat
    print(f"{description.width} x {description.height}, an action is held for {held} displayed frames")


def write_transformer(
    checkpoint: Checkpoint, description: VideoWorldConfig, part: Path, dtype: torch.dtype
) -> WanConfig:
    """Write a checkpoint's transformer into a world's folder, and return its shape, with its buttons."""
    is_played = description.actions.axes != (NO_BUTTONS,)
    num_values = list(description.actions.num_values) if is_played else []
    return checkpoint.write(part / TRANSFORMER_FOLDER, num_values, dtype)


def describe(
    config: ImportWanConfig, transformer: WanConfig, actions: ActionLayout, path: Path, out: Path
) -> VideoWorldConfig:
    """Return the description of a world, but for its autoencoder and the network's buttons.

    Raises:
        WorldError: If no world has these settings.
    """
    licence = config.licence or licence_of(path)
    limits = [UNTAUGHT_BUTTONS] if config.actions else []
    limits.append(
        "It is drawn in blocks that see the past alone. A checkpoint that was not trained so, as Wan 2.1 T2V "
        "itself, draws poorly."
    )
    source: dict[str, Any] = {"checkpoint": _called(config.checkpoint), "stored in": config.dtype}
    if not (config.text_encoder or config.text_embedding):
        limits.append("No text was encoded: the network sees zeros, as behind a text's end.")
    return VideoWorldConfig(
        name=config.name or out.resolve().name,
        description="A video transformer of the Wan family, drawn block by block.",
        licence=licence,
        frame_rate=config.frame_rate,
        actions=actions,
        transformer=transformer,
        causal=config.causal,
        frame_size=[config.height, config.width],
        text=cleaned(config.text),
        provenance={"source": source, "limits": limits},
    )


def _called(checkpoint: str) -> str:
    """Return what a checkpoint is called for others, who have no folders of ours."""
    path = user_path(checkpoint)
    return path.name if path.exists() else checkpoint


def _text(config: ImportWanConfig, transformer: WanConfig) -> Tensor:
    if config.text_embedding:
        return read_embedding(user_path(config.text_embedding), transformer)
    if config.text_encoder:
        return encode_text(config.text, user_path(config.text_encoder), transformer)
    return no_text(transformer)


def _starts(config: ImportWanConfig, description: VideoWorldConfig) -> list[Start]:
    if not config.starts:
        return []
    size, actions = (description.height, description.width), description.actions
    given = (config.num_starts, config.start_frames)
    return draw_starts(user_path(config.starts), *given, actions=actions, size=size, seed=0)
