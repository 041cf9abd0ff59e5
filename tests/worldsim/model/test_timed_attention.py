"""A block attends to a window in parts of its keys as to all at once, in the form that was timed fastest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from worldsim.model.attention import timed_forms
from worldsim.model.attention.timed_forms import (
    WindowForm,
    attend_in_form,
    attend_window,
    choose_form,
    choose_parts,
    report_forms,
)
from worldsim.runtime import fused as fused_module
from worldsim.runtime.cuda_graphs import fuse
from worldsim.wan.layers import attend


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace instead of compiling, and let no test see what another one timed."""
    monkeypatch.setattr(fused_module, "fuse", lambda layer, options: fuse(layer, "aot_eager"))
    monkeypatch.setattr(timed_forms, "timed", {})
    fused_module.fused.cache_clear()


def drawn(device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values of two videos, whose parts have sums of different sizes."""
    generator = torch.Generator().manual_seed(0)
    sizes = (10, 60, 60)
    q, k, v = (torch.randn(2, size, 3, 16, generator=generator) for size in sizes)
    k[:, :20] *= 4
    return q.to(device, dtype), k.to(device, dtype), v.to(device, dtype)


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_parts_add_up_to_attention_to_all_keys(parts: int) -> None:
    given = drawn()
    expected = attend(*given)
    found = attend_in_form(*given, WindowForm("cpu", parts))
    assert found.shape == (2, 10, 48) and expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("operator", ["flash", "cudnn"])
@pytest.mark.parametrize("parts", [1, 3])
def test_on_a_card_parts_add_up_to_attention_to_all_keys(operator: str, parts: int) -> None:
    given = drawn("cuda", torch.bfloat16)
    found = attend_in_form(*given, WindowForm(operator, parts)).float()
    q, k, v = (each.float() for each in given)
    expected = attend(q, k, v)
    assert (found - expected).norm() < 1e-2 * expected.norm()


def test_keys_are_cut_where_rounds_of_programs_are_left_half_empty() -> None:
    assert choose_parts(156, 21 * 1560, 132) == 5, "780 programs in 6 rounds of 132, for 156 in 2"
    assert choose_parts(132, 21 * 1560, 132) == 1
    assert choose_parts(156, 31, 132) == 1, "a number of keys that nothing divides"


def test_a_cpu_attends_in_the_order_of_pytorch_and_times_nothing() -> None:
    given = drawn()
    assert choose_form(*given) == WindowForm() and report_forms() == {}
    assert torch.equal(attend_window(*given), attend(*given))


def test_the_fastest_of_the_timed_forms_is_taken() -> None:
    given = drawn()
    key = (given[0].shape, given[1].shape, given[0].dtype, given[0].device)
    timed_forms.timed[key] = {WindowForm("cpu", 3): 0.5, WindowForm(): 1.0}
    assert choose_form(*given) == WindowForm("cpu", 3)
    torch.testing.assert_close(attend_window(*given), attend(*given), rtol=1e-5, atol=1e-6)
    assert report_forms() == {"[2, 10, 3, 16] over [2, 60, 3, 16]": {"cpu, 3 parts": 0.5, "whole": 1.0}}
