import json
import random

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from phi3_v_data import write_sums

import helpers
from helpers import CheckpointError, checkpoints, load_model_and_processor, machine


def test_environment_variable_names_the_checkpoint(folder, monkeypatch):
    monkeypatch.setenv("PHI3_VISION_CHECKPOINT", str(folder))
    assert checkpoints.find_checkpoint() == folder
    assert checkpoints.find_checkpoint(helpers.POCKET.parent.parent / "tests/golden/checkpoint") != folder


def test_bundled_checkpoint_is_the_default():
    assert checkpoints.find_checkpoint() == helpers.POCKET
    assert checkpoints.verify_checksums(helpers.POCKET)
    model, _ = load_model_and_processor(device="cpu")
    assert model.dtype == torch.float32


def test_missing_bundled_checkpoint(monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoints, "POCKET", tmp_path / "phi-3-vision-pocket")
    with pytest.raises(CheckpointError, match=r"bundled checkpoint .* is missing; clone"):
        load_model_and_processor()


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "a b", "../x/y"])
def test_missing_folder(name):
    with pytest.raises(CheckpointError, match="no folder"):
        load_model_and_processor(name)


def test_folder_without_config(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_model_and_processor(tmp_path)


@pytest.mark.parametrize("local_files_only", [True, False])
def test_official_weights_offline(local_files_only, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(machine, "available_memory", lambda device: 64_000_000_000)
    tried = "asked" if local_files_only else "reached"
    with pytest.raises(CheckpointError, match=f"not on this machine and the hub was not {tried}"):
        load_model_and_processor(helpers.OFFICIAL, device="cpu", quantization="int8", local_files_only=local_files_only)


@pytest.mark.parametrize(
    ("name", "asked", "used"),
    [
        (helpers.OFFICIAL, None, checkpoints.OFFICIAL_REVISION),
        (helpers.OFFICIAL, "main", "main"),
        ("someone/model", None, None),
        ("someone/model", "v1", "v1"),
    ],
)
def test_what_is_downloaded(golden_checkpoint, monkeypatch, name, asked, used):
    """The official weights at the commit that was tested, and nothing that could hold code."""
    calls = []

    def download(*args, **kwargs):
        calls.append((args, kwargs))
        return golden_checkpoint

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert checkpoints.find_checkpoint(name, revision=asked, local_files_only=True) == golden_checkpoint
    patterns = ["*.json", "*.safetensors"]
    assert calls == [((name,), {"revision": used, "allow_patterns": patterns, "local_files_only": True})]


def test_half_downloaded_and_offline(monkeypatch):
    def fail(*args, **kwargs):
        error = LocalEntryNotFoundError("The cached snapshot is incomplete")
        error.snapshot_path = "snapshots/0"
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(CheckpointError, match=r"only half downloaded .*; connect to the internet") as caught:
        checkpoints.find_checkpoint(helpers.OFFICIAL)
    assert not isinstance(caught.value, checkpoints.NotDownloadedError)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("model.safetensors", "download it again.*only safetensors"),
        ("tokenizer.json", "download"),
        ("preprocessor_config.json", "download"),
    ],
)
def test_incomplete_folder(folder, missing, message):
    (folder / missing).unlink()
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(CheckpointError, match=message):
        load_model_and_processor(folder, device="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llava"}, "a model of type llava, not phi3_v"),
        ({"hidden_size": 32}, "cannot be loaded as a Phi-3-vision checkpoint"),
        ({"intermediate_size": 100}, "cannot be loaded as a Phi-3-vision checkpoint"),
    ],
)
def test_config_of_another_model(folder, change, message):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | change))
    write_sums(folder)
    with pytest.raises(CheckpointError, match=message):
        load_model_and_processor(folder, device="cpu")


def test_every_changed_byte_is_found(folder):
    rng = random.Random(0)
    assert checkpoints.verify_checksums(folder)
    for file in sorted(folder.iterdir()):
        data = bytearray(file.read_bytes())
        for place in {0, len(data) - 1, *(rng.randrange(len(data)) for _ in range(6))}:
            changed = bytearray(data)
            changed[place] ^= 1 << rng.randrange(8)
            file.write_bytes(changed)
            with pytest.raises(CheckpointError, match=r"changed|damaged|missing") as caught:
                checkpoints.verify_checksums(folder)
            assert folder.name in str(caught.value)
        file.write_bytes(data)


def test_loading_checks_the_hashes_and_names_the_file(folder):
    (folder / "generation_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"generation_config\.json has changed"):
        load_model_and_processor(folder)


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "added_tokens.json", "chat_template.jinja"])
def test_a_file_that_is_not_listed_is_not_used(folder, name):
    (folder / name).write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=rf"{name} is not listed in SHA256SUMS; remove it"):
        load_model_and_processor(folder)


def test_missing_weights_are_not_made_up(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "layers.1.mlp.down_proj" in name)
    save_file({key: weight for key, weight in weights.items() if key != name}, folder / "model.safetensors")
    write_sums(folder)
    with pytest.raises(CheckpointError, match=f"1 weights are missing, the first is {name}"):
        load_model_and_processor(folder, device="cpu")


def test_damaged_weights_without_sums(folder):
    (folder / "SHA256SUMS").unlink()
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        load_model_and_processor(folder)


def test_parameters_are_counted_over_shards(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    assert checkpoints.count_parameters(folder) == sum(tensor.numel() for tensor in weights.values()) == 995_872
    names = sorted(weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: weights[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    assert checkpoints.count_parameters(folder) == 995_872
    (folder / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks b\.safetensors"):
        checkpoints.count_parameters(folder)
