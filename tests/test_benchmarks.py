"""benchmarks/: the ratios that the README and 09_speed show, and that the compared code gives the same results."""

import argparse
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from phi3_v_data import noise_image, tiny_model
from PIL import Image

from benchmarks.compare import report, speeds
from benchmarks.cuda import all_tiles, floors, longer
from benchmarks.int4 import Int4Linear
from benchmarks.preprocessing import original
from helpers.cache import GrowingLayer
from helpers.phi3_v import Phi3VImageProcessor
from helpers.phi3_v.modeling_phi3_v import CACHE

RUNS = {
    "int8": [{"prefill": 2.0, "token": 0.3}, {"prefill": 90.0, "token": 0.1}, {"prefill": 1.0, "token": 0.2}],
    "other": [{"prefill": 8.0, "token": 0.1}, {"prefill": 8.0, "token": 0.1}, {"prefill": 1.0, "token": 9.0}],
}
ROOT = Path(__file__).resolve().parent.parent
README, DETAILS = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "benchmarks/README.md"))


def measured(name: str) -> list[dict]:
    lines = (ROOT / "benchmarks" / "results" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_each_script_is_described():
    scripts = [file.stem for file in (ROOT / "benchmarks").glob("*.py") if "__main__" in file.read_text("utf-8")]
    assert len(scripts) == 10
    assert [name for name in scripts if f"`python -m benchmarks.{name}`" not in DETAILS] == []


def test_the_tables_of_the_cpu_say_what_was_measured():
    names = ("with AVX512_BF16", "AVX512 with VNNI", "AVX2", "AVX512 with VNNI, 4:3")
    for name, line in zip(names, measured("cpu"), strict=True):
        assert line["capability"] == name.removeprefix("with ")[: len(line["capability"])]
        int8, float32 = line["speed"]["int8"], line["speed"]["float32"]
        row = [f"{int8[part]:.1f} ({float32[part]:.1f})" for part in ("tower", "prefill", "first token", "token")]
        assert f"| {name} | {' | '.join(row)} |" in DETAILS


@pytest.mark.parametrize(
    ("form", "row"),
    [
        ("original", "the original code's way"),
        ("sdpa", "the loader's"),
        ("compiled", "with `compile"),
        ("floor", "an estimate"),
    ],
)
def test_the_table_of_the_gpu_says_what_was_measured(form, row):
    *_, line = measured("cuda")
    first = " · ".join(f"{1000 * line['seconds'][form][f'first token {ratio}']:.0f}" for ratio in ("4:3", "16:9"))
    (found,) = (text for text in DETAILS.splitlines() if text.startswith(f"| {row}"))
    times = sorted(1000 * line["seconds"][form][f"token {ratio}"] for ratio in ("4:3", "16:9"))
    token = " to ".join(dict.fromkeys(f"{time:.0f}" if time > 10 else f"{time:.1f}" for time in times))
    assert f"| {first} | {token} |" in found
    if form in line["more"]:
        assert f"{line['more'][form]['peak GB']:.1f} GB" in DETAILS


@pytest.mark.parametrize(
    ("form", "row"),
    [
        ("int8", "8 bits here"),
        ("torchao int8", "torchao, 8 bits, weights only"),
        ("torchao int8, dynamic", "torchao, 8 bits, activations too"),
        ("bitsandbytes int8", "bitsandbytes, 8 bits"),
        ("bitsandbytes int4", "bitsandbytes, 4 bits"),
    ],
)
def test_the_table_of_the_quantizers_says_what_was_measured(form, row):
    (line,) = measured("quantizers")
    speed = line["speed"][form]
    assert f"| {row} | {speed['prefill']:.2f} | {speed['token']:.2f} | {line['error'][form]:.2f} |" in DETAILS


#: Whose two runs each pair of lines holds.
MACHINES = {
    "openvino": ("AVX512_BF16", "AVX2", "AVX512 with VNNI"),
    "onnxruntime": ("AVX512_BF16", "AVX512 with VNNI"),
    "int4": ("AVX2", "AVX512 with VNNI"),
}


@pytest.mark.parametrize(
    ("name", "form", "row"),
    [
        ("openvino", "OpenVINO int8", "OpenVINO, 8 bits"),
        ("openvino", "OpenVINO int4", "OpenVINO, 4 bits"),
        ("onnxruntime", "ONNX Runtime int4", "ONNX Runtime GenAI, 4 bits"),
        ("int4", "PyTorch int4", "PyTorch, 4 bits"),
    ],
)
def test_the_table_of_other_programs_says_what_was_measured(name, form, row):
    (line,) = (line for line in DETAILS.splitlines() if line.startswith(f"| {row} |"))
    cells = dict(zip(("AVX2", "AVX512 with VNNI", "AVX512_BF16"), line.split("|")[2:5]))
    runs = measured(name)
    for machine, pair in zip(MACHINES[name], zip(runs[::2], runs[1::2]), strict=True):
        for cell, part in zip(cells.pop(machine).split("·"), ("prefill", "token"), strict=True):
            said = [float(number) for number in re.findall(r"[\d.]+", cell)]
            seen = [run["speed"][form][part] for run in pair]
            assert (min(said), max(said)) == pytest.approx((min(seen), max(seen)), abs=0.051)
    assert not "".join(cells.values()).strip()


def test_the_readme_says_what_was_measured():
    speed = [line["speed"] for line in measured("cpu")]
    low_high = {
        part: " to ".join(
            f"{end([row['int8'][part] / row['float32'][part] for row in speed]):.1f}" for end in (min, max)
        )
        for part in ("first token", "token")
    }
    *_, line = measured("cuda")
    sdpa, compiled = (1000 * line["seconds"][form]["token 16:9"] for form in ("sdpa", "compiled"))
    text = " ".join(README.split())
    assert f"first token {low_high['first token']} times as fast" in text
    assert f"each further one {low_high['token']} times" in text
    assert f"a further token takes {compiled:.1f} ms instead of {sdpa:.0f}" in text


def test_a_longer_question_shows_the_same_picture():
    inputs = {"input_ids": torch.tensor([[5, 9, 9, 7]]), "pixel_values": torch.ones(1)}
    asked = longer(inputs, 3)
    assert asked["input_ids"].tolist() == [[5, 9, 9, 7, 7, 7, 7]]
    assert asked["attention_mask"].shape == (1, 7)
    assert asked["pixel_values"] is inputs["pixel_values"]
    assert longer(inputs, 0)["input_ids"].tolist() == [[5, 9, 9, 7]]


def test_half_the_time_is_twice_as_fast():
    """By the median: one slow round changes nothing."""
    assert speeds(RUNS, "int8") == {"int8": {"prefill": 1, "token": 1}, "other": {"prefill": 0.25, "token": 2}}


def test_the_last_line_holds_what_the_table_shows(capsys):
    report(speeds(RUNS, "int8"), {"int8": 0.1, "other": 0.5}, ["pillow"], argparse.Namespace(rounds=3))
    header, _, row, line = capsys.readouterr().out.splitlines()
    assert header.split()[-3:] == ["prefill", "token", "error"]
    assert row.split() == ["other", "0.25", "2.00", "0.50"]
    said = json.loads(line)
    assert said["speed"]["other"] == {"prefill": 0.25, "token": 2}
    assert {"error", "pillow", "torch", "capability", "threads", "rounds"} <= set(said)


@pytest.mark.parametrize("size", [(90, 60), (61, 60), (400, 90)])
def test_the_originals_steps_give_the_same_pixels(size):
    processor, image = Phi3VImageProcessor(4, image_size=56), Image.effect_noise(size, 60)
    assert torch.equal(original(image, processor), processor(image).pixel_values)


def a_picture(model) -> dict[str, torch.Tensor]:
    """Two tiles and the global view, in a prompt of 100 tokens."""
    inputs = Phi3VImageProcessor(4, image_size=112)(noise_image(200, 100), return_tensors="pt")
    return {**inputs, "input_ids": torch.zeros(1, 100, dtype=torch.int64)}


def test_the_original_form_encodes_all_tiles():
    """It encodes as many as there can be, with the same features; afterwards only the real ones are encoded again."""
    model, seen = tiny_model(), []
    model.vision_tower.embeddings.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    picture = {name: value for name, value in a_picture(model).items() if name != "input_ids"}
    with torch.no_grad():
        (features,) = model.get_image_features(**picture).pooler_output
        with all_tiles(model, most_tiles=4):
            (padded,) = model.get_image_features(**picture).pooler_output
        model.get_image_features(**picture)
    torch.testing.assert_close(padded, features, rtol=1e-4, atol=1e-5)
    assert seen == [3, 5, 3]


def test_the_least_time_counts_tiles_positions_and_weights():
    model = tiny_model()
    layers = sum(p.numel() for p in model.model.layers.parameters())
    tower = sum(p.numel() for p in model.vision_tower.encoder.parameters())
    floor = floors(model, a_picture(model), {"bytes/s": 2.0, "operations/s": 2.0})
    patches = 3 * (8 * 8 + 1)  # three tiles of 112 pixels, and a class token for each
    assert floor == {"first token": 100 * layers + patches * tower, "token": layers + model.lm_head.weight.numel()}


def test_8_bits_have_their_own_cache_beside_onnx_runtime(monkeypatch):
    package = SimpleNamespace(Model=None, Generator=None)
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", package)  # where it is not installed
    from benchmarks.onnxruntime import measure_ours

    model, seen, ids = tiny_model(), [], torch.randint(3, 900, (1, 20))
    model.register_forward_hook(lambda module, args, output: seen.append((args[0].shape[1], getattr(output, CACHE))))
    with torch.no_grad():
        measure_ours(model, ids, steps=3)
    assert [length for length, _ in seen] == [20, 1, 1, 1]
    assert all(isinstance(cache.layers[0], GrowingLayer) and cache is seen[0][1] for _, cache in seen)


def test_4_bits_have_the_error_of_16_levels():
    """A step is a fifteenth of a block's range, so that these weights err by a sixteenth or so."""
    linear, x = torch.nn.Linear(256, 64, bias=False).requires_grad_(False), torch.randn(5, 256)
    exact = linear(x)
    assert (Int4Linear(linear)(x) - exact).norm() / exact.norm() < 0.09
