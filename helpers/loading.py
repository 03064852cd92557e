"""Load the model and its processor from the bundled checkpoint, a folder, or the Hugging Face hub."""

import contextlib
import gc
import json
import numbers
from importlib.util import find_spec
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError
from tqdm import tqdm
from transformers import BitsAndBytesConfig
from transformers.utils import logging
from transformers.utils.quantization_config import QuantizationConfigMixin

from .checkpoints import (
    PARAMETERS,
    CheckpointError,
    checkpoint_name,
    count_parameters,
    find_checkpoint,
    verify_checksums,
)
from .compiled import CompiledDecoding, compile_prompts
from .generation import stream
from .machine import (
    SMALL,
    choose_attention,
    choose_device,
    choose_dtype,
    choose_quantization,
    disable_cudnn_attention,
    lack_of_memory,
    out_of_memory,
)
from .phi3_v import Phi3VForCausalLM, Phi3VProcessor

_ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")


def load_model_and_processor(
    checkpoint: str | Path | None = None,
    *,
    revision: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    attn_implementation: str | None = None,
    quantization: str | bool | QuantizationConfigMixin | None = None,
    num_crops: int | None = None,
    compile: bool = False,
    local_files_only: bool = False,
) -> tuple[Phi3VForCausalLM, Phi3VProcessor]:
    """Return (model, processor), the model in eval mode on its device.

    Args:
        checkpoint: a folder or the name of a hub repository, such as `OFFICIAL`; by default the environment
            variable PHI3_VISION_CHECKPOINT, else the bundled `POCKET`.
        revision: branch, tag or commit of the hub repository; by default, for `OFFICIAL`, the one that this version was
            written for (`helpers.checkpoints.OFFICIAL_REVISION`), and for others the newest.
        device: "cuda", "mps", "cpu" or a torch.device; by default the best one this machine has.
        dtype: a torch.dtype or its name; by default what `helpers.machine.choose_dtype` says.
        attn_implementation: "flash_attention_2", "sdpa" or "eager"; by default what
            `helpers.machine.choose_attention` says.
        quantization: "int8" (on a CPU by `helpers.int8`, on CUDA by bitsandbytes), "int4" (bitsandbytes, CUDA only), a
            transformers quantization config, or False for none; by default what
            `helpers.machine.choose_quantization` says, or none if a `dtype` is given.
        num_crops: the most tiles a picture may use; fewer tiles cost fewer tokens and less memory.
        compile: CUDA only, with "sdpa" or "eager": compiles the step that writes one token, and parts of
            reading the prompt (`helpers.compiled`). Loading takes longer; answers come faster.
        local_files_only: never ask the hub.

    Only safetensors weights and this package's own code are used. A folder with a SHA256SUMS file is checked
    against it first.

    Raises:
        CheckpointError: files are missing, incomplete or changed, or the hub cannot be reached.
        ValueError: an impossible setting.
        RuntimeError: too little memory, or `quantization` without what it needs.
    """
    # Impossible settings are refused before anything is downloaded.
    device = _device_named(device) if device is not None else choose_device().value
    dtype = _dtype_named(dtype)
    _check_settings(device, attn_implementation, quantization, num_crops, compile)
    if device.type == "cuda":
        gc.collect()  # a compiled model that was deleted is a reference cycle and would keep its memory
    name = checkpoint_name(checkpoint)
    if name in PARAMETERS:
        _dtype_and_quantization(PARAMETERS[name], device, dtype, quantization)
    folder = find_checkpoint(checkpoint, revision=revision, local_files_only=local_files_only)
    verify_checksums(folder)
    parameters = count_parameters(folder)
    dtype, quantization = _dtype_and_quantization(parameters, device, dtype, quantization)
    attention = attn_implementation or ("sdpa" if compile else choose_attention(device, dtype).value)
    quantization = _quantization_config(quantization, device, dtype)

    placement = {"quantization_config": quantization} if quantization else {}
    if quantization and device.type != "cpu":
        placement["device_map"] = {"": device}  # bitsandbytes places the weights itself while it packs them

    def read_processor():
        return Phi3VProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)

    def read_model():
        model, report = Phi3VForCausalLM.from_pretrained(
            folder,
            output_loading_info=True,
            dtype=dtype,
            attn_implementation=attention,  # always explicit: the official config asks for flash-attn
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            **placement,
        )
        return (model if quantization else model.to(device)), sorted(report["missing_keys"])

    processor = _explained(read_processor, folder, device, damage=Exception)  # the settings cannot be at fault
    with _quiet(parameters < SMALL):
        model, missing = _explained(read_model, folder, device, damage=(OSError, SafetensorError, json.JSONDecodeError))
    if missing:  # they would be random numbers
        raise CheckpointError(
            f"{folder} is incomplete: {len(missing)} weights are missing, the first is {missing[0]}; download it again."
        )
    if num_crops is not None:
        processor.image_processor.num_crops = int(num_crops)
    if device.type == "cuda":
        disable_cudnn_attention()
    if compile:
        _compile(model, processor)
    return model, processor


def _device_named(device):
    """A torch.device for its name."""
    try:
        return torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f'device is {device!r}; pass "cuda", "mps", "cpu", or None for the best one.') from None


def _dtype_named(dtype):
    """A torch.dtype for its name; None for "auto" and None."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype not in (None, "auto") and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ValueError(f"dtype is {dtype!r}; pass torch.float32, torch.bfloat16, torch.float16 or None.")
    return found


def _check_settings(device, attn_implementation, quantization, num_crops, compile) -> None:
    if num_crops is not None and not (isinstance(num_crops, numbers.Integral) and num_crops >= 1):
        raise ValueError(f"num_crops is {num_crops!r}; pass a whole number, or None for the checkpoint's own.")
    if attn_implementation not in (None, *_ATTENTION):
        known = ", ".join(_ATTENTION)
        raise ValueError(f"attn_implementation is {attn_implementation!r}; pass one of {known}.")
    if compile and device.type != "cuda":
        raise ValueError(
            f"compile=True needs a CUDA GPU, but the device is {device.type}; leave it out: it would gain nothing here."
        )
    if compile and attn_implementation not in (None, "sdpa", "eager"):
        raise ValueError(f'compile=True works with attn_implementation="sdpa" or "eager", not {attn_implementation!r}.')
    if isinstance(quantization, str) or quantization is True:
        _check_quantization(quantization, device)
    backend = torch.backends.mps if device.type == "mps" else getattr(torch, device.type, None)
    is_available = getattr(backend, "is_available", lambda: False)  # "meta", for one, has none
    # With a driver that is too old, CUDA counts cards that it cannot use.
    if not (is_available() and (device.index or 0) < torch.get_device_module(device).device_count()):
        raise ValueError(f"device is {device}, which PyTorch cannot use here; leave it out for the best one there is.")


def _check_quantization(quantization: str | bool, device) -> None:
    if quantization not in ("int8", "int4"):
        raise ValueError(f'quantization is {quantization!r}; pass "int8", "int4", False for none, or None.')
    missing = [package for package in ("bitsandbytes", "accelerate") if find_spec(package) is None]
    if (device.type, quantization) != ("cpu", "int8") and (device.type != "cuda" or missing):
        cuda = device.type == "cuda"
        lacks = f"{' and '.join(missing)} missing" if cuda else f"the device is {device.type}"
        raise RuntimeError(
            f'quantization="{quantization}" needs a CUDA GPU and `pip install bitsandbytes accelerate`; here '
            f'{lacks}. Otherwise leave quantization out, or on a CPU pass quantization="int8".'
        )


def _dtype_and_quantization(parameters: int, device, dtype, quantization) -> tuple:
    """The given dtype and quantization or else the best ones; raises if the weights would not fit into memory."""
    if quantization is None and dtype is None:  # a given dtype is meant for the weights
        quantization = choose_quantization(device, parameters).value
    dtype = dtype or choose_dtype(device, parameters).value
    if lack := lack_of_memory(parameters, device, dtype, quantization):
        raise RuntimeError(f"{lack[0]}; {lack[1]}.")
    return dtype, quantization


def _quantization_config(quantization, device, dtype):
    """The transformers config that `quantization` stands for."""
    if not isinstance(quantization, str):
        return quantization or None
    if device.type == "cpu":
        from .int8 import Int8Config  # here, as it needs more of transformers' inside than all the rest

        return Int8Config()
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def _compile(model, processor) -> None:
    """Compile now, with a progress bar, rather than in the middle of the first answer."""
    compile_prompts(model)
    model.compiled_decoding = CompiledDecoding(model)
    asked = "Count to nine.", Image.new("RGB", (400, 300))
    for _ in tqdm(stream(model, processor, *asked, max_new_tokens=9), "compiling", unit="piece"):
        pass


@contextlib.contextmanager
def _quiet(quiet: bool):
    """Hide transformers' progress bar for a model that loads in a moment."""
    if not quiet or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def _explained(read, folder: Path, device, damage):
    """The result of `read()`, or one clear error; `damage` are the errors that damaged files cause."""
    try:
        return read()
    except ImportError as error:
        text = " ".join(str(error).split())[:300]
        raise RuntimeError(f"{text} Install what is named here, or leave out the setting that needs it.") from error
    except Exception as error:  # a damaged config can fail anywhere
        if not out_of_memory(error):
            text = " ".join(str(error).split())[:300]
            again = "download it again, or save both the model and its processor there"
            fix = again if isinstance(error, damage) else "check the settings, or pass another folder"
            raise CheckpointError(f"{folder} cannot be loaded as a Phi-3-vision checkpoint ({text}); {fix}.") from error
    # Outside the handler, so that the first error's traceback does not keep the weights alive.
    smaller = 'quantization="int4" or device="cpu"' if device.type == "cuda" else 'device="cpu", quantization="int8"'
    raise RuntimeError(f"{device.type} ran out of memory while loading; close other programs, or pass {smaller}.")
