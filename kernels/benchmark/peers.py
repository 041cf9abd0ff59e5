"""Equivalent operators of the package flash-linear-attention (extra `bench`), where it is installed."""

# B batch, N tokens, H heads, K key width, V value width

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from torch import Tensor

Commit = Callable[..., Tensor]


def _state_only(k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> Tensor:
    """Run what of its chunked form the final state needs: no output, no new values stored."""
    sums = import_module("fla.ops.utils").chunk_local_cumsum(g, chunk_size=64, scale=1.4426950408889634)
    intra = import_module("fla.ops.gated_delta_rule.chunk_fwd").chunk_gated_delta_rule_fwd_intra
    w, u, _ = intra(k=k, v=v, g=sums, beta=beta, cu_seqlens=None, chunk_indices=None, chunk_size=64)
    states = import_module("fla.ops.common.chunk_delta_h").chunk_gated_delta_rule_fwd_h
    return states(k=k, w=w, u=u, g=sums, initial_state=state, output_final_state=True, save_new_value=False)[
        2
    ]


def peers() -> dict[str, Commit]:
    """Return its forms as `commit(k, v, g, beta, state) -> state`; empty where it is not installed."""
    try:
        rule = import_module("fla.ops.gated_delta_rule")
    except ImportError:
        return {}

    def whole(name: str) -> Commit:
        run = getattr(rule, name)

        def commit(k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> Tensor:
            arguments = {"q": k, "k": k, "v": v, "g": g, "beta": beta, "scale": 1.0}
            return run(**arguments, initial_state=state, output_final_state=True)[1]

        return commit

    return {
        "fla chunk": whole("chunk_gated_delta_rule"),
        "fla state only": _state_only,
        "fla fused_recurrent": whole("fused_recurrent_gated_delta_rule"),
    }
