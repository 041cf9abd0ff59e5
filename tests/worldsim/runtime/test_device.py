"""Device choice: requests honoured or refused, choices with a reason."""

from __future__ import annotations

import pytest
import torch

from worldsim.errors import WorldError
from worldsim.runtime import device as device_module
from worldsim.runtime.device import MAX_AUTO_THREADS, bf16_instructions_of, choose_device, set_threads


def use_processor(monkeypatch: pytest.MonkeyPatch, **capabilities: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)


def test_processor_with_bf16_instructions_computes_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    use_processor(monkeypatch, avx2=True, avx512_bf16=True)
    choice = choose_device()
    assert (choice.device.type, choice.dtype) == ("cpu", torch.bfloat16)
    assert str(choice).startswith("cpu bfloat16 (")
    assert "avx512_bf16" in choice.reason


def test_processor_without_them_computes_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    use_processor(monkeypatch, avx2=True, avx512_bf16=False)
    choice = choose_device()
    assert choice.dtype == torch.float32
    assert "no bf16 instructions" in choice.reason


@pytest.mark.parametrize(
    ("name", "dtype"), [("bf16", torch.bfloat16), ("float32", torch.float32), (torch.float32, torch.float32)]
)
def test_dtype_is_honoured(monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype) -> None:
    use_processor(monkeypatch)
    choice = choose_device("cpu", name)
    assert choice.dtype == dtype
    assert "as asked" in choice.reason


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "tpu", "cpu:0", "cuda:x"])
def test_device_that_is_not_here_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    use_processor(monkeypatch)
    with pytest.raises(WorldError, match=name):
        choose_device(name)


@pytest.mark.parametrize("name", ["int8", "float16", torch.float16])
def test_unknown_dtype_is_named(name: str) -> None:
    with pytest.raises(WorldError, match=str(name)):
        choose_device("cpu", name)


def test_arm_processors_are_known() -> None:
    assert bf16_instructions_of({"neon": True, "sve_bf16": True}) == "sve_bf16"


@pytest.mark.gpu
def test_gpu_is_chosen_first() -> None:
    choice = choose_device()
    assert choice.device == torch.device("cuda", 0)
    assert torch.cuda.get_device_name(0) in choice.reason


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        assert set_threads(1) == 1
        monkeypatch.setattr(device_module.torch, "get_num_threads", lambda: 64)
        chosen: list[int] = []
        monkeypatch.setattr(device_module.torch, "set_num_threads", chosen.append)
        set_threads(0)
        assert chosen == [MAX_AUTO_THREADS]
    finally:
        monkeypatch.undo()
        torch.set_num_threads(before)
    with pytest.raises(WorldError, match="threads"):
        set_threads(-1)
