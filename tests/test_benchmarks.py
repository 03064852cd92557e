"""benchmarks/: the ratios that the README and 09_speed show, and that what is compared gives the same."""

import argparse
import json

import pytest
import torch
from phi3_v_data import noise_image, tiny_model
from PIL import Image

from benchmarks.compare import report, speeds
from benchmarks.cuda import as_in, floors
from benchmarks.preprocessing import original
from helpers.phi3_v import Phi3VImageProcessor

RUNS = {
    "int8": [{"prefill": 2.0, "token": 0.3}, {"prefill": 90.0, "token": 0.1}, {"prefill": 1.0, "token": 0.2}],
    "other": [{"prefill": 8.0, "token": 0.1}, {"prefill": 8.0, "token": 0.1}, {"prefill": 1.0, "token": 9.0}],
}


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


def test_the_page_encodes_tiles_that_are_not_there():
    """The same features from all tiles that there could be; afterwards only the real ones again."""
    model, seen = tiny_model(), []
    model.vision_tower.embeddings.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    inputs = Phi3VImageProcessor(4, image_size=112)(noise_image(200, 100), return_tensors="pt")
    pictures = inputs["pixel_values"], inputs["image_sizes"]
    features = {}
    with torch.no_grad():
        for form in ("ours", "seed", "ours"):
            with as_in(form, model, most_tiles=4):
                features[form] = model.get_image_features(*pictures)[0]
    torch.testing.assert_close(features["seed"], features["ours"], rtol=1e-4, atol=1e-5)
    assert seen == [3, 5, 3]


def test_no_form_is_faster_than_its_bytes_and_operations():
    model = tiny_model()
    layers = sum(p.numel() for p in model.model.layers.parameters())
    inputs = {"input_ids": torch.zeros(1, 10, dtype=torch.int64)}
    floor = floors(model, inputs, {"bytes/s": 2.0, "operations/s": 2.0})
    assert floor == {"first token": 10 * layers, "token": layers + model.lm_head.weight.numel()}
