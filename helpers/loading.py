"""Load the model and its processor from the bundled checkpoint, a folder, or the Hugging Face hub."""

import contextlib
import errno
import hashlib
import json
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

OFFICIAL = "microsoft/Phi-3-vision-128k-instruct"
POCKET = Path(__file__).resolve().parent.parent / "checkpoints" / "phi-3-vision-pocket"
SUMS = "SHA256SUMS"
SMALL = 100_000_000  # parameters; below, float32 costs next to nothing and keeps stored answers stable

_ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SUM_LINE = re.compile(r"([0-9a-f]{64})  ([A-Za-z0-9._-]+)")


class CheckpointError(OSError):
    """A checkpoint is missing, incomplete or changed; the message names the file and the fix."""


class Choice(NamedTuple):
    """A setting picked for this machine, and why."""

    value: object
    reason: str


def load_model_and_processor(
    checkpoint=None,
    *,
    revision: str | None = None,
    device=None,
    dtype=None,
    attn_implementation: str | None = None,
    quantization=None,
    num_crops: int | None = None,
    compile: bool = False,
    local_files_only: bool = False,
):
    """Return (model, processor), the model in eval mode on its device.

    Args:
        checkpoint: a folder or the name of a hub repository, such as `OFFICIAL`; by default the environment
            variable PHI3_VISION_CHECKPOINT, else the bundled `POCKET`.
        revision: branch, tag or commit of the hub repository.
        device: "cuda", "mps", "cpu" or a torch.device; by default the best one this machine has.
        dtype: a torch.dtype or its name; by default what `choose_dtype` says.
        attn_implementation: "flash_attention_2", "sdpa" or "eager"; by default what `choose_attention` says.
        quantization: None, "int8" (on a CPU by `helpers.int8`, on CUDA by bitsandbytes), "int4" (bitsandbytes, CUDA
            only), or a transformers quantization config.
        num_crops: at most so many tiles a picture; fewer tiles cost fewer tokens and less memory.
        compile: CUDA only, with "sdpa" or "eager": compiles the step that writes one token (`helpers.compiled`).
            Loading takes longer; answers are written faster.
        local_files_only: never ask the hub.

    Only safetensors weights and this package's own code are used. A folder with a SHA256SUMS file is checked
    against it first.

    Raises:
        CheckpointError: files are missing, incomplete or changed, or the hub cannot be reached.
        ValueError: an impossible setting.
        RuntimeError: too little memory, or `quantization` without what it needs.
    """
    if num_crops is not None and num_crops < 1:
        raise ValueError(f"num_crops is {num_crops}; pass at least 1, or None for the checkpoint's own.")
    if attn_implementation not in (None, *_ATTENTION):
        known = ", ".join(_ATTENTION)
        raise ValueError(f"attn_implementation is {attn_implementation!r}; pass one of {known}.")
    import torch

    folder = find_checkpoint(checkpoint, revision=revision, local_files_only=local_files_only)
    verify_checksums(folder)
    parameters = count_parameters(folder)
    device = torch.device(device) if device is not None else choose_device().value
    dtype = _dtype_named(dtype) or choose_dtype(device, parameters).value
    attention = attn_implementation or ("sdpa" if compile else choose_attention(device, dtype).value)
    if compile and device.type != "cuda":
        raise ValueError(
            f"compile=True needs a CUDA GPU, the device is {device.type}; leave it out: nothing is gained."
        )
    if compile and attention not in ("sdpa", "eager"):
        raise ValueError(f'compile=True works with attn_implementation="sdpa" or "eager", not {attention!r}.')
    quantization = _quantization_config(quantization, device, dtype)
    backend = {"cuda": torch.cuda, "mps": torch.backends.mps}.get(device.type)
    if backend is not None and not backend.is_available():
        raise ValueError(f"device is {device}, which PyTorch cannot use here; leave it out for the best one there is.")
    _check_memory(parameters, device, dtype, quantization)

    from .phi3_v.modeling_phi3_v import Phi3VForCausalLM
    from .phi3_v.processing_phi3_v import Phi3VProcessor

    placement = {"quantization_config": quantization} if quantization else {}
    if quantization and device.type != "cpu":
        placement["device_map"] = {"": device}  # bitsandbytes places the weights itself while it packs them
    with _quiet(parameters < SMALL), _explained(folder):
        processor = Phi3VProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = Phi3VForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attention,  # always explicit: the official config asks for flash-attn
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            **placement,
        )
        if not quantization:
            model = model.to(device)
    if num_crops is not None:
        processor.image_processor.num_crops = num_crops
    model.eval()
    if compile:
        _compile(model, processor)
    return model, processor


def checkpoint_name(checkpoint=None) -> str:
    """The folder or hub name that `load_model_and_processor(checkpoint)` would take."""
    return str(checkpoint or os.environ.get("PHI3_VISION_CHECKPOINT") or POCKET)


def find_checkpoint(checkpoint=None, *, revision: str | None = None, local_files_only: bool = False) -> Path:
    """Return the folder that holds the checkpoint, downloading it from the hub if it is a name there.

    Raises:
        CheckpointError: it is nowhere to be found.
    """
    name = checkpoint_name(checkpoint)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _checked(folder)
    if folder == POCKET:
        raise CheckpointError(
            "The bundled checkpoint checkpoints/phi-3-vision-pocket is missing; clone the repository again "
            "and install it with `pip install -e .`, or pass checkpoint=helpers.OFFICIAL."
        )
    if not _HUB_ID.fullmatch(name):
        raise CheckpointError(f"There is no folder {name}; check the path, or leave checkpoint out.")
    return _download(name, revision, local_files_only)


def verify_checksums(folder: Path) -> bool:
    """Compare a folder's files with its SHA256SUMS; False if it has none.

    Raises:
        CheckpointError: a file is missing or differs, or the list itself is damaged.
    """
    sums = Path(folder) / SUMS
    if not sums.is_file():
        return False
    fix = "restore it with `git checkout -- checkpoints`, or download it again"
    *lines, rest = sums.read_bytes().decode("utf-8", "replace").split("\n")
    for line in lines:
        entry = _SUM_LINE.fullmatch(line)
        if entry is None:
            raise CheckpointError(f"{sums} is damaged; {fix}.")
        file = sums.with_name(entry[2])
        if not file.is_file():
            raise CheckpointError(f"{file} is missing but listed in {SUMS}; {fix}.")
        with file.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != entry[1]:
                raise CheckpointError(f"{file} has changed: its hash is not the one in {SUMS}; {fix}.")
    if rest or not lines:
        raise CheckpointError(f"{sums} is damaged; {fix}.")
    return True


def count_parameters(folder: Path) -> int:
    """The number of weights in a folder's safetensors files, read from their headers.

    Raises:
        CheckpointError: there are none, some are missing, or a header is damaged.
    """
    from math import prod

    from safetensors import SafetensorError, safe_open

    folder = Path(folder)
    index_file = folder / "model.safetensors.index.json"
    try:
        index = json.loads(index_file.read_text(encoding="utf-8"))
        names = sorted(set(index["weight_map"].values()))
    except FileNotFoundError:
        names = ["model.safetensors"]
    except (ValueError, KeyError, AttributeError, TypeError):
        raise CheckpointError(f"{index_file} is damaged; download it again.") from None
    total = 0
    for name in names:
        try:
            with safe_open(folder / name, framework="numpy") as weights:
                total += sum(prod(weights.get_slice(key).get_shape()) for key in weights.keys())  # noqa: SIM118
        except FileNotFoundError:
            raise CheckpointError(
                f"{folder} lacks {name}; only safetensors weights are read, so download them again."
            ) from None
        except SafetensorError as error:
            raise CheckpointError(f"{folder / name} is damaged ({error}); download it again.") from None
    return total


def choose_device() -> Choice:
    """The fastest torch.device of this machine."""
    import torch

    if torch.cuda.is_available():
        return Choice(torch.device("cuda"), torch.cuda.get_device_name())
    if torch.backends.mps.is_available():
        return Choice(torch.device("mps"), "Apple GPU")
    return Choice(torch.device("cpu"), "no CUDA or Apple GPU found")


def choose_dtype(device, parameters: int) -> Choice:
    """The torch.dtype that a model of so many parameters runs best in on `device`."""
    import torch

    kind = torch.device(device).type
    if kind == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Choice(torch.bfloat16, "the GPU computes in bfloat16")
        return Choice(torch.float16, "the GPU has no bfloat16")
    if parameters < SMALL:
        return Choice(torch.float32, "the model is small")
    if kind == "mps":
        return Choice(torch.float16, "half the memory of float32")
    features = torch.cpu.get_capabilities()
    if features.get("avx512_bf16") or features.get("amx_bf16"):
        return Choice(torch.bfloat16, "the CPU computes in bfloat16")
    return Choice(torch.float32, "the CPU has no bfloat16 units, so float32 is several times faster")


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


def available_memory(device) -> int:
    """Free bytes where a model on `device` would lie."""
    import psutil
    import torch

    device = torch.device(device)
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def _download(name: str, revision: str | None, local_files_only: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

    where = f"{name} at revision {revision}" if revision else name
    try:
        # One look at the hub for everything; without the hub it answers from the local cache.
        folder = snapshot_download(
            name,
            revision=revision,
            allow_patterns=["*.json", "*.safetensors"],
            local_files_only=local_files_only,
        )
    except LocalEntryNotFoundError:
        raise CheckpointError(
            f"{where} is not on this machine and the hub was not reached. Connect to the internet and unset "
            "HF_HUB_OFFLINE to download it once, or leave checkpoint out to use the bundled one."
        ) from None
    except GatedRepoError:
        raise CheckpointError(f"{where} asks for a login; run `hf auth login` first.") from None
    except HfHubHTTPError as error:
        text = str(error).strip().splitlines()[0]
        raise CheckpointError(f"The hub has no {where} ({text}); check the name and the revision.") from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise CheckpointError(
                f"The disk is full: {where} does not fit. Free some space, or set HF_HOME to a larger disk."
            ) from None
        raise CheckpointError(f"Downloading {where} failed ({error}); try again.") from None
    return _checked(Path(folder))


def _checked(folder: Path) -> Path:
    """The folder, if it says that it holds a Phi-3-vision checkpoint."""
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except FileNotFoundError:
        raise CheckpointError(f"{folder} holds no config.json; pass the folder that does.") from None
    except (ValueError, AttributeError):
        raise CheckpointError(f"{folder / 'config.json'} is damaged; download it again.") from None
    if kind != "phi3_v":
        raise CheckpointError(f"{folder} holds a model of type {kind}, not phi3_v; pass another folder.")
    return folder


def _dtype_named(dtype):
    """A torch.dtype for its name; None for "auto"."""
    import torch

    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype not in (None, "auto") and not isinstance(found, torch.dtype):
        raise ValueError(f"dtype is {dtype!r}; pass torch.float32, torch.bfloat16, torch.float16 or None.")
    return found


def _quantization_config(quantization, device, dtype):
    if quantization is None or not isinstance(quantization, str):
        return quantization
    if quantization not in ("int8", "int4"):
        raise ValueError(f'quantization is {quantization!r}; pass "int8", "int4" or None.')
    if quantization == "int8" and device.type == "cpu":
        from .int8 import Int8Config

        return Int8Config()
    missing = [package for package in ("bitsandbytes", "accelerate") if find_spec(package) is None]
    if device.type != "cuda" or missing:
        cuda = device.type == "cuda"
        lacks = f"{' and '.join(missing)} missing" if cuda else f"the device is {device.type}"
        raise RuntimeError(
            f'quantization="{quantization}" needs a CUDA GPU and `pip install bitsandbytes accelerate`; here '
            f'{lacks}. Leave quantization out otherwise, or on a CPU pass quantization="int8".'
        )
    from transformers import BitsAndBytesConfig

    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def lack_of_memory(parameters: int, device, dtype, quantization=None) -> tuple[str, str] | None:
    """What is wrong and what mends it, where so many weights cannot fit."""
    if quantization and device.type != "cpu":
        return None  # how much is left of the weights depends on the method
    needed, free = parameters * (1 if quantization else dtype.itemsize), available_memory(device)
    if needed <= free:
        return None
    form = "int8" if quantization else str(dtype).removeprefix("torch.")
    return (
        f"The weights take {needed / 1e9:.1f} GB in {form}, but {device.type} has {free / 1e9:.1f} GB free",
        'close other programs, or pass quantization="int8" (a quarter of float32), dtype=torch.bfloat16 (half of it), '
        'or on CUDA quantization="int4" (an eighth)',
    )


def _check_memory(parameters: int, device, dtype, quantization) -> None:
    """Refuse a model that cannot fit before minutes go into reading it."""
    if lack := lack_of_memory(parameters, device, dtype, quantization):
        raise RuntimeError(f"{lack[0]}; {lack[1]}.")


def _compile(model, processor) -> None:
    """Compile now, in sight, rather than in the middle of the first answer."""
    from tqdm import tqdm

    from .compiled import CompiledDecoding
    from .generation import stream

    model.compiled_decoding = CompiledDecoding(model)
    for _ in tqdm(stream(model, processor, "Count to nine.", max_new_tokens=9), "compiling", unit="piece"):
        pass


@contextlib.contextmanager
def _quiet(quiet: bool):
    """Switch transformers' progress bar off for a model that loads at once anyway."""
    from transformers.utils import logging

    if not quiet or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


@contextlib.contextmanager
def _explained(folder: Path):
    """Turn what goes wrong while reading a folder into one clear error."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        pass
    except ImportError as error:
        text = " ".join(str(error).split())[:300]
        raise RuntimeError(f"{text} Install what is named here, or leave the setting that needs it out.") from error
    except Exception as error:  # a damaged config can fail anywhere
        text = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{folder} cannot be loaded as a Phi-3-vision checkpoint ({text}); download it again."
        ) from error
    else:
        return
    # Outside the handler, so that the first error's traceback does not keep the weights alive.
    raise RuntimeError('The GPU ran out of memory while loading; pass quantization="int4" or device="cpu".')
