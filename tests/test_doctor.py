import configparser
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import helpers
from helpers.checkpoints import OFFICIAL_REVISION
from helpers.machine import Choice

doctor_module = sys.modules["helpers.doctor"]


def facts(report) -> dict:
    return dict(report.facts)


def test_a_sound_machine(golden_checkpoint):
    report = helpers.doctor(golden_checkpoint)
    assert report.ok
    assert report.problems == ()
    machine = "device memory dtype quantization attention faster"
    assert list(facts(report)) == f"python transformers torch pillow helpers checkpoint {machine}".split()
    assert "1.0 M parameters" in facts(report)["checkpoint"]
    assert str(report).splitlines()[-1] == "Ready."
    assert repr(report) == str(report)


def test_the_bundled_checkpoint():
    report = helpers.doctor()
    assert report.ok, str(report)
    assert facts(report)["checkpoint"].startswith("checkpoints/phi-3-vision-pocket, ")
    assert facts(report)["checkpoint"].endswith("SHA256SUMS verified")


@pytest.mark.parametrize(
    ("package", "found"), [("transformers", "5.16.2"), ("torch", "2.10.1+cu126"), ("pillow", "12.2.0")]
)
def test_too_old_versions(monkeypatch, golden_checkpoint, package, found):
    real = doctor_module.version
    monkeypatch.setattr(doctor_module, "version", lambda name: found if name == package else real(name))
    report = helpers.doctor(golden_checkpoint)
    assert not report.ok
    assert report.problems[0][0].startswith(f"{package} {found} is older than")
    assert "pip install -r requirements.txt" in str(report)
    assert "Not ready: 1 problem(s)" in str(report)


def test_newer_than_tested_is_a_note(monkeypatch, golden_checkpoint):
    real = doctor_module.version
    monkeypatch.setattr(doctor_module, "version", lambda name: "99.0.0" if name == "transformers" else real(name))
    report = helpers.doctor(golden_checkpoint)
    assert report.ok
    assert "newer than the tested" in facts(report)["transformers"]


def test_missing_package(monkeypatch, golden_checkpoint):
    def version(name):
        raise doctor_module.PackageNotFoundError(name)

    monkeypatch.setattr(doctor_module, "version", version)
    assert "torch is not installed" in str(helpers.doctor(golden_checkpoint))


def write_transformers_4(path: Path) -> None:
    """One that fails where it is used, and not by an ImportError."""
    (path / "transformers").mkdir()
    (path / "transformers" / "__init__.py").write_text("def __getattr__(name): raise TypeError(name)\n")
    (path / "transformers-4.57.6.dist-info").mkdir()
    (path / "transformers-4.57.6.dist-info" / "METADATA").write_text("Name: transformers\nVersion: 4.57.6\n")


def write_broken_pillow(path: Path) -> None:
    (path / "PIL.py").write_text("raise ImportError('DLL load failed while importing _imaging')\n")


@pytest.mark.parametrize(
    ("prepare", "options", "problems"),
    [
        (write_transformers_4, [], ["transformers 4.57.6 is older than 5.17"]),
        (write_broken_pillow, [], ["DLL load failed while importing _imaging"]),
        (
            lambda path: None,
            ["-S"],
            [f"{name} is not installed" for name in "transformers torch pillow psutil requests tqdm".split()],
        ),
    ],
)
def test_an_unsuitable_environment(tmp_path, prepare, options, problems):
    """The report is complete even if packages that `helpers` imports fail; an import says the same in one error."""
    prepare(tmp_path)

    def python(*arguments):
        return subprocess.run(
            [sys.executable, *options, *arguments],
            cwd=helpers.POCKET.parent.parent,
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    for question in ([], ["picture.png", "What is this?"]):
        done = python("-m", "helpers", *question)
        assert (done.returncode, done.stderr) == (1, "")
        lines = done.stdout.splitlines()
        assert [line.split(maxsplit=1)[1] for line in lines if line.startswith("PROBLEM")] == problems
        assert lines.count("  fix         python -m pip install -r requirements.txt") == len(problems)
        assert lines[-1] == f"Not ready: {len(problems)} problem(s) to fix."
    *_, error = python("-c", "import helpers").stderr.rpartition("\nImportError: ")
    assert error.splitlines() == [f"{problem}; python -m pip install -r requirements.txt" for problem in problems]


def test_missing_checkpoint(monkeypatch):
    monkeypatch.setattr("helpers.machine.available_memory", lambda device: 1_000_000)
    report = helpers.doctor("/no/such/folder")
    assert report.problems == (("There is no folder /no/such/folder", "check the path, or leave checkpoint out."),)
    assert list(facts(report))[-2:] == ["device", "memory"]  # nothing that depends on the size of the model


def test_half_downloaded_checkpoint(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    cached = tmp_path / f"models--{helpers.OFFICIAL.replace('/', '--')}"
    snapshot = cached / "snapshots" / OFFICIAL_REVISION
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text('{"model_type": "phi3_v"}')
    problem, fix = helpers.doctor(helpers.OFFICIAL).problems[0]
    assert "lacks model.safetensors" in problem
    assert "adds what is missing" in fix


def test_changed_checkpoint(folder):
    (folder / "SHA256SUMS").write_text(f"{'0' * 64}  config.json\n")
    report = helpers.doctor(folder)
    assert not report.ok
    assert "config.json has changed" in report.problems[0][0]


def test_official_weights_not_downloaded(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("helpers.machine.available_memory", lambda device: 64_000_000_000)
    report = helpers.doctor(helpers.OFFICIAL)
    assert report.ok
    assert "not downloaded yet (8.3 GB)" in facts(report)["checkpoint"]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    ((problem, fix),) = helpers.doctor(helpers.OFFICIAL).problems
    assert "is not on this machine" in problem
    assert fix.startswith("connect to the internet")


def test_another_name_on_the_hub_not_downloaded(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    report = helpers.doctor("someone/phi-3-vision")
    assert report.ok
    assert facts(report)["checkpoint"] == "someone/phi-3-vision, not downloaded yet"
    assert list(facts(report))[-1] == "memory"


@pytest.mark.parametrize(("dtype", "gigabytes"), [(torch.float32, "4.46"), (torch.bfloat16, "4.25")])
def test_8_bits_on_a_cpu(monkeypatch, tmp_path, dtype, gigabytes):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(doctor_module, "choose_device", lambda: Choice(torch.device("cpu"), "a test"))
    monkeypatch.setattr(doctor_module, "choose_dtype", lambda device, parameters: Choice(dtype, "a test"))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    found = facts(helpers.doctor(helpers.OFFICIAL))["quantization"]
    assert found == f"int8 (faster, and the least memory), {gigabytes} GB of weights"


def test_weights_that_do_not_fit(monkeypatch, golden_checkpoint):
    monkeypatch.setattr("helpers.machine.available_memory", lambda device: 1_000_000)
    report = helpers.doctor(golden_checkpoint)
    assert not report.ok
    (problem,) = report.problems
    assert "GB in float32" in problem[0]
    assert 'quantization="int8"' in problem[1]


def test_sanitised_report_tells_nothing_of_the_machine(golden_checkpoint):
    """tests/nbval_sanitize.cfg leaves only what is the same on every machine."""
    config = configparser.RawConfigParser()
    config.read(Path(__file__).with_name("nbval_sanitize.cfg"), encoding="utf-8")
    text = str(helpers.doctor(golden_checkpoint))
    for section in config.sections():
        text = re.sub(config[section]["regex"], config[section]["replace"], text)
    lines = text.splitlines()
    assert len(lines) == 13
    kept = [line for line in lines if not line.endswith("of this machine")]
    assert [line.split()[0] for line in kept] == ["checkpoint", "Ready."]
