import configparser
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

import helpers

doctor_module = sys.modules["helpers.doctor"]


def facts(report) -> dict:
    return dict(report.facts)


def test_a_sound_machine(golden_checkpoint):
    report = helpers.doctor(golden_checkpoint)
    assert report.ok
    assert report.problems == ()
    names = "python transformers torch pillow helpers checkpoint device memory dtype attention faster".split()
    assert list(facts(report)) == names
    assert "1.0 M parameters" in facts(report)["checkpoint"]
    assert str(report).splitlines()[-1] == "Ready."
    assert repr(report) == str(report)


def test_the_bundled_checkpoint(pocket):
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
    monkeypatch.setattr(doctor_module, "version", lambda name: "5.24.0" if name == "transformers" else real(name))
    report = helpers.doctor(golden_checkpoint)
    assert report.ok
    assert "newer than the tested" in facts(report)["transformers"]


def test_missing_package(monkeypatch, golden_checkpoint):
    def version(name):
        raise doctor_module.PackageNotFoundError(name)

    monkeypatch.setattr(doctor_module, "version", version)
    assert "torch is not installed" in str(helpers.doctor(golden_checkpoint))


def test_missing_checkpoint():
    report = helpers.doctor("/no/such/folder")
    assert not report.ok
    assert "There is no folder /no/such/folder" in report.problems[0][0]
    assert report.problems[0][1]


def test_changed_checkpoint(golden_checkpoint, tmp_path):
    shutil.copytree(golden_checkpoint, tmp_path / "copy")
    (tmp_path / "copy" / "SHA256SUMS").write_text(f"{'0' * 64}  config.json\n")
    report = helpers.doctor(tmp_path / "copy")
    assert not report.ok
    assert "config.json has changed" in report.problems[0][0]


def test_official_weights_not_downloaded(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("helpers.machine.available_memory", lambda device: 64_000_000_000)
    report = helpers.doctor(helpers.OFFICIAL)
    assert report.ok
    assert "not downloaded yet (8.3 GB)" in facts(report)["checkpoint"]
    if not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        assert 'quantization="int8"' in facts(report)["faster"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not helpers.doctor(helpers.OFFICIAL).ok


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
    assert len(lines) == 12
    kept = [line for line in lines if not line.endswith("of this machine")]
    assert [line.split()[0] for line in kept] == ["checkpoint", "Ready."]
