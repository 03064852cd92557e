"""Fixtures that several test files share."""

import os
import shutil
import signal
import tempfile
from pathlib import Path

import offline  # noqa: F401  (no test leaves this machine)
import pytest

# Before anything imports huggingface_hub: no test may reach for the hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("PHI3_VISION_CHECKPOINT", None)

import helpers

GOLDEN = Path(__file__).parent / "golden"


def pytest_configure(config):
    """The notebooks' kernels are cut off from the network, too: IPython runs what lies in this folder first."""
    folder = Path(tempfile.mkdtemp())
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    startup = folder / "profile_default" / "startup"
    startup.mkdir(parents=True)
    shutil.copy(Path(__file__).parent / "offline.py", startup)
    os.environ["IPYTHONDIR"] = str(folder)


def pytest_addoption(parser):
    parser.addoption("--soak", action="store_true", help="tests/test_reliability.py at its full counts: ten minutes")


@pytest.fixture(scope="session")
def rounds(request):
    """`rounds(few, many)`: how often to try something, many times with --soak."""
    return lambda few, many: many if request.config.getoption("--soak") else few


@pytest.fixture(scope="session")
def golden_checkpoint() -> Path:
    """A tiny random checkpoint in the official file layout; its short context is 512 tokens."""
    return GOLDEN / "checkpoint"


@pytest.fixture
def folder(golden_checkpoint, tmp_path) -> Path:
    """A copy of the tiny checkpoint with its SHA256SUMS, for a test to change."""
    from phi3_v_data import copy_of, write_sums

    copy = copy_of(golden_checkpoint, tmp_path / "checkpoint")
    write_sums(copy)
    return copy


@pytest.fixture
def ctrl_c():
    """Ctrl-C as in a terminal: a program that was started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def golden_images() -> Path:
    return GOLDEN / "images"


@pytest.fixture(scope="session")
def tiny(golden_checkpoint):
    """(model, processor) of the tiny checkpoint, one tile a picture."""
    return helpers.load_model_and_processor(golden_checkpoint, num_crops=1, device="cpu")
