"""Names of a checkpoint's tensors: the two published layouts, and what wrappers put before them."""

from __future__ import annotations

import re
from collections.abc import Iterable

WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
"""Left inside names by sharded, checkpointed and compiled modules."""
PREFIXES = ("diffusion_model.", "module.", "transformer.", "model.")
"""Before all names of a checkpoint, where the transformer was part of something larger."""
PARTS = ("model.diffusion_model.", "generator_ema.", "generator.")
"""Before the transformer's names, where a file holds other networks too; the first that is there is read."""
GROUPS = ("generator_ema", "generator", "model", "state_dict")
"""Entries of a training's checkpoint that may hold the transformer, the first that is there is read."""

# Ours (the original layout) on the left. `norm3` there is the norm before the attention to the text, which
# diffusers counts as the second.
_ENDS = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
}
_INNER = {
    "modulation": "scale_shift_table",
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    **{
        f"{ours}.{part}": f"{theirs}.{renamed}"
        for ours, theirs in (("self_attn", "attn1"), ("cross_attn", "attn2"))
        for part, renamed in (
            *(("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0")),
            *(("norm_q", "norm_q"), ("norm_k", "norm_k")),
        )
    },
}
_ENDS_BACK = {theirs: ours for ours, theirs in _ENDS.items()}
_INNER_BACK = {theirs: ours for ours, theirs in _INNER.items()}
_NAME = re.compile(r"(blocks\.\d+\.)?(.+?)(\.weight|\.bias)?")


def to_diffusers(name: str) -> str:
    """Return the name that diffusers gives a tensor of ours; an unknown name stays as it is."""
    return _renamed(name, _ENDS, _INNER)


def from_diffusers(name: str) -> str:
    """Return our name of a tensor of diffusers; an unknown name stays as it is."""
    return _renamed(name, _ENDS_BACK, _INNER_BACK)


def _renamed(name: str, ends: dict[str, str], inner: dict[str, str]) -> str:
    found = _NAME.fullmatch(name)
    if found is None:
        return name
    block, stem, suffix = found[1] or "", found[2], found[3] or ""
    table = inner if block else ends
    return f"{block}{table[stem]}{suffix}" if stem in table else name


def without_wrappers(names: Iterable[str]) -> dict[str, str]:
    """Return plain names, each with the name it has in the file.

    Of a file that holds several networks the transformer's names are returned; otherwise a prefix is taken
    away where all names begin with it.
    """
    plain = {}
    for name in names:
        short = name
        for wrapper in WRAPPERS:
            short = short.replace(wrapper, "")
        plain[short] = name
    if part := next((part for part in PARTS if any(name.startswith(part) for name in plain)), None):
        plain = {name.removeprefix(part): plain[name] for name in plain if name.startswith(part)}
    while prefix := next((p for p in PREFIXES if plain and all(n.startswith(p) for n in plain)), None):
        plain = {name.removeprefix(prefix): given for name, given in plain.items()}
    return plain


def is_diffusers_layout(names: Iterable[str]) -> bool:
    """Return whether plain names are those of diffusers, and not of the original layout."""
    return any(name.startswith("condition_embedder.") for name in names)
