import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from phi3_v_data import write_sums

import helpers
from helpers import CheckpointError, load_model_and_processor, loading, machine
from helpers.checkpoints import OFFICIAL_REVISION
from helpers.int8 import Int8Linear
from helpers.phi3_v import Phi3VForCausalLM


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
        str(folder), device="cpu", dtype=torch.bfloat16, attn_implementation="eager", num_crops=np.int64(2)
    )
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"
    assert processor.image_processor.num_crops == 2
    processor.save_pretrained(folder.parent / "saved")  # as JSON, which has no numbers of NumPy's


@pytest.mark.parametrize("enabled", [True, False])
def test_progress_bar_setting_is_restored(folder, enabled):
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled()
    try:
        (logging.enable_progress_bar if enabled else logging.disable_progress_bar)()
        load_model_and_processor(folder, device="cpu")
        assert logging.is_progress_bar_enabled() is enabled
    finally:
        (logging.enable_progress_bar if before else logging.disable_progress_bar)()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_crops": 0}, "num_crops is 0"),
        ({"num_crops": 2.5}, "num_crops is 2.5"),
        ({"num_crops": "4"}, "num_crops is '4'"),
        ({"device": "gpu"}, "device is 'gpu'"),
        ({"device": 1.5}, "device is 1.5"),
        ({"device": "meta"}, "device is meta, which"),
        ({"device": "vulkan"}, "device is vulkan, which"),
        ({"attn_implementation": "someone/kernel"}, "attn_implementation is 'someone/kernel'"),
        ({"quantization": "int2"}, "quantization is 'int2'"),
        ({"quantization": True}, "quantization is True"),
        ({"dtype": torch.int8}, r"dtype is torch\.int8"),
    ],
)
def test_impossible_settings(folder, settings, message):
    with pytest.raises(ValueError, match=message):
        load_model_and_processor(folder, **{"device": "cpu"} | settings)


@pytest.mark.parametrize(("device", "quantization"), [("cpu", "int4"), ("mps", "int8")])
def test_quantization_needs_cuda(folder, device, quantization):
    with pytest.raises(RuntimeError, match=r"needs a CUDA GPU and `pip install bitsandbytes accelerate`"):
        load_model_and_processor(folder, device=device, quantization=quantization)


def test_a_large_model_is_rounded_on_a_cpu(folder, monkeypatch):
    def rounded(**settings):
        model, _ = load_model_and_processor(folder, device="cpu", **settings)
        return any(isinstance(module, Int8Linear) for module in model.modules())

    assert not rounded()
    assert rounded(quantization="int8")
    monkeypatch.setattr(machine, "SMALL", 1000)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert rounded()
    assert rounded(dtype="auto")
    assert not rounded(quantization=False)
    assert not rounded(dtype="float32")
    assert rounded(dtype="float32", quantization="int8")


def test_a_flash_attention_config_loads_without_flash_attn(folder):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"_attn_implementation": "flash_attention_2"}))
    write_sums(folder)
    assert load_model_and_processor(folder, device="cpu")[0].config._attn_implementation == "sdpa"


def test_too_little_memory(folder, monkeypatch):
    monkeypatch.setattr(machine, "available_memory", lambda device: 3_000_000)
    with pytest.raises(RuntimeError, match=r"float32, but cpu has 0\.0 GB free.*bfloat16"):
        load_model_and_processor(folder, device="cpu")
    load_model_and_processor(folder, device="cpu", dtype=torch.bfloat16)  # 2 MB fit
    load_model_and_processor(folder, device="cpu", quantization="int8")  # 1 MB
    monkeypatch.setattr(machine, "available_memory", lambda device: 1_000_000)
    with pytest.raises(RuntimeError, match=r"int8, but cpu has 0\.0 GB free; close other programs and shut") as caught:
        load_model_and_processor(folder, device="cpu", quantization="int8")
    assert 'int8" (' not in str(caught.value)  # no advice that was taken already


@pytest.mark.parametrize(
    "settings",
    [
        {"dtype": "float99"},
        {"num_crops": 0},
        {"attn_implementation": "fast"},
        {"quantization": "int2"},
        {"quantization": "int4"},
        {"compile": True},
        {},  # too little memory
    ],
)
def test_impossible_settings_are_refused_before_a_download(monkeypatch, settings):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **kwargs: pytest.fail("downloaded"))
    monkeypatch.setattr(machine, "available_memory", lambda device: 2_000_000_000)
    with pytest.raises((ValueError, RuntimeError)):
        load_model_and_processor(helpers.OFFICIAL, device="cpu", **settings)


def test_the_official_revision_is_pinned(golden_checkpoint, monkeypatch):
    asked = []

    def download(name, revision, allow_patterns, **kwargs):
        asked.append(revision)
        assert set(allow_patterns) == {"*.json", "*.safetensors"}
        return str(golden_checkpoint)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr(machine, "available_memory", lambda device: 64_000_000_000)
    for name, revision in ((helpers.OFFICIAL, None), (helpers.OFFICIAL, "main"), ("someone/phi-3-vision", None)):
        load_model_and_processor(name, revision=revision, device="cpu")
    assert asked == [OFFICIAL_REVISION, "main", None]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("MPS backend out of memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        MemoryError(),
    ],
)
def test_out_of_memory(golden_checkpoint, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(Phi3VForCausalLM, "from_pretrained", fail)
    with pytest.raises(RuntimeError, match=r'cpu ran out of memory while loading; .*quantization="int8"') as caught:
        load_model_and_processor(golden_checkpoint, device="cpu")
    assert caught.value.__context__ is None  # whose traceback would keep the weights


def test_a_wrong_setting_is_not_called_damage(golden_checkpoint):
    with pytest.raises(CheckpointError, match=r"Unknown quantization type.*; check the settings") as caught:
        load_model_and_processor(golden_checkpoint, device="cpu", quantization={"quant_method": "nothing"})
    assert "download" not in str(caught.value)


def test_the_config_for_bitsandbytes():
    gpu, dtype = torch.device("cuda"), torch.bfloat16
    assert loading._quantization_config("int8", gpu, dtype).load_in_8bit
    four = loading._quantization_config("int4", gpu, dtype)
    assert four.load_in_4bit
    assert four.bnb_4bit_compute_dtype == dtype


@pytest.mark.parametrize("device", ["cuda", "cuda:64", "mps"])
def test_a_device_that_is_not_there(golden_checkpoint, device):
    if machine.choose_device().value.type == device:
        pytest.skip("it is there")
    with pytest.raises(ValueError, match=f"device is {device}.*leave it out"):
        load_model_and_processor(golden_checkpoint, device=device)


def test_a_second_gpu_where_there_is_one(golden_checkpoint, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"device is cuda:1.*leave it out"):
        load_model_and_processor(golden_checkpoint, device="cuda:1")


def test_dtypes_by_name(golden_checkpoint):
    assert load_model_and_processor(golden_checkpoint, dtype="bfloat16")[0].dtype == torch.bfloat16
    load_model_and_processor(golden_checkpoint, dtype="auto")
    with pytest.raises(ValueError, match="dtype is 'float99'"):
        load_model_and_processor(golden_checkpoint, dtype="float99")


@pytest.mark.skipif(find_spec("flash_attn") is not None, reason="flash-attn is there")
def test_attention_that_is_not_installed(golden_checkpoint):
    with pytest.raises(RuntimeError, match="leave out the setting"):
        load_model_and_processor(golden_checkpoint, attn_implementation="flash_attention_2")
