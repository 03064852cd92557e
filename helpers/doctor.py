"""Look at this machine and say whether everything needed is here."""

import re
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from .checkpoints import (
    PARAMETERS,
    POCKET,
    CheckpointError,
    NotDownloadedError,
    checkpoint_name,
    count_parameters,
    find_checkpoint,
    verify_checksums,
)
from .machine import (
    available_memory,
    choose_attention,
    choose_device,
    choose_dtype,
    choose_quantization,
    lack_of_memory,
    size_of_weights,
)

PYTHON_FLOOR = (3, 11)
FLOORS = {"transformers": "5.17", "torch": "2.11", "pillow": "13.0"}
TESTED_UP_TO = {"transformers": "5.24"}
#: Packages of which any version will do.
NEEDED = ("psutil", "requests", "tqdm")
INSTALL = "python -m pip install -r requirements.txt"


@dataclass(frozen=True)
class Report:
    """What `doctor` found; printing it shows everything.

    Attributes:
        facts: (name, value) pairs.
        problems: (what is wrong, the line that fixes it) pairs.
    """

    facts: tuple[tuple[str, str], ...]
    problems: tuple[tuple[str, str], ...]

    @property
    def ok(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        lines = [f"{name:<14}{value}" for name, value in self.facts]
        for problem, fix in self.problems:
            lines += [f"PROBLEM       {problem}", f"  fix         {fix}"]
        lines.append("Ready." if self.ok else f"Not ready: {len(self.problems)} problem(s) to fix.")
        return "\n".join(lines)

    __repr__ = __str__


def doctor(checkpoint=None) -> Report:
    """Report versions, device, memory, the choices made for this machine, and the checkpoint's state.

    Nothing is loaded or downloaded. `checkpoint` is what `load_model_and_processor` takes.
    """
    facts, problems = [("python", ".".join(map(str, sys.version_info[:3])))], []
    if sys.version_info[:2] < PYTHON_FLOOR:
        problems.append((f"Python {sys.version.split()[0]} is too old", "install Python 3.11 or newer"))
    for package, floor in FLOORS.items():
        _check_version(package, floor, facts, problems)
    problems += [(f"{package} is not installed", INSTALL) for package in NEEDED if find_spec(package) is None]
    _check_helpers(facts, problems)
    if not problems:  # otherwise torch may be missing or too old
        parameters = _check_checkpoint(checkpoint, facts, problems)
        device = _describe_machine(facts)
        if parameters is not None:
            _describe_choices(parameters, device, facts, problems)
    return Report(tuple(facts), tuple(problems))


def _check_version(package: str, floor: str, facts: list, problems: list) -> None:
    ceiling = TESTED_UP_TO.get(package)
    try:
        found = version(package)
    except PackageNotFoundError:
        problems.append((f"{package} is not installed", INSTALL))
        return
    note = ""
    if _release(found) < _release(floor):
        problems.append((f"{package} {found} is older than {floor}", INSTALL))
    elif ceiling and _release(found) > _release(ceiling):
        note = f" (newer than the tested >={floor},<={ceiling}.*)"
    facts.append((package, found + note))


def _release(text: str) -> tuple[int, ...]:
    """(2, 11) of "2.11.0+cpu"; without `packaging`, which an empty environment lacks."""
    return tuple(map(int, re.findall(r"\d+", text)[:2]))


def _check_helpers(facts: list, problems: list) -> None:
    """Add the version, and why importing `helpers` failed if no problem so far explains it."""
    from . import __version__, import_error

    facts.append(("helpers", __version__))
    if import_error and not problems:
        problems.append((" ".join(str(import_error).split()), INSTALL))


def _check_checkpoint(checkpoint, facts: list, problems: list) -> int | None:
    """Add the checkpoint's line and return its number of parameters, None where that cannot be known."""
    from huggingface_hub import constants

    name = checkpoint_name(checkpoint)
    shown = f"{POCKET.parent.name}/{POCKET.name}" if Path(name) == POCKET else name
    try:
        folder = find_checkpoint(checkpoint, local_files_only=True)
        hashes = "SHA256SUMS verified" if verify_checksums(folder) else "no SHA256SUMS to check"
        parameters = count_parameters(folder)
    except CheckpointError as error:
        if isinstance(error, NotDownloadedError) and not constants.HF_HUB_OFFLINE:
            size = f" ({2 * PARAMETERS[name] / 1e9:.1f} GB)" if name in PARAMETERS else ""
            facts.append(("checkpoint", f"{name}, not downloaded yet{size}"))
        else:
            problem, _, fix = str(error).partition("; ")
            problems.append((problem, fix))
        return PARAMETERS.get(name)
    size = f"{parameters / 1e6:,.1f} M" if parameters < 1e9 else f"{parameters / 1e9:.1f} B"
    facts.append(("checkpoint", f"{shown}, {size} parameters, {hashes}"))
    return parameters


def _describe_machine(facts: list):
    """Add the lines that hold for every checkpoint and return the torch.device."""
    import psutil
    import torch

    device = choose_device()
    memory = psutil.virtual_memory()
    where = f"{device.value.type} ({device.reason})"
    if device.value.type == "cuda":
        total = torch.cuda.mem_get_info()[1]
        where += f", {total / 1e9:.1f} GB, {available_memory(device.value) / 1e9:.1f} GB free"
    facts += [
        ("device", where),
        ("memory", f"{memory.total / 1e9:.1f} GB, {memory.available / 1e9:.1f} GB free"),
    ]
    return device.value


def _describe_choices(parameters: int, device, facts: list, problems: list) -> None:
    """Add the settings for a model of so many parameters on the device, and whether it fits there."""
    dtype, quantization = choose_dtype(device, parameters), choose_quantization(device, parameters)
    attention = choose_attention(device, dtype.value)
    size = size_of_weights(parameters, dtype.value, quantization.value) / 1e9
    faster = "load with compile=True (compiles for half a minute, then writes faster)"
    if lack := lack_of_memory(parameters, device, dtype.value, quantization.value):
        problems.append(lack)
    facts += [
        ("dtype", f"{str(dtype.value).removeprefix('torch.')} ({dtype.reason})"),
        ("quantization", f"{quantization.value or 'none'} ({quantization.reason}), {size:.2f} GB of weights"),
        ("attention", f"{attention.value} ({attention.reason})"),
        ("faster", faster if device.type == "cuda" else "no setting to add"),
    ]
