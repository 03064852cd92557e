import hashlib
import json
import random
import shutil
from importlib.util import find_spec

import pytest
import torch

import helpers
import helpers.loading as loading
from helpers import CheckpointError, load_model_and_processor


@pytest.fixture
def folder(golden_checkpoint, tmp_path):
    """A copy of the tiny checkpoint with its SHA256SUMS."""
    copy = tmp_path / "checkpoint"
    shutil.copytree(golden_checkpoint, copy)
    for file in copy.iterdir():
        file.chmod(0o644)
    write_sums(copy)
    return copy


def write_sums(folder):
    lines = [
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n"
        for file in sorted(folder.iterdir())
        if file.name != "SHA256SUMS"
    ]
    (folder / "SHA256SUMS").write_text("".join(lines), newline="\n")


def test_defaults_on_this_machine(folder, capfd):
    model, processor = load_model_and_processor(folder, device="cpu")
    assert type(model).__name__ == "Phi3VForCausalLM"
    assert type(processor).__name__ == "Phi3VProcessor"
    assert not model.training
    assert (model.device.type, model.dtype) == ("cpu", torch.float32)
    assert model.config._attn_implementation == "sdpa"
    assert processor.image_processor.num_crops == 16
    assert capfd.readouterr() == ("", "")  # nothing for a notebook to store


def test_settings(folder):
    model, processor = load_model_and_processor(
        str(folder), device="cpu", dtype=torch.bfloat16, attn_implementation="eager", num_crops=2
    )
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"
    assert processor.image_processor.num_crops == 2


def test_progress_bar_setting_is_restored(folder):
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled()
    load_model_and_processor(folder, device="cpu")
    assert logging.is_progress_bar_enabled() is before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_crops": 0}, "num_crops is 0"),
        ({"attn_implementation": "someone/kernel"}, "attn_implementation is 'someone/kernel'"),
        ({"quantization": "int2"}, "quantization is 'int2'"),
    ],
)
def test_impossible_settings(folder, settings, message):
    with pytest.raises(ValueError, match=message):
        load_model_and_processor(folder, device="cpu", **settings)


@pytest.mark.parametrize(("device", "quantization"), [("cpu", "int4"), ("mps", "int8")])
def test_quantization_needs_cuda(folder, device, quantization):
    with pytest.raises(RuntimeError, match=r"needs a CUDA GPU and `pip install bitsandbytes accelerate`"):
        load_model_and_processor(folder, device=device, quantization=quantization)


# Which checkpoint


def test_environment_variable_names_the_checkpoint(folder, monkeypatch):
    monkeypatch.setenv("PHI3_VISION_CHECKPOINT", str(folder))
    assert loading.find_checkpoint() == folder
    assert loading.find_checkpoint(helpers.POCKET.parent.parent / "tests/golden/checkpoint") != folder


def test_bundled_checkpoint_is_the_default(pocket):
    assert loading.find_checkpoint() == pocket
    assert loading.verify_checksums(pocket)
    model, _ = load_model_and_processor(device="cpu")
    assert model.dtype == torch.float32


def test_missing_bundled_checkpoint(monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "POCKET", tmp_path / "phi-3-vision-pocket")
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
    with pytest.raises(CheckpointError, match="not on this machine and the hub was not reached"):
        load_model_and_processor(helpers.OFFICIAL, local_files_only=local_files_only)


@pytest.mark.parametrize("missing", ["model.safetensors", "tokenizer.json", "preprocessor_config.json"])
def test_incomplete_folder(folder, missing):
    (folder / missing).unlink()
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(CheckpointError, match="download"):
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
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    write_sums(folder)
    with pytest.raises(CheckpointError, match=message):
        load_model_and_processor(folder, device="cpu")


# Integrity and safety


def test_every_changed_byte_is_found(folder):
    rng = random.Random(0)
    assert loading.verify_checksums(folder)
    for file in sorted(folder.iterdir()):
        data = bytearray(file.read_bytes())
        for place in {0, len(data) - 1, *(rng.randrange(len(data)) for _ in range(6))}:
            changed = bytearray(data)
            changed[place] ^= 1 << rng.randrange(8)
            file.write_bytes(changed)
            with pytest.raises(CheckpointError, match=r"changed|damaged|missing") as caught:
                loading.verify_checksums(folder)
            assert folder.name in str(caught.value)
        file.write_bytes(data)


def test_loading_checks_the_hashes_and_names_the_file(folder):
    (folder / "generation_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"generation_config\.json has changed"):
        load_model_and_processor(folder)


def test_damaged_weights_without_sums(folder):
    (folder / "SHA256SUMS").unlink()
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        load_model_and_processor(folder)


def test_no_code_and_no_pickle_from_a_folder(folder):
    """Code files that the config points to are never imported, and a pickle is never opened."""
    canary = folder / "canary"
    code = f"open({str(canary)!r}, 'w').close()\n"
    for name in ("configuration_phi3_v", "modeling_phi3_v", "processing_phi3_v", "image_processing_phi3_v"):
        (folder / f"{name}.py").write_text(code)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code)
    (folder / "pytorch_model.bin").write_bytes(f"cbuiltins\nexec\n(S{code!r}\ntR.".encode())
    for name in ("preprocessor_config.json", "tokenizer_config.json"):
        settings = json.loads((folder / name).read_text())
        auto = {
            "AutoProcessor": "processing_phi3_v.P",
            "AutoImageProcessor": "image_processing_phi3_v.P",
            "AutoTokenizer": ["processing_phi3_v.P", None],
        }
        (folder / name).write_text(json.dumps(settings | {"auto_map": auto}))
    (folder / "SHA256SUMS").unlink()
    model, processor = load_model_and_processor(folder, device="cpu", num_crops=1)
    helpers.generate(model, processor, "Hello", max_new_tokens=1)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="only safetensors"):
        load_model_and_processor(folder)
    assert not canary.exists()


def test_a_flash_attention_config_loads_without_flash_attn(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_attn_implementation": "flash_attention_2"}))
    write_sums(folder)
    assert load_model_and_processor(folder, device="cpu")[0].config._attn_implementation == "sdpa"


# Choices for a machine

BIG = 4_000_000_000


def cpu_with(monkeypatch, **features):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)


def test_dtype_on_cpu(monkeypatch):
    cpu_with(monkeypatch, avx512_f=True)
    assert loading.choose_dtype("cpu", BIG).value == torch.float32
    for unit in ("avx512_bf16", "amx_bf16"):
        cpu_with(monkeypatch, **{unit: True})
        assert loading.choose_dtype("cpu", BIG).value == torch.bfloat16
        assert loading.choose_dtype("cpu", 3_000_000).value == torch.float32


def test_dtype_on_gpus(monkeypatch):
    for has_bf16, dtype in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has_bf16, **kwargs: has)
        assert loading.choose_dtype("cuda", BIG).value == dtype
    assert loading.choose_dtype("mps", BIG).value == torch.float16
    assert loading.choose_dtype("mps", 3_000_000).value == torch.float32


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
    assert loading.choose_attention(device, dtype).value == expected


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_device(monkeypatch, cuda, mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert loading.choose_device().value.type == expected


def test_too_little_memory(folder, monkeypatch):
    monkeypatch.setattr(loading, "available_memory", lambda device: 3_000_000)
    with pytest.raises(RuntimeError, match=r"float32, but cpu has 0\.0 GB free.*bfloat16"):
        load_model_and_processor(folder, device="cpu")
    load_model_and_processor(folder, device="cpu", dtype=torch.bfloat16)  # 2 MB fit
    load_model_and_processor(folder, device="cpu", quantization="int8")  # 1 MB


def test_parameters_are_counted_over_shards(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    assert loading.count_parameters(folder) == sum(tensor.numel() for tensor in weights.values()) == 995_872
    names = sorted(weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: weights[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    assert loading.count_parameters(folder) == 995_872
    (folder / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks b\.safetensors"):
        loading.count_parameters(folder)


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there(golden_checkpoint, device):
    if {"cuda": torch.cuda, "mps": torch.backends.mps}[device].is_available():
        pytest.skip("it is there")
    with pytest.raises(ValueError, match=f"device is {device}.*leave it out"):
        load_model_and_processor(golden_checkpoint, device=device)


def test_dtypes_by_name(golden_checkpoint):
    assert load_model_and_processor(golden_checkpoint, dtype="bfloat16")[0].dtype == torch.bfloat16
    load_model_and_processor(golden_checkpoint, dtype="auto")
    with pytest.raises(ValueError, match="dtype is 'float99'"):
        load_model_and_processor(golden_checkpoint, dtype="float99")


@pytest.mark.skipif(find_spec("flash_attn") is not None, reason="flash-attn is there")
def test_attention_that_is_not_installed(golden_checkpoint):
    with pytest.raises(RuntimeError, match="leave the setting"):
        load_model_and_processor(golden_checkpoint, attn_implementation="flash_attention_2")
