"""Embedding of a text, made once: the text encoder of Wan 2.1, which play never loads."""

from __future__ import annotations

import html
import re
from pathlib import Path

import torch
from torch import Tensor

from worldsim.errors import WorldError
from worldsim.storage.files import printable, shown
from worldsim.storage.tensors import read_weights
from worldsim.wan.config import WanConfig


def encode_text(text: str, folder: Path, config: WanConfig) -> Tensor:
    """Return the encoder's output of a text, `[rows, text_dim]`, without what is padded.

    As the published pipelines do: also an empty text has a row, that of its end, and texts are padded before
    they are encoded, since products in bf16 may be rounded otherwise for another length.

    Args:
        folder: Of a pipeline, with `text_encoder` and `tokenizer`, or one that holds both.

    Raises:
        WorldError: If transformers is not installed, or the folder holds no such encoder.
    """
    try:
        from transformers import AutoTokenizer, UMT5EncoderModel
    except ImportError as error:
        raise WorldError('encoding a text needs transformers: pip install -e ".[wan]"') from error
    if not folder.is_dir():
        raise WorldError(f"{folder} does not exist; text_encoder names a folder")
    places = [
        inner if (inner := folder / name).is_dir() else folder for name in ("tokenizer", "text_encoder")
    ]
    try:
        tokenizer = AutoTokenizer.from_pretrained(places[0], local_files_only=True)
        encoder = UMT5EncoderModel.from_pretrained(
            places[1], local_files_only=True, use_safetensors=True, dtype=torch.bfloat16
        )
    except (OSError, ValueError, TypeError, RuntimeError, KeyError, ImportError) as error:
        told = shown(printable(" ".join(str(error).split())), 160)
        raise WorldError(f"{folder} holds no text encoder of Wan 2.1 with its tokenizer: {told}") from error
    width = encoder.config.d_model
    if width != config.text_dim:
        raise WorldError(
            f"the text encoder in {folder} makes {width} numbers a token, the network reads {config.text_dim}"
        )
    given = tokenizer(
        [cleaned(text)],
        max_length=config.text_len,
        padding="max_length",
        truncation=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        encoded = encoder(given.input_ids, given.attention_mask).last_hidden_state[0]
    return encoded[: int(given.attention_mask.sum())]


def cleaned(text: str) -> str:
    """Return a text as the published pipelines clean it, but for the repair of wrong encodings."""
    return re.sub(r"\s+", " ", html.unescape(html.unescape(text))).strip()


def read_embedding(path: Path, config: WanConfig) -> Tensor:
    """Read an embedding, `[rows, text_dim]`, the only tensor of a safetensors file.

    Raises:
        WorldError: If it holds anything else.
    """
    if not path.is_file():
        raise WorldError(f"{path} does not exist; text_embedding names a safetensors file")
    tensors = read_weights(path)
    tensor = next(iter(tensors.values())) if len(tensors) == 1 else torch.zeros(0)
    tensor = tensor[0] if tensor.ndim == 3 and len(tensor) == 1 else tensor
    rows = tensor.shape[0]
    if tensor.ndim != 2 or tensor.shape[1] != config.text_dim or not 0 < rows <= config.text_len:
        raise WorldError(
            f"{path} must hold one tensor [1 to {config.text_len}, {config.text_dim}], "
            f"got {shown([list(each.shape) for each in tensors.values()])}"
        )
    return tensor


def no_text(config: WanConfig) -> Tensor:
    """Return a row of zeros: what the network sees behind a text's end, and here instead of a text."""
    return torch.zeros(1, config.text_dim)
