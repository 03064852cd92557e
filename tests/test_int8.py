"""int8 on the CPU: how near its products are, what it leaves alone, and that answers stay the same."""

import gc
import os
import platform
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from phi3_v_data import tiny_model
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

import helpers
from helpers import int8_kernels
from helpers.int8 import PIECE, Int8Config, Int8Linear, MLPInPieces, in_8_bits, quantize
from helpers.int8_kernels import FEW, by_fbgemm, by_float, by_onednn, kernel_of_this_cpu
from helpers.phi3_v import Phi3VForCausalLM

COVER = Path(__file__).parent.parent / "notebooks" / "images" / "book_cover.png"
X86 = platform.machine() in ("x86_64", "AMD64")
QUESTION = "Help me get the title and author information of this book?"


def int8_of(linear: nn.Linear) -> Int8Linear:
    layer = Int8Linear(linear.in_features, linear.out_features, linear.bias is not None).requires_grad_(False)
    values, scale = quantize(linear.weight.detach())
    layer.weight, layer.weight_scale = (nn.Parameter(part, requires_grad=False) for part in (values, scale))
    layer.bias = linear.bias
    layer.pack()
    return layer


@pytest.fixture(scope="module")
def layers():
    torch.manual_seed(0)
    linear = nn.Linear(768, 96).requires_grad_(False)
    return linear, int8_of(linear)


def errors(layers, x: torch.Tensor) -> torch.Tensor:
    """The relative error of each row."""
    linear, layer = layers
    exact = linear(x)
    return (layer(x) - exact).norm(dim=-1) / (exact - linear.bias).norm(dim=-1).clamp_min(1e-30)


@pytest.mark.parametrize("where", ["meta", torch.bfloat16])
def test_packed_weights_cannot_be_moved(where):
    layer = int8_of(nn.Linear(64, 32).requires_grad_(False))
    assert layer.to("cpu") is layer
    with pytest.raises(RuntimeError, match="load it again"):
        nn.Sequential(layer).to(where)
    assert layer(torch.ones(1, 64)).dtype == torch.float32


def test_ordinary_rows(layers):
    assert errors(layers, torch.randn(200, 768)).max() < 0.025


@pytest.mark.parametrize("size", [1e-20, 1e-6, 1e6, 1e20])
def test_rows_of_any_size(size):
    layer = int8_of(nn.Linear(768, 96, bias=False).requires_grad_(False))
    x = torch.randn(20, 768)
    torch.testing.assert_close(layer(x * size) / size, layer(x), rtol=0.01, atol=0.03)


@pytest.mark.parametrize("outlier", [30.0, 1e3, 1e6])
def test_a_row_with_an_outlier_keeps_its_other_values(layers, outlier):
    linear, layer = layers
    x = torch.randn(2 * FEW, 768)
    x[:, 5] = outlier
    rest = x.clone()
    rest[:, 5] = 0  # without the outlier's own share, which is exact up to the rounding of its weights
    share = outlier * quantize(linear.weight)[0][:, 5] * quantize(linear.weight)[1]
    error = (layer(x) - layer.bias - share - (linear(rest) - linear.bias)).norm(dim=1)
    assert (error / (linear(rest) - linear.bias).norm(dim=1)).max() < max(0.03, 2e-6 * outlier)


def test_rows_do_not_depend_on_each_other(layers):
    _, layer = layers
    x = torch.randn(4 * FEW, 768)
    x[4, 3] = 1e4
    halves = torch.cat([layer(half) for half in x.chunk(2)])
    torch.testing.assert_close(layer(x), halves)


@pytest.mark.parametrize("kernel", [(by_onednn, 63), (by_fbgemm, 63), (by_float, 127)])
@pytest.mark.parametrize("rows", [1, 2, FEW, FEW + 1, 100])
def test_the_kernels_of_other_cpus(layers, monkeypatch, kernel, rows):
    if kernel[0] is not by_float and not X86:
        pytest.skip("it is for x86")
    monkeypatch.setattr("helpers.int8.kernel_of_this_cpu", lambda: kernel)
    linear, _ = layers
    assert errors((linear, int8_of(linear)), torch.randn(rows, 768)).max() < 0.025


@pytest.mark.parametrize("rows", [1, FEW, FEW + 1])
def test_a_width_that_is_no_multiple_of_16(monkeypatch, rows):
    """PyTorch's product for a few rows ends the process there."""
    monkeypatch.setattr("helpers.int8.kernel_of_this_cpu", lambda: (by_float, 127))
    linear = nn.Linear(40, 96).requires_grad_(False)
    assert errors((linear, int8_of(linear)), torch.randn(rows, 40)).max() < 0.025


@pytest.mark.skipif(not X86, reason="both are for x86")
@pytest.mark.parametrize("kernel", [by_onednn, by_fbgemm])
@pytest.mark.parametrize("largest", [4.0, 100.0])
def test_the_row_of_a_new_token_keeps_more_than_8_bits(layers, monkeypatch, kernel, largest):
    """Only the error from rounding the weights is left."""
    monkeypatch.setattr("helpers.int8.kernel_of_this_cpu", lambda: (kernel, 63))
    linear, _ = layers
    (values, scale), x = quantize(linear.weight), torch.randn(1, 768)
    x[0, 3] = largest
    exact = x @ (values * scale[:, None]).t() + linear.bias
    assert (int8_of(linear)(x) - exact).norm() / exact.norm() < 1e-3


def test_rows_of_zeros_are_no_outliers():
    passes = []
    in_8_bits(lambda rows: passes.append(rows) or torch.zeros(len(rows), 3), torch.zeros(40, 768))
    (rows,) = passes
    assert torch.equal(rows, torch.zeros(40, 768))


def test_a_layer_is_freed_with_its_last_reference(layers):
    """Without waiting for the garbage collector: in the official model it is gigabytes."""
    gc.disable()
    try:
        layer = int8_of(layers[0])
        gone = weakref.ref(layer)
        del layer
        assert gone() is None
    finally:
        gc.enable()


def test_torchs_default_dtype_does_not_matter(layers):
    kernel_of_this_cpu.cache_clear()
    torch.set_default_dtype(torch.bfloat16)
    try:
        y = int8_of(layers[0])(torch.ones(20, 768, dtype=torch.float32))
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(y, layers[1](torch.ones(20, 768)))


def test_zeros_shapes_and_dtypes(layers):
    linear, layer = layers
    assert torch.equal(layer(torch.zeros(2, 768)), linear.bias.expand(2, -1))
    assert layer(torch.randn(2, 3, 768)).shape == (2, 3, 96)
    assert layer(torch.zeros(0, 768)).shape == (0, 96)
    x = torch.randn(4, 768, dtype=torch.bfloat16)
    torch.testing.assert_close(layer(x), layer(x.float()).bfloat16(), rtol=0, atol=0)


def exact_up_to(limit: int):
    return lambda weight, scale: lambda rows: rows @ weight.clamp(-limit, limit).float().t() * scale


@pytest.mark.parametrize(("onednn", "fbgemm", "chosen"), [(127, 63, "onednn"), (63, 63, "fbgemm"), (0, 0, "float")])
def test_a_kernel_is_chosen_for_what_it_gets_right(monkeypatch, onednn, fbgemm, chosen):
    """All 8 bits, as with any kind of VNNI, before 7."""
    monkeypatch.setattr(int8_kernels, "by_onednn", exact_up_to(onednn))
    monkeypatch.setattr(int8_kernels, "by_fbgemm", exact_up_to(fbgemm))
    kernel, limit = kernel_of_this_cpu.__wrapped__()
    assert kernel is getattr(int8_kernels, f"by_{chosen}")
    assert limit == {"onednn": onednn, "fbgemm": fbgemm, "float": 127}[chosen]


def missing(*arguments):
    raise AttributeError


WRONG = {
    "for negative rows": lambda weight, scale: lambda rows: rows.clamp(min=0) @ weight.float().t() * scale,
    "in one column": lambda weight, scale: lambda rows: rows @ weight.float().t() * scale * (torch.arange(16) > 0),
    "in the last of many rows": lambda weight, scale: (
        lambda rows: torch.cat([rows[:FEW] @ weight.float().t() * scale, torch.zeros(len(rows[FEW:]), 16)])
    ),
    "missing": missing,
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_kernel_that_is_wrong_anywhere_is_passed_over(monkeypatch, wrong):
    for name in ("by_onednn", "by_fbgemm"):
        monkeypatch.setattr(int8_kernels, name, WRONG[wrong])
    assert kernel_of_this_cpu.__wrapped__() == (by_float, 127)


def test_weights_use_all_that_the_cpu_gets_right():
    values, _ = quantize(torch.randn(32, 64))
    assert values.dtype == torch.int8
    assert values.abs().amax(1).tolist() == [kernel_of_this_cpu()[1]] * 32


@pytest.fixture(scope="module")
def exact():
    return helpers.load_model_and_processor(helpers.POCKET, device="cpu")


@pytest.fixture(scope="module")
def rounded():
    return helpers.load_model_and_processor(helpers.POCKET, device="cpu", quantization="int8")


def test_every_linear_layer(rounded):
    model, _ = rounded
    layers = [module for module in model.modules() if isinstance(module, Int8Linear)]
    assert not any(isinstance(module, nn.Linear) for module in model.modules())
    assert len(layers) == 4 * model.config.num_hidden_layers + 6 * len(model.vision_tower.encoder.layers) + 3
    assert {layer.weight for layer in layers} == {None}  # packed, not kept twice
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("where", ["meta", torch.bfloat16])
def test_a_model_that_cannot_be_moved_is_left_whole(rounded, where):
    model, _ = rounded
    before = {name: (parameter.device, parameter.dtype) for name, parameter in model.named_parameters()}
    for part in (model, model.model):
        with pytest.raises(RuntimeError, match="load it again"):
            part.to(where)
    assert {name: (parameter.device, parameter.dtype) for name, parameter in model.named_parameters()} == before


def test_other_models_keep_their_own_layers(tmp_path):
    """Only Phi-3's feed-forward layers go in pieces; this tower has none, nor `layers`."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    tower = CLIPVisionModel(CLIPVisionConfig(image_size=28, patch_size=14, **sizes)).eval()
    tower.save_pretrained(tmp_path)
    picture = torch.randn(1, 3, 28, 28)
    with torch.no_grad():
        exact = tower(picture).last_hidden_state
        rounded = CLIPVisionModel.from_pretrained(tmp_path, quantization_config=Int8Config())(picture).last_hidden_state
    assert (rounded - exact).norm() < 0.05 * exact.norm()


def test_a_head_that_is_the_embedding_keeps_its_weight(tmp_path):
    tiny_model(tie_word_embeddings=True).save_pretrained(tmp_path)
    rounded = Phi3VForCausalLM.from_pretrained(tmp_path, quantization_config=Int8Config())
    assert rounded.lm_head.weight is rounded.get_input_embeddings().weight
    assert isinstance(rounded.model.layers[0].mlp.down_proj, Int8Linear)


def test_a_long_prompt_goes_through_the_mlp_in_pieces(rounded):
    model, _ = rounded
    layer = model.model.layers[0].mlp
    x = torch.randn(2, 2 * PIECE + 50, model.config.hidden_size)
    lengths = []
    hook = layer.down_proj.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    try:
        y = layer(x)
    finally:
        hook.remove()
    assert isinstance(layer, MLPInPieces)
    assert lengths == [PIECE, PIECE, 50]
    torch.testing.assert_close(y, super(MLPInPieces, layer).forward(x))


def test_logits_stay_near(exact, rounded):
    inputs = exact[1](helpers.format_prompt(QUESTION), helpers.load_image(COVER), return_tensors="pt")
    with torch.no_grad():
        far, near = (model(**inputs).logits[0, -20:] for model, _ in (exact, rounded))
    assert (near - far).norm() / far.norm() < 0.1


def test_the_answer_stays_the_same(exact, rounded):
    assert helpers.generate(*rounded, QUESTION, COVER) == helpers.generate(*exact, QUESTION, COVER)


def test_a_cpu_without_vnni():
    """oneDNN can be told to do without; other processors ignore the variable, and then it is the test above."""
    code = (
        "import helpers\n"
        "loaded = helpers.load_model_and_processor(helpers.POCKET, device='cpu', quantization='int8')\n"
        f"print(helpers.generate(*loaded, 'Who wrote this book?', {str(COVER)!r}))"
    )
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert "Morgan Maxwell" in done.stdout, done.stderr


def test_it_is_not_saved_by_mistake(rounded, tmp_path):
    with pytest.raises(ValueError, match="serializable"):
        rounded[0].save_pretrained(tmp_path)
