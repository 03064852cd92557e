"""Equality with the original code, on the data in tests/golden (see the README there for tolerances)."""

import numpy as np
import pytest
import torch
from phi3_v_data import (
    CASES,
    CHECKPOINT,
    GOLDEN,
    golden_image,
    golden_processor,
    golden_tokenizer,
    load_case,
    load_json,
)
from transformers import AutoConfig

from helpers.phi3_v import Phi3VConfig, Phi3VForCausalLM, Phi3VImageProcessor
from helpers.phi3_v.modeling_phi3_v import Phi3VRotaryEmbedding


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def model(request):
    return Phi3VForCausalLM.from_pretrained(CHECKPOINT, attn_implementation=request.param).eval()


def process(case):
    """Inputs of a case. The processor pads lists of prompts, where the data was padded by hand."""
    rows = case.get("rows") or [case]
    images = [[golden_image(name) for name in row["images"]] for row in rows]
    return golden_processor(case["num_crops"])([row["prompt"] for row in rows], images)


@pytest.fixture(scope="module")
def inputs_of():
    inputs = {}
    return lambda name: inputs.setdefault(name, process(load_case(name)[0]))


def to_original_ids(inputs, data):
    """Our ids, with the image tokens written as in the data: -i for the i-th picture of its row."""
    return torch.where(inputs["input_ids"] == 1044, data["input_ids"].clamp(max=0), inputs["input_ids"])


@pytest.mark.parametrize("name", CASES)
def test_processor(name, inputs_of):
    case, data = load_case(name)
    inputs = inputs_of(name)
    # The original feeds negative ids; ours are the vocabulary's <|image|>, and equal elsewhere.
    assert torch.equal(inputs["input_ids"] == 1044, data["input_ids"] < 0)
    assert torch.equal(to_original_ids(inputs, data), data["input_ids"])
    assert torch.equal(inputs["attention_mask"], data["attention_mask"])
    if "pixel_values" not in case:
        assert set(inputs) == {"input_ids", "attention_mask"}
        return
    assert torch.equal(inputs["image_sizes"], data["image_sizes"])
    pixel_values = inputs["pixel_values"]
    assert pixel_values.dtype == torch.float32
    assert list(pixel_values.shape) == case["pixel_values"]["shape"]
    for ours, theirs in (
        (pixel_values[..., ::21, ::21], data["pixel_values_sample"]),
        (pixel_values[:, 0, :, 100, :], data["pixel_values_global_row100"]),
        (pixel_values[:, 1, :, :, 0], data["pixel_values_crop1_col0"]),
    ):
        assert (ours - theirs).abs().max() <= 1e-6
    for i, (mean, std) in enumerate(zip(case["pixel_values"]["mean_per_crop"], case["pixel_values"]["std_per_crop"])):
        assert np.allclose(pixel_values[i].double().mean((1, 2, 3)), mean, atol=1e-6)
        assert np.allclose(pixel_values[i].double().std((1, 2, 3), correction=0), std, atol=1e-4)


@torch.no_grad()
def embeds_and_logits(model, inputs, **settings):
    ids = inputs["input_ids"]
    embeds = model.get_input_embeddings()(ids)
    embeds = model.model.merge_image_features(ids, embeds, inputs.get("pixel_values"), inputs.get("image_sizes"))
    return embeds, model(**inputs, **settings).logits


@pytest.mark.parametrize("name", CASES)
def test_forward(name, model, inputs_of):
    _, data = load_case(name)
    embeds, logits = embeds_and_logits(model, inputs_of(name))
    positions, vocab = data["logits_positions"].long(), data["logits_vocab"].long()
    embeds_diff = (embeds[:, positions] - data["inputs_embeds_sample"]).abs().amax(-1)
    real = data["attention_mask"][:, positions] == 1
    assert embeds_diff[real].max() <= 5e-5
    logits_diff = (logits[:, positions][..., vocab] - data["logits_sample"]).abs().amax(-1)
    # The features at padding tokens do not matter.
    assert logits_diff[real].max() <= 1e-4
    for key in ("last_logits", "last_logits_with_position_ids", "single_row_last_logits"):
        if key in data:
            assert (logits[:, -1] - data[key]).abs().max() <= 1e-4, key


@pytest.mark.parametrize("name", CASES)
def test_generate(name, model, inputs_of):
    _, data = load_case(name)
    inputs = inputs_of(name)
    length = inputs["input_ids"].shape[1]
    outputs = model.generate(
        **inputs,
        max_new_tokens=20,
        eos_token_id=1000,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    # Where the length passes 512 the cache is rebuilt once, which is what Phi-3.5-vision does (phi35v).
    suffix = "_phi35v" if "generated_ids_phi35v" in data else ""
    assert torch.equal(outputs.sequences[:, length:], data["generated_ids" + suffix])
    assert (outputs.logits[0] - data["generated_step_logits_first"]).abs().max() <= 1e-4
    assert (outputs.logits[-1] - data["generated_step_logits_last" + suffix]).abs().max() <= 1e-4
    assert golden_tokenizer().batch_decode(outputs.sequences[:, length:])  # and with the prompt: no negative ids
    assert golden_tokenizer().batch_decode(outputs.sequences)


@pytest.fixture(scope="module")
def bfloat16_model():
    return Phi3VForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.bfloat16).eval()


def test_loaded_in_bfloat16_is_cast_to_bfloat16(bfloat16_model):
    cast = Phi3VForCausalLM.from_pretrained(CHECKPOINT).to(torch.bfloat16)
    for tensors in ("parameters", "buffers"):  # the rope tables are buffers
        pairs = list(zip(getattr(cast, tensors)(), getattr(bfloat16_model, tensors)(), strict=True))
        assert pairs
        assert all(ours.dtype == theirs.dtype and ours.equal(theirs) for ours, theirs in pairs)


@pytest.mark.parametrize("name", CASES)
def test_bfloat16(name, bfloat16_model, inputs_of):
    _, data = load_case(name)
    embeds, logits = embeds_and_logits(bfloat16_model, inputs_of(name), logits_to_keep=1)
    logits, positions = logits[:, -1].float(), data["logits_positions"].long()
    real = data["attention_mask"][:, positions] == 1
    embeds_diff = (embeds[:, positions] - data["inputs_embeds_sample"]).abs().amax(-1)
    assert embeds_diff[real].max() <= 0.1
    assert (logits - data["last_logits"]).abs().max() <= 0.35
    assert torch.cosine_similarity(logits, data["last_logits"]).min() > 0.999
    # The first id is equal, unless there was a tie: bfloat16 logits of about 8 are 0.0625 apart.
    first = logits.gather(1, data["generated_ids"][:, :1].long())[:, 0]
    assert (logits.amax(-1) - first).max() <= 0.0625


def test_phi35_config_is_the_same_model(model):
    config = AutoConfig.from_pretrained(GOLDEN / "checkpoint" / "config.phi35.json")
    other = Phi3VForCausalLM.from_pretrained(
        CHECKPOINT, config=config, attn_implementation=model.config._attn_implementation
    ).eval()
    inputs = process(load_case("pub04_square_c1")[0])
    with torch.no_grad():
        assert torch.equal(other(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("num_crops", sorted({row["num_crops"] for row in load_json("sizes.json")}))
def test_sizes(num_crops):
    image_processor = Phi3VImageProcessor(num_crops=num_crops)
    for row in load_json("sizes.json"):
        if row["num_crops"] != num_crops:
            continue
        # The size arithmetic of the original goes on with a height of 0; its resize, and ours, does not.
        if "error" in row or 0 in (row["hd_width"], row["hd_height"]):
            with pytest.raises(ValueError, match="too thin"):
                image_processor.get_resized_size(row["height"], row["width"])
            continue
        resized = image_processor.get_resized_size(row["height"], row["width"])[::-1]
        if "resized_width" in row:
            assert resized == (row["resized_width"], row["resized_height"])
        hd_width, hd_height = (-(-side // 336) * 336 for side in resized)
        assert (hd_width, hd_height) == (row["hd_width"], row["hd_height"])
        assert image_processor.get_num_image_tokens(hd_height, hd_width) == row["num_img_tokens"]


OFFICIAL_ROPE = load_json("official_rope.json")


def official_config(name):
    return Phi3VConfig(
        max_position_embeddings=131072,
        original_max_position_embeddings=4096,
        rope_scaling={"type": "su", **load_json("official_factors.json")[name]},
    )


@pytest.mark.parametrize("name", OFFICIAL_ROPE)
@pytest.mark.parametrize("branch", ["short", "long"])
def test_official_rope(name, branch):
    expected = OFFICIAL_ROPE[name][branch]
    rotary_emb = Phi3VRotaryEmbedding(official_config(name))
    assert rotary_emb.attention_scaling == pytest.approx(OFFICIAL_ROPE[name]["scaling_factor"], rel=1e-12)
    assert np.array_equal(rotary_emb.inv_freq[int(branch == "long")], np.float32(expected["inv_freq"]))
    cos, sin = (table[0] for table in rotary_emb(torch.zeros(1), torch.tensor([expected["positions"]])))
    assert np.allclose(cos[:, :8], expected["cos_first8"], rtol=0, atol=1e-6)
    assert np.allclose(sin[:, :8], expected["sin_first8"], rtol=0, atol=1e-6)
    assert np.allclose(cos[:, -4:], expected["cos_last4"], rtol=0, atol=1e-6)
