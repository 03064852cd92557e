"""Look at this machine and say whether everything needed is here."""

import os
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .checkpoints import (
    OFFICIAL,
    POCKET,
    CheckpointError,
    checkpoint_name,
    count_parameters,
    find_checkpoint,
    verify_checksums,
)
from .machine import available_memory, choose_attention, choose_device, choose_dtype, lack_of_memory

PYTHON_FLOOR = (3, 11)
FLOORS = {"transformers": "5.17", "torch": "2.11", "pillow": "13.0"}
TESTED_UP_TO = {"transformers": "5.23"}
OFFICIAL_PARAMETERS = 4_146_621_440


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
    facts.append(("helpers", _helpers_version()))
    if not problems:  # with a package missing there is nothing to ask torch
        parameters = _check_checkpoint(checkpoint, facts, problems)
        _describe_machine(parameters, facts, problems)
    return Report(tuple(facts), tuple(problems))


def _check_version(package: str, floor: str, facts: list, problems: list) -> None:
    from packaging.version import Version

    ceiling = TESTED_UP_TO.get(package)
    span = f">={floor},<={ceiling}.*" if ceiling else f">={floor}"
    fix = "python -m pip install -r requirements.txt"
    try:
        found = version(package)
    except PackageNotFoundError:
        problems.append((f"{package} is not installed", fix))
        return
    note = ""
    if Version(found) < Version(floor):
        problems.append((f"{package} {found} is older than {floor}", fix))
    elif ceiling and Version(found).release[:2] > Version(ceiling).release:
        note = f" (newer than the tested {span})"
    facts.append((package, found + note))


def _helpers_version() -> str:
    from . import __version__

    return __version__


def _check_checkpoint(checkpoint, facts: list, problems: list) -> int:
    """Add the checkpoint's line and return its number of parameters, as far as it can be known."""
    name = checkpoint_name(checkpoint)
    shown = f"{POCKET.parent.name}/{POCKET.name}" if Path(name) == POCKET else name
    try:
        folder = find_checkpoint(checkpoint, local_files_only=True)
        hashes = "SHA256SUMS verified" if verify_checksums(folder) else "no SHA256SUMS to check"
        parameters = count_parameters(folder)
    except CheckpointError as error:
        if name == OFFICIAL and not os.environ.get("HF_HUB_OFFLINE"):
            facts.append(("checkpoint", f"{name}, not downloaded yet (8.3 GB)"))
        else:
            problem, _, fix = str(error).partition("; ")
            problems.append((problem, fix or "connect to the internet and try again"))
        return OFFICIAL_PARAMETERS
    size = f"{parameters / 1e6:,.1f} M" if parameters < 1e9 else f"{parameters / 1e9:.1f} B"
    facts.append(("checkpoint", f"{shown}, {size} parameters, {hashes}"))
    return parameters


def _describe_machine(parameters: int, facts: list, problems: list) -> None:
    import psutil
    import torch

    device = choose_device()
    dtype = choose_dtype(device.value, parameters)
    attention = choose_attention(device.value, dtype.value)
    size = parameters * dtype.value.itemsize
    memory = psutil.virtual_memory()
    if lack := lack_of_memory(parameters, device.value, dtype.value):
        problems.append(lack)
    where = f"{device.value.type} ({device.reason})"
    if device.value.type == "cuda":
        total = torch.cuda.mem_get_info()[1]
        where += f", {total / 1e9:.1f} GB, {available_memory(device.value) / 1e9:.1f} GB free"
    facts += [
        ("device", where),
        ("memory", f"{memory.total / 1e9:.1f} GB, {memory.available / 1e9:.1f} GB free"),
        ("dtype", f"{str(dtype.value).removeprefix('torch.')} ({dtype.reason}), {size / 1e9:.2f} GB of weights"),
        ("attention", f"{attention.value} ({attention.reason})"),
        ("faster", _faster(device.value.type, parameters)),
    ]


def _faster(device: str, parameters: int) -> str:
    if device == "cuda":
        return "load with compile=True (compiles for a minute, then writes faster)"
    if device == "cpu" and parameters > 1e9:
        return 'load with quantization="int8" (reads pictures faster, in a quarter of the memory)'
    return "nothing to add"
