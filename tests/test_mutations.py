"""Central lines of the model, each made wrong in turn: the golden data must notice.

The switch to the long rope factors, and their scale; the layer that the features come from, the class token, the order
of the channels in a feature, of the tiles, of the two views, and what is between these; the rebuilding of the cache;
the largest grid of tiles; the scaling of the global view; which picture a tag takes.
"""

import importlib
import sys
import types

import pytest
import torch
from phi3_v_data import CHECKPOINT, golden_image, golden_tokenizer, load_case

CASES = ("pub02_landscape_c4", "pub05_two_images_c4", "pub10_batch_c4", "pub12_cross512_text", "pub04_square_c1")
MODELING, IMAGES, PROCESSING = "modeling_phi3_v", "image_processing_phi3_v", "processing_phi3_v"
#: Module, a piece of its text, and what takes its place.
MUTATIONS = {
    "short factors for ever": (MODELING, "amax(dim=-1) >= self.short_context", "amax(dim=-1) < 0"),
    "no scale of cos and sin": (MODELING, "emb.cos() * self.attention_scaling", "emb.cos()"),
    "features of the last layer": (MODELING, "vision_config.num_hidden_layers -= 1", "pass"),
    "the class token, not the last patch": (MODELING, "last_hidden_state[:, 1:]", "last_hidden_state[:, :-1]"),
    "columns first in a feature": (
        MODELING,
        "transpose(2, 3).flatten(3)",
        "transpose(2, 3).transpose(3, 4).flatten(3)",
    ),
    "tiles by columns": (MODELING, "unflatten(0, (h, w)).tr", "unflatten(0, (w, h)).transpose(0, 1).tr"),
    "the whole before the tiles": (
        MODELING,
        "[self.end_rows(sub), self.glb_GN[0].to(sub), self.end_rows(views[0])]",
        "[self.end_rows(views[0]), self.glb_GN[0].to(sub), self.end_rows(sub)]",
    ),
    "nothing between the views": (MODELING, "self.glb_GN[0].to(sub)", "0 * self.glb_GN[0]"),
    "the cache is kept": (MODELING, "if past and ((position_ids", "if False and ((position_ids"),
    "a smaller grid": (IMAGES, "(scale + 1) / ratio) <= num_crops", "(scale + 1) / ratio) < num_crops"),
    "a bilinear global view": (IMAGES, 'mode="bicubic"', 'mode="bilinear"'),
    "a tag takes the picture before": (PROCESSING, "images[number - 1]", "images[number - 2]"),
}


def module(name: str, mutation=None) -> types.ModuleType:
    """A module of helpers.phi3_v, or a changed copy of it."""
    original = importlib.import_module(f"helpers.phi3_v.{name}")
    if mutation is None or mutation[0] != name:
        return original
    with open(original.__file__, encoding="utf-8") as file:
        source = file.read()
    _, old, new = mutation
    assert source.count(old) == 1, f"{name} no longer has {old!r} once"
    mutant = types.ModuleType(f"helpers.phi3_v.{name}_mutant")
    mutant.__file__, mutant.__package__ = original.__file__, "helpers.phi3_v"
    sys.modules[mutant.__name__] = mutant
    try:
        exec(compile(source.replace(old, new), original.__file__, "exec"), mutant.__dict__)  # noqa: S102
    finally:
        del sys.modules[mutant.__name__]
    return mutant


def equals_the_original(mutation=None) -> bool:
    """Whether pixels, logits and greedy ids are those of the golden data."""
    model = module(MODELING, mutation).Phi3VForCausalLM.from_pretrained(CHECKPOINT).eval()
    for name in CASES:
        case, data = load_case(name)
        image_processor = module(IMAGES, mutation).Phi3VImageProcessor(case["num_crops"])
        processor = module(PROCESSING, mutation).Phi3VProcessor(image_processor, golden_tokenizer())
        rows = case.get("rows") or [case]
        images = [[golden_image(file) for file in row["images"]] for row in rows]
        inputs = processor([row["prompt"] for row in rows], images)
        if "pixel_values_sample" in data:
            ours, theirs = inputs["pixel_values"][..., ::21, ::21], data["pixel_values_sample"]
            if ours.shape != theirs.shape or (ours - theirs).abs().max() > 1e-6:
                return False
        with torch.no_grad():
            logits = model(**inputs).logits[:, -1]
        if "last_logits" in data and (logits - data["last_logits"]).abs().max() > 1e-4:
            return False
        ids = model.generate(**inputs, max_new_tokens=20, eos_token_id=1000, do_sample=False)
        expected = data["generated_ids_phi35v" if "generated_ids_phi35v" in data else "generated_ids"]
        if not torch.equal(ids[:, inputs["input_ids"].shape[1] :], expected):
            return False
    return True


def test_unchanged():
    assert equals_the_original()


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutations_are_noticed(name):
    try:
        same = equals_the_original(MUTATIONS[name])
    except (ValueError, RuntimeError):  # noticed by the model's own checks
        return
    assert not same
