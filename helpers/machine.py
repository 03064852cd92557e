"""What suits this machine: the device, dtype and attention to use, and whether a model fits in its memory."""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

SMALL = 100_000_000  # parameters; below this, float32 costs next to nothing and keeps stored answers stable


class Choice(NamedTuple):
    """A setting picked for this machine, and why."""

    value: object
    reason: str


def choose_device() -> Choice:
    """The fastest torch.device of this machine."""
    import torch

    if torch.cuda.is_available():
        return Choice(torch.device("cuda"), torch.cuda.get_device_name())
    if torch.backends.mps.is_available():
        return Choice(torch.device("mps"), "Apple GPU")
    if not (torch.backends.cuda.is_built() or torch.backends.mps.is_built()):
        return Choice(torch.device("cpu"), "no GPU: this PyTorch is built without CUDA")
    return Choice(torch.device("cpu"), "no CUDA or Apple GPU found")


def choose_dtype(device, parameters: int) -> Choice:
    """The torch.dtype that a model of so many parameters runs best in on `device`."""
    import torch

    if parameters < SMALL:
        return Choice(torch.float32, "the model is small")
    kind = torch.device(device).type
    if kind == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Choice(torch.bfloat16, "the GPU computes in bfloat16")
        return Choice(torch.float16, "the GPU has no bfloat16")
    if kind == "mps":
        return Choice(torch.float16, "half the memory of float32")
    features = torch.cpu.get_capabilities()
    if features.get("avx512_bf16") or features.get("amx_bf16"):
        return Choice(torch.bfloat16, "the CPU computes in bfloat16")
    return Choice(torch.float32, "the CPU has no bfloat16 units, so float32 reads several times as fast")


def choose_quantization(device, parameters: int) -> Choice:
    """Whether a model of so many parameters runs best in 8 bits on `device`: "int8" or None."""
    import torch

    if parameters < SMALL:
        return Choice(None, "the model is small")
    if torch.device(device).type != "cpu":
        return Choice(None, "not needed while they fit")
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return Choice(None, "8 bits were timed on x86 only")
    return Choice("int8", "faster, and the least memory")


def choose_attention(device, dtype) -> Choice:
    """The attention implementation to use on `device` in `dtype`."""
    import torch
    from transformers.utils import is_flash_attn_2_available

    if torch.device(device).type != "cuda":
        return Choice("sdpa", "flash-attn needs CUDA")
    if not is_flash_attn_2_available():
        return Choice("sdpa", "flash-attn is not installed")
    if dtype not in (torch.float16, torch.bfloat16):
        return Choice("sdpa", "flash-attn needs a half-precision dtype")
    if torch.cuda.get_device_capability(device) < (8, 0):
        return Choice("sdpa", "flash-attn needs an Ampere GPU or newer")
    return Choice("flash_attention_2", "flash-attn is installed and the GPU supports it")


def disable_cudnn_attention() -> None:
    """Turn cuDNN's attention off in this process. Where PyTorch prefers it (on an H100), it makes a new plan for each
    prompt length, which takes longer than it saves."""
    import torch

    torch.backends.cuda.enable_cudnn_sdp(False)


@contextlib.contextmanager
def cudnn_attention() -> Iterator[None]:
    """Allow cuDNN's attention inside: it pays off where lengths stay the same, as in the step of `helpers.compiled`."""
    import torch

    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def available_memory(device) -> int:
    """Free bytes in the memory that a model on `device` would use."""
    import psutil
    import torch

    device = torch.device(device)
    if device.type != "cuda":
        return psutil.virtual_memory().available
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # cached by torch
    return torch.cuda.mem_get_info(device)[0] + kept


def size_of_weights(parameters: int, dtype, quantization=None) -> float:
    """Bytes that so many weights take in `dtype`, or rounded to "int8" or "int4"."""
    if not quantization:
        return parameters * dtype.itemsize
    # bitsandbytes keeps a float32 for each 64 weights of 4 bits.
    rounded = 4 / 8 + 4 / 64 if quantization == "int4" else 1
    # The embedding keeps its dtype, and in 4 bits the head does too: each is a fortieth of the official weights.
    kept = 2 if quantization == "int4" else 1
    return parameters * ((40 - kept) * rounded + kept * dtype.itemsize) / 40


def lack_of_memory(parameters: int, device, dtype, quantization=None) -> tuple[str, str] | None:
    """(what is wrong, what to do about it) if so many weights do not fit into the free memory, else None."""
    import torch

    if quantization and device.type != "cpu":
        return None  # their size depends on the method
    needed, free = size_of_weights(parameters, dtype, quantization), available_memory(device)
    if needed <= free:
        return None
    form = "int8" if quantization else str(dtype).removeprefix("torch.")
    on_cpu = "" if device.type != "mps" else 'device="cpu", '
    int8 = size_of_weights(parameters, torch.float32 if on_cpu else dtype, "int8") / 1e9
    int4 = size_of_weights(parameters, torch.float16, "int4") / 1e9
    smaller = [] if quantization else [f'{on_cpu}quantization="int8" ({int8:.1f} GB)']
    if dtype.itemsize == 4:
        smaller.append("dtype=torch.bfloat16" + (', quantization="int8"' if quantization else ""))
    smaller.append(f'on CUDA quantization="int4" ({int4:.1f} GB)')
    return (
        f"The weights take {needed / 1e9:.1f} GB in {form}, but {device.type} has {free / 1e9:.1f} GB free",
        f"close other programs and shut down notebooks that hold a model, or pass {', or '.join(smaller)}",
    )


def out_of_memory(error: BaseException) -> bool:
    """Whether the error says that the memory of some device ran out."""
    import torch

    # Only CUDA has its own exception type; the CPU and MPS allocators raise a plain RuntimeError.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        text in str(error) for text in ("can't allocate memory", "not enough memory", "out of memory")
    )
