from types import SimpleNamespace

import pytest
import torch

import helpers
from helpers import machine
from helpers.checkpoints import PARAMETERS

BIG = 4_000_000_000


def cpu_with(monkeypatch, **features):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)


def test_dtype_on_cpu(monkeypatch):
    cpu_with(monkeypatch, avx512_f=True)
    assert machine.choose_dtype("cpu", BIG).value == torch.float32
    for unit in ("avx512_bf16", "amx_bf16"):
        cpu_with(monkeypatch, **{unit: True})
        assert machine.choose_dtype("cpu", BIG).value == torch.bfloat16
        assert machine.choose_dtype("cpu", 3_000_000).value == torch.float32


def test_dtype_on_gpus(monkeypatch):
    for has_bf16, dtype in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has_bf16, **kwargs: has)
        assert machine.choose_dtype("cuda", BIG).value == dtype
        assert machine.choose_dtype("cuda", machine.SMALL).value == dtype
        assert machine.choose_dtype("cuda", machine.SMALL - 1).value == torch.float32
    assert machine.choose_dtype("mps", BIG).value == torch.float16
    assert machine.choose_dtype("mps", 3_000_000).value == torch.float32


def test_a_gpu_that_only_emulates_bfloat16_gets_float16(monkeypatch):
    """It would be many times slower."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert machine.choose_dtype("cuda", BIG).value == torch.float16


@pytest.mark.parametrize(("capability", "expected"), [("AVX2", "int8"), ("AVX512", "int8"), ("NEON", None)])
def test_quantization(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert machine.choose_quantization("cpu", BIG).value == expected
    assert machine.choose_quantization("cpu", machine.SMALL - 1).value is None
    assert machine.choose_quantization("cuda", BIG).value is None


@pytest.mark.parametrize(
    ("device", "dtype", "installed", "capability", "expected"),
    [
        ("cuda", torch.bfloat16, True, (8, 0), "flash_attention_2"),
        ("cuda", torch.float16, True, (9, 0), "flash_attention_2"),
        ("cuda", torch.float32, True, (8, 0), "sdpa"),
        ("cuda", torch.float16, True, (7, 5), "sdpa"),
        ("cuda", torch.bfloat16, False, (8, 0), "sdpa"),
        ("cpu", torch.bfloat16, True, (8, 0), "sdpa"),
        ("mps", torch.float16, True, (8, 0), "sdpa"),
    ],
)
def test_attention(monkeypatch, device, dtype, installed, capability, expected):
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: installed)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert machine.choose_attention(device, dtype).value == expected


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_device(monkeypatch, cuda, mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert machine.choose_device().value.type == expected


@pytest.mark.parametrize(("built", "reason"), [(False, "without CUDA"), (True, "no CUDA or Apple GPU found")])
def test_why_a_cpu(monkeypatch, built, reason):
    """PyPI's build for Windows has no CUDA: those who have a card there should read why it is not found."""
    for backend in (torch.cuda, torch.backends.mps):
        monkeypatch.setattr(backend, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: built)
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: False)
    assert reason in machine.choose_device().reason


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_following_the_advice_needs_less_memory(monkeypatch, quantization):
    needed = machine.size_of_weights(BIG, torch.float32, quantization)
    monkeypatch.setattr(machine, "available_memory", lambda device: needed - 1)
    _, advice = machine.lack_of_memory(BIG, torch.device("cpu"), torch.float32, quantization)
    assert ('dtype=torch.bfloat16, quantization="int8"' in advice) == (quantization == "int8")
    assert machine.lack_of_memory(BIG, torch.device("cpu"), torch.bfloat16, quantization) is None


def test_the_sizes_in_the_advice_are_those_checked_when_it_is_followed(monkeypatch):
    monkeypatch.setattr(machine, "available_memory", lambda device: 0)
    parameters = PARAMETERS[helpers.OFFICIAL]
    _, advice = machine.lack_of_memory(parameters, torch.device("cpu"), torch.float32)
    problem, _ = machine.lack_of_memory(parameters, torch.device("cpu"), torch.float32, "int8")
    assert 'quantization="int8" (4.5 GB)' in advice
    assert "take 4.5 GB in int8" in problem
    # What `Linear4bit` of bitsandbytes 0.50 makes of the official sizes, 0.5625 bytes a weight, and 16 bits elsewhere.
    assert 'quantization="int4" (2.6 GB)' in advice
    # Off an Apple GPU, in float16, to the CPU, which may have no 16 bits for what is not rounded.
    _, advice = machine.lack_of_memory(parameters, torch.device("mps"), torch.float16)
    assert 'device="cpu", quantization="int8" (4.5 GB)' in advice


def test_the_memory_of_other_programs_is_not_free(monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=9, available=3, free=1))
    assert machine.available_memory("cpu") == 3


def test_the_advice_does_not_repeat_what_was_asked_for(monkeypatch):
    monkeypatch.setattr(machine, "available_memory", lambda device: 0)
    _, advice = machine.lack_of_memory(BIG, torch.device("cpu"), torch.bfloat16, "int8")
    assert "int8" not in advice
    assert "bfloat16" not in advice


def test_what_torch_keeps_is_free_for_a_new_model(monkeypatch):
    for name, size in {"mem_get_info": (3, 9), "memory_reserved": 5, "memory_allocated": 1}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, size=size: size)
    assert machine.available_memory("cuda") == 3 + 5 - 1


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA"), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("MPS backend out of memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_out_of_memory(error, expected):
    assert machine.out_of_memory(error) is expected


def test_what_bitsandbytes_packs_is_not_refused_before():
    assert machine.lack_of_memory(10**12, torch.device("cuda"), torch.bfloat16, "int4") is None


@pytest.mark.parametrize(
    ("device", "advice"), [("cpu", 'pass quantization="int8"'), ("mps", 'pass device="cpu", quantization="int8"')]
)
def test_advice_for_weights_that_do_not_fit(device, advice):
    assert advice in machine.lack_of_memory(10**15, torch.device(device), torch.bfloat16)[1]
