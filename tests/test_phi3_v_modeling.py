import copy
import logging
import shutil

import pytest
import torch
from phi3_v_data import (
    CHECKPOINT,
    golden_image,
    golden_processor,
    noise_image,
    tiny_config,
    tiny_model,
    tiny_processor,
)
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    CLIPVisionModel,
    DynamicCache,
    Phi3ForCausalLM,
)

from helpers.phi3_v import Phi3VConfig, Phi3VForCausalLM, Phi3VModel
from helpers.phi3_v.modeling_phi3_v import CACHE

PROMPT = "<|user|>\n<|image_1|>\nWhat is it?<|end|>\n<|assistant|>\n"


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def inputs():
    return tiny_processor()(PROMPT, noise_image(150, 100))


@pytest.mark.parametrize("auto_class", [AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM])
@pytest.mark.parametrize("trust_remote_code", [None, True, False])
def test_auto_classes(auto_class, trust_remote_code):
    model = auto_class.from_pretrained(CHECKPOINT, trust_remote_code=trust_remote_code)
    assert type(model) is Phi3VForCausalLM
    assert model.config._attn_implementation != "flash_attention_2"
    assert model.dtype == torch.float32


def test_loading_is_complete_and_silent(caplog):
    with caplog.at_level(logging.WARNING):
        model, info = Phi3VForCausalLM.from_pretrained(CHECKPOINT, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert "post_layernorm" not in caplog.text
    weights = load_file(CHECKPOINT / "model.safetensors")
    state = model.state_dict()
    # The names on disk are the official ones, and only what the model never uses is left out.
    assert set(state) <= set(weights)
    left_out = {
        name.split("vision_model.")[1].rsplit(".", 1)[0].split(".self_attn")[0] for name in set(weights) - set(state)
    }
    assert {name.split(".layer_norm")[0].split(".mlp")[0] for name in left_out} == {
        "encoder.layers.2",
        "post_layernorm",
    }
    for name, value in state.items():
        assert torch.equal(value, weights[name]), name


def test_a_checkpoint_that_was_fine_tuned_with_the_remote_code(tmp_path):
    """Such as TB-OCR-preview-0.1: the embedding stands in it twice."""
    shutil.copytree(CHECKPOINT, tmp_path, dirs_exist_ok=True)
    weights = load_file(CHECKPOINT / "model.safetensors")
    weights["model.vision_embed_tokens.wte.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    _, info = Phi3VForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def test_save_and_load(tmp_path, model, inputs):
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    names = set(load_file(tmp_path / "model.safetensors"))
    prefix = "model.vision_embed_tokens."
    assert {
        "lm_head.weight",
        "model.embed_tokens.weight",
        prefix + "glb_GN",
        prefix + "sub_GN",
        prefix + "img_projection.0.weight",
        prefix + "img_projection.2.bias",
        prefix + "img_processor.vision_model.embeddings.class_embedding",
        prefix + "img_processor.vision_model.pre_layrnorm.weight",
        prefix + "img_processor.vision_model.encoder.layers.1.self_attn.out_proj.weight",
    } <= names
    assert type(AutoModel.from_pretrained(tmp_path)) is Phi3VModel
    assert loaded.generation_config.eos_token_id == [2, 1000, 1007]


def test_attention_implementation_reaches_the_tower():
    for implementation in ("eager", "sdpa"):
        model = Phi3VForCausalLM.from_pretrained(CHECKPOINT, attn_implementation=implementation)
        assert model.config._attn_implementation == implementation
        assert model.vision_tower.config._attn_implementation == implementation


@pytest.mark.parametrize("cast", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.bfloat16().float()])
def test_rope_tables_stay_float32(cast):
    model = tiny_model()
    expected = model.model.rotary_emb.inv_freq.clone()
    cast(model)
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert torch.equal(model.model.rotary_emb.inv_freq, expected)
    assert not torch.equal(expected[0], expected[1])


def test_positions_stay_exact_in_half_precision(model):
    """bfloat16 has no numbers between 256 and 258."""
    positions = torch.arange(250, 270)[None]
    exact = model.model.rotary_emb(torch.zeros(1), positions)
    for part, rounded in zip(exact, model.model.rotary_emb(torch.zeros(1, dtype=torch.bfloat16), positions)):
        assert torch.equal(rounded, part.bfloat16())


def test_init_is_sensible():
    model = Phi3VForCausalLM(tiny_config(initializer_range=0.02))
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), name
        assert parameter.std() < 2, name
    assert not model.model.vision_embed_tokens.sub_GN.any()
    assert 0.01 < model.model.vision_embed_tokens.img_projection[0].weight.std() < 0.03


def reference_features(model, pixel_values, image_sizes):
    """Features of one picture, straight from the description of the model, with loops."""
    embedding, patches = model.model.vision_embed_tokens, 8
    h, w = (image_sizes // 112).tolist()
    hidden = model.vision_tower(pixel_values[: h * w + 1]).last_hidden_state[:, 1:]

    def block(tile, row, column):
        places = [
            (2 * row, 2 * column),
            (2 * row, 2 * column + 1),
            (2 * row + 1, 2 * column),
            (2 * row + 1, 2 * column + 1),
        ]
        return torch.cat([hidden[tile, r * patches + c] for r, c in places])

    sequence = []
    for row in range(h * 4):
        sequence += [block(1 + row // 4 * w + column // 4, row % 4, column % 4) for column in range(w * 4)]
        sequence.append(embedding.sub_GN[0, 0, 0])
    sequence.append(embedding.glb_GN[0, 0])
    for row in range(4):
        sequence += [block(0, row, column) for column in range(4)] + [embedding.sub_GN[0, 0, 0]]
    return embedding.img_projection(torch.stack(sequence))


@torch.no_grad()
def test_image_features(model):
    processor = tiny_processor(6).image_processor
    outputs = processor(
        [noise_image(300, 100), noise_image(100, 300, 1), noise_image(50, 50, 2), noise_image(160, 100, 3)]
    )
    output = model.get_image_features(**outputs)
    features = output.pooler_output
    assert len({len(feature) for feature in features}) > 2
    for feature, size, pixels in zip(features, outputs["image_sizes"], outputs["pixel_values"]):
        assert len(feature) == processor.get_num_image_tokens(*size.tolist())
        assert torch.allclose(feature, reference_features(model, pixels, size), atol=1e-5)
    tiles = sum(height * width // 112**2 + 1 for height, width in outputs["image_sizes"].tolist())
    assert output.last_hidden_state.shape == (tiles, 8 * 8 + 1, 32)
    assert torch.equal(model.get_image_features(**outputs, return_dict=False)[1][0], features[0])


@torch.no_grad()
def test_only_real_tiles_reach_the_tower_once(model):
    outputs = tiny_processor(6).image_processor([noise_image(300, 100), noise_image(50, 50, 2)])
    batches = []
    with model.vision_tower.register_forward_hook(lambda module, args, output: batches.append(len(args[0]))):
        expected = torch.cat(model.get_image_features(**outputs).pooler_output)
    assert batches == [sum(h * w // 112**2 + 1 for h, w in outputs["image_sizes"].tolist())]
    for pixels, size in zip(outputs["pixel_values"], outputs["image_sizes"].tolist()):
        pixels[size[0] * size[1] // 112**2 + 1 :] = float("nan")
    assert torch.equal(torch.cat(model.get_image_features(**outputs).pooler_output), expected)


@torch.no_grad()
def test_a_cpu_encodes_a_few_tiles_at_once(model, monkeypatch):
    outputs = tiny_processor(6).image_processor([noise_image(300, 100), noise_image(50, 50, 2)])
    expected = torch.cat(model.get_image_features(**outputs).pooler_output)
    monkeypatch.setattr(model.model.vision_embed_tokens, "tiles_at_once", 2)
    batches = []
    with model.vision_tower.register_forward_hook(lambda module, args, output: batches.append(len(args[0]))):
        features = torch.cat(model.get_image_features(**outputs).pooler_output)
    assert max(batches) == 2
    assert len(batches) > 1
    torch.testing.assert_close(features, expected)


@torch.no_grad()
def test_other_devices_encode_all_tiles_at_once(model):
    outputs = tiny_processor(6).image_processor([noise_image(300, 100), noise_image(50, 50, 2)])
    elsewhere = copy.deepcopy(model).to("meta")
    elsewhere.model.vision_embed_tokens.tiles_at_once = 1
    batches = []
    elsewhere.vision_tower.register_forward_hook(lambda module, args, output: batches.append(len(args[0])))
    elsewhere.get_image_features(outputs["pixel_values"].to("meta"), outputs["image_sizes"])
    assert batches == [sum(h * w // 112**2 + 1 for h, w in outputs["image_sizes"].tolist())]


def test_vision_tower_has_no_unused_parts():
    model = Phi3VForCausalLM.from_pretrained(CHECKPOINT)
    assert isinstance(model.vision_tower, CLIPVisionModel)
    assert model.vision_tower is model.model.vision_tower
    assert len(model.vision_tower.encoder.layers) == 2


@torch.no_grad()
def test_caller_keeps_its_tensors(model, inputs):
    before = copy.deepcopy(dict(inputs))
    first = model(**inputs).logits
    assert torch.equal(model(**inputs).logits, first)
    for key, value in inputs.items():
        assert torch.equal(value, before[key]), key


@torch.no_grad()
def test_logits_to_keep(model, inputs):
    logits = model(**inputs).logits
    assert torch.allclose(model(**inputs, logits_to_keep=1).logits, logits[:, -1:], atol=1e-5)
    positions = torch.tensor([3, 5])
    assert torch.allclose(model(**inputs, logits_to_keep=positions).logits, logits[:, positions], atol=1e-5)
    assert type(model(**inputs, return_dict=False)) is tuple


@torch.no_grad()
def test_logits_to_keep_of_each_row(model):
    """As transformers' own models since 5.24."""
    ids = torch.arange(3, 15).view(2, 6)
    logits = model(ids).logits
    positions, mask = torch.tensor([[3, 5], [0, 4]]), ids % 4 == 1
    expected = torch.stack([logits[0, positions[0]], logits[1, positions[1]]])
    torch.testing.assert_close(model(ids, logits_to_keep=positions).logits, expected)
    torch.testing.assert_close(model(ids, logits_to_keep=mask).logits, logits[mask])


@torch.no_grad()
def test_tag_number_selects_the_picture(model):
    """The original lays features down in list order, whatever the tags say (errors_and_quirks.json)."""
    processor, images = tiny_processor(), [noise_image(90, 90), noise_image(90, 90, 1)]
    prompts = ("<|image_1|>x<|image_2|>", "<|image_2|>x<|image_1|>")
    logits = model(**processor(prompts[0], images)).logits
    other = model(**processor(prompts[1], images)).logits
    assert (logits - other).abs().max() > 0.1
    assert torch.equal(model(**processor(prompts[1], images[::-1])).logits, logits)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("give_positions", [False, True])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_rows_do_not_depend_on_each_other(side, give_positions, attention):
    """Rows on both sides of the short context (64 tokens) equal their solo runs."""
    model = tiny_model()
    model.set_attn_implementation(attention)
    processor = tiny_processor()
    prompts = ["<|image_1|> a b", "Only a few words", "<|image_2|> and <|image_1|>: which?", "c " * 70]
    images = [[noise_image(60, 60)], [], [noise_image(30, 90, 1), noise_image(90, 90, 2)], []]
    solos = [processor(prompt, row) for prompt, row in zip(prompts, images)]
    assert {solo["input_ids"].shape[1] > 64 for solo in solos} == {True, False}
    batch = processor(prompts, images)
    if side == "right":
        for key in ("input_ids", "attention_mask"):
            rows = [row[mask.bool()] for row, mask in zip(batch[key], batch["attention_mask"].clone())]
            batch[key] = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0)
    mask = batch["attention_mask"]
    if give_positions:
        batch["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(**batch).logits
    for row, row_mask, solo in zip(logits, mask, solos):
        assert (row[row_mask.bool()] - model(**solo).logits[0]).abs().max() < 1e-4


def test_given_positions_count_beside_a_mask(model):
    """As where several texts are packed into a row."""
    ids = torch.randint(3, 999, (1, 8), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(0, 16, 2)[None]
    with torch.no_grad():
        expected = model(ids, position_ids=positions).logits
        assert torch.equal(model(ids, position_ids=positions, attention_mask=torch.ones_like(ids)).logits, expected)


def test_short_and_long_factors_differ(model):
    ids = torch.randint(3, 999, (1, 65), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        short, long = model(ids[:, :64]).logits[0, :64], model(ids).logits[0, :64]
    assert (short - long).abs().max() > 0.1


def change(inputs, **kwargs):
    return {key: value for key, value in {**inputs, **kwargs}.items() if value is not None}


def test_pictures_are_never_lost(model, inputs):
    ids, pixels, sizes = inputs["input_ids"], inputs["pixel_values"], inputs["image_sizes"]
    count = int((ids == 1044).sum())
    text = change(inputs, input_ids=ids.masked_fill(ids == 1044, 5))
    cases = {
        rf"{count} image tokens but 0 pictures": change(inputs, pixel_values=None, image_sizes=None),
        r"do not fit.*Pass what one call of the processor returned": change(inputs, image_sizes=None),
        rf"0 image tokens, the 1 pictures take {count}": text,
        rf"{count} image tokens, the 2 pictures take {2 * count}": change(
            inputs, pixel_values=pixels.repeat(2, 1, 1, 1, 1), image_sizes=sizes.repeat(2, 1)
        ),
        rf"{count - 1} image tokens, the 1 pictures take {count}": change(
            inputs,
            input_ids=ids[:, (ids[0] != 1044).nonzero()[0, 0] :][:, 1:].index_fill(1, torch.tensor([9]), 5),
        ),
        r"fit `pixel_values`": change(inputs, image_sizes=sizes * 4),
        r"`image_sizes` do not fit": change(inputs, pixel_values=pixels[0]),
    }
    for message, case in cases.items():
        with pytest.raises(ValueError, match=message):
            model(**case)
    with pytest.raises(ValueError, match="go with `input_ids`"):
        model(inputs_embeds=torch.zeros(1, 4, 48), pixel_values=pixels, image_sizes=sizes)
    with pytest.raises(ValueError, match="exactly one"):
        model(pixel_values=pixels, image_sizes=sizes)


def test_pictures_do_not_spill_over(model):
    """Equal totals, but the pictures stand in another order than their tokens."""
    inputs = tiny_processor()("<|image_1|> and <|image_2|>", [noise_image(90, 90), noise_image(400, 90)])
    swapped = change(inputs, pixel_values=inputs["pixel_values"].flip(0), image_sizes=inputs["image_sizes"].flip(0))
    with pytest.raises(ValueError, match="do not match"):
        model(**swapped)


def training_batch():
    processor = tiny_processor()
    batch = processor([PROMPT + "A cat", "Hi"], [[noise_image(90, 90)], []])
    labels = batch["input_ids"].masked_fill((batch["attention_mask"] == 0) | (batch["input_ids"] == 1044), -100)
    return {**batch, "labels": labels}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_training(autocast, attention):
    model = tiny_model(initializer_range=0.02, attn_implementation=attention).train()
    batch = training_batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())  # every part is used
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5


def test_loss(model):
    batch = training_batch()
    outputs = model(**batch)
    expected = torch.nn.functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    assert torch.allclose(outputs.loss, expected, atol=1e-5)


def test_freezing():
    model = tiny_model().train()
    model.vision_tower.requires_grad_(False)
    model(**training_batch()).loss.backward()
    assert all(parameter.grad is None for parameter in model.vision_tower.parameters())
    assert model.model.vision_embed_tokens.img_projection[0].weight.grad.abs().sum() > 0
    model = tiny_model().train()
    model.requires_grad_(False)
    model.vision_tower.requires_grad_(True)
    model(**training_batch()).loss.backward()
    assert model.vision_tower.pre_layrnorm.weight.grad.abs().sum() > 0


def test_gradient_checkpointing():
    model, batch = tiny_model().train(), training_batch()
    model(**batch).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(**batch).loss.backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, expected[name], atol=1e-5), name


def test_default_rope():
    model = tiny_model(rope_scaling=None)
    with torch.no_grad():
        assert model(**tiny_processor()("a " * 80)).logits.isfinite().all()


def test_large_picture_in_the_golden_model():
    """A picture of another size than the tower's tiles is refused."""
    model = Phi3VForCausalLM.from_pretrained(CHECKPOINT)
    with pytest.raises(ValueError, match="do not"):
        model(**tiny_processor()(PROMPT, golden_image("square_224x224.png")))
    with pytest.raises(ValueError, match="do not"):
        tiny_model()(**golden_processor(1)(PROMPT, golden_image("square_224x224.png")))


def test_text_alone_is_one_graph(model):
    inputs = tiny_processor()("a b c")
    torch._dynamo.reset()
    compiled = torch.compile(model.forward, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits)
    inputs["input_ids"][0, 1] = model.config.image_token_id  # a picture that is lost is noticed there too
    with pytest.raises((RuntimeError, ValueError)):
        compiled(**inputs)


def test_layers_on_several_devices(model, inputs, monkeypatch):
    """`device_map="auto"`: features move to the embeddings' device (here from "meta", which cannot be copied), and
    no module that adds up the results of its parts is split."""
    assert {"Phi3DecoderLayer", "CLIPVisionEmbeddings", "CLIPEncoderLayer"} <= set(model._no_split_modules)
    output = model.get_image_features(inputs["pixel_values"], inputs["image_sizes"])
    output.pooler_output = [feature.to("meta") for feature in output.pooler_output]
    monkeypatch.setattr(model.model, "get_image_features", lambda *args, **kwargs: output)
    with pytest.raises(RuntimeError, match="Cannot copy out of meta tensor"):
        model(**inputs)


def test_plans_of_parallel_runs():
    assert Phi3VForCausalLM._tp_plan == Phi3ForCausalLM._tp_plan
    assert Phi3VForCausalLM._pp_plan == Phi3ForCausalLM._pp_plan
    assert Phi3VForCausalLM._fsdp_plan == Phi3ForCausalLM._fsdp_plan


def test_sizes_that_are_no_whole_tiles(model):
    inputs = tiny_processor(num_crops=1)("<|image_1|>", noise_image(90, 90))
    inputs["image_sizes"] += 8
    with pytest.raises(ValueError, match="do not fit"):
        model(**inputs)


def test_a_head_can_be_the_embedding():
    model = tiny_model(tie_word_embeddings=True)
    assert model.lm_head.weight is model.get_input_embeddings().weight


@torch.no_grad()
def test_forward_goes_on_with_a_mask(model):
    inputs = {**tiny_processor(1)(["<|image_1|> a b c d", "e f"], [[noise_image(9, 9)], []])}
    ids, mask, cache = inputs["input_ids"], inputs["attention_mask"], DynamicCache(config=model.config)
    whole = model(**inputs).logits
    model(**inputs | {"input_ids": ids[:, :-3], "attention_mask": mask[:, :-3], CACHE: cache})
    rest = model(ids[:, -3:], attention_mask=mask, **{CACHE: cache}).logits
    torch.testing.assert_close(rest, whole[:, -3:], atol=1e-4, rtol=0)


def test_the_loss_of_accumulated_batches(model):
    """Trainer passes the number of labels in several batches; the loss is then the sum divided by that number."""
    inputs = tiny_processor()("a b c d e f")
    labels = inputs["input_ids"].clone()
    mean = model(**inputs, labels=labels).loss
    total = model(**inputs, labels=labels, num_items_in_batch=torch.tensor(10)).loss
    torch.testing.assert_close(total * 10, mean * (labels.shape[1] - 1))


@torch.no_grad()
def test_hidden_states_and_attentions():
    model = tiny_model(attn_implementation="eager")
    outputs = model(**tiny_processor()("a b c"), output_hidden_states=True, output_attentions=True)
    assert (len(outputs.hidden_states), len(outputs.attentions)) == (3, 2)
    torch.testing.assert_close(model.lm_head(outputs.hidden_states[-1]), outputs.logits)


@torch.no_grad()
def test_none_and_too_few_pictures(model, inputs):
    ids, pixels, sizes = torch.arange(3, 12)[None], inputs["pixel_values"], inputs["image_sizes"]
    assert torch.equal(model(ids, pixel_values=pixels[:0], image_sizes=sizes[:0]).logits, model(ids).logits)
    with pytest.raises(ValueError, match="do not match"):
        model(ids[:, :1], pixel_values=pixels, image_sizes=sizes)
    with pytest.raises(ValueError, match="do not fit"):
        model.get_image_features(pixels, sizes * 0)


def test_the_official_sizes():
    """592 tensors, 4,146,621,440 weights; the last layer and norm of the tower do nothing and are not built."""
    with torch.device("meta"):
        model = Phi3VForCausalLM(Phi3VConfig())
    state = model.state_dict()
    assert model.model.vision_embed_tokens.tiles_at_once == 1
    layer = [value.numel() for name, value in state.items() if ".vision_model.encoder.layers.0." in name]
    total = sum(value.numel() for value in state.values()) + sum(layer) + 2 * 1024
    assert (len(state) + len(layer) + 2, total) == (592, 4_146_621_440)
