import copy
import functools
import io

import pytest
import torch
from phi3_v_data import CHECKPOINT, noise_image, tiny_model, tiny_processor
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    AutoProcessor,
    Cache,
    DynamicCache,
    GenerationConfig,
    TextStreamer,
    pipeline,
)
from transformers.cache_utils import QuantizedLayer

from helpers import POCKET
from helpers.phi3_v.modeling_phi3_v import CACHE

SHORT = "<|image_1|> a"  # 41 image tokens and a few more: passes 64 tokens while generating
LONG = "<|image_2|> b c d <|image_1|> which of them?"


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def processor():
    return tiny_processor(num_crops=1)


def images(*seeds):
    return [noise_image(90 + 30 * seed, 90, seed) for seed in seeds]


def generate(model, inputs, max_new_tokens=30, eos_token_id=9999, **kwargs):
    """New ids of a greedy run, without a stop."""
    outputs = model.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=eos_token_id,
        pad_token_id=1000,
        **kwargs,
    )
    return outputs[:, inputs["input_ids"].shape[1] :]


@torch.no_grad()
def greedy(model, inputs, steps=30):
    """What every run must give: the whole sequence through forward(), pictures included, at every step."""
    inputs, new = dict(inputs), []
    for _ in range(steps):
        new.append(model(**inputs).logits[0, -1].argmax().item())
        for key, value in (("input_ids", new[-1]), ("attention_mask", 1)):
            inputs[key] = torch.cat([inputs[key], torch.tensor([[value]])], dim=1)
    return new


@functools.cache
def expected_of(prompt, seeds):
    """`greedy` of the tiny model, one tile a picture."""
    return greedy(tiny_model(), tiny_processor(num_crops=1)(prompt, images(*seeds)))


PROMPTS = [(SHORT, (0,)), (LONG, (0, 2)), ("e f g", ()), ("h " * 50, ())]


@pytest.mark.parametrize(("prompt", "seeds"), PROMPTS)
@pytest.mark.parametrize("cache", [{}, {"cache_implementation": "static"}, {"use_cache": False}])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_caches(processor, prompt, seeds, cache, attention):
    model = tiny_model(attn_implementation=attention)
    inputs = processor(prompt, images(*seeds))
    for _ in range(2):  # a second call on the same inputs
        assert generate(model, inputs, **cache)[0].tolist() == expected_of(prompt, seeds)


def test_the_picture_matters_after_the_switch(model, processor):
    answers = [generate(model, processor(SHORT, noise_image(90, 90, seed)), 40)[0, 25:].tolist() for seed in range(4)]
    assert len({tuple(answer) for answer in answers}) > 1


def test_cache_is_rebuilt_once(model, processor):
    inputs = processor(SHORT, images(0))
    lengths, pictures = [], []

    def record(module, args, kwargs):
        lengths.append(kwargs["input_ids"].shape[1])
        pictures.append(kwargs.get("pixel_values") is not None)

    with model.model.register_forward_pre_hook(record, with_kwargs=True):
        generate(model, inputs)
    length = inputs["input_ids"].shape[1]
    assert [n for n in lengths if n > 1] == [length, 65]
    assert [n for n, has_picture in zip(lengths, pictures) if has_picture] == [length, 65]


@pytest.mark.parametrize("cache", [{}, {"cache_implementation": "static"}])
def test_left_padded_batch(model, processor, cache):
    """Rows that pass the short context at different steps, or have from the start, or never do."""
    rows = [*PROMPTS, (SHORT + " b c d", (1,))]
    batch = processor([prompt for prompt, _ in rows], [images(*seeds) for _, seeds in rows])
    new = generate(model, batch, **cache)
    for row, (prompt, seeds) in zip(new.tolist(), rows):
        assert row == expected_of(prompt, seeds)


@pytest.mark.parametrize("kwargs", [{"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}])
def test_beams_keep_their_pictures(model, processor, kwargs):
    rows = [(LONG, (0, 2)), ("no picture", ()), (SHORT, (1,))]
    batch = processor([prompt for prompt, _ in rows], [images(*seeds) for _, seeds in rows])
    new = generate(model, batch, 6, **kwargs)
    solos = [generate(model, processor(prompt, images(*seeds)), 6, **kwargs) for prompt, seeds in rows]
    assert torch.equal(new, torch.cat(solos))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("words", [0, 8, 15])
def test_candidates_change_nothing(processor, seed, words):
    """Several tokens a step, looked up in the prompt or by another model; the switch may lie between them."""
    model, draft = tiny_model(seed=seed), tiny_model(seed=99)
    inputs = processor(SHORT + " b" * words, [noise_image(90 + 30 * seed, 90, seed)])
    expected = greedy(model, inputs)
    assert generate(model, inputs, prompt_lookup_num_tokens=4)[0].tolist() == expected
    assert generate(model, inputs, assistant_model=draft)[0].tolist() == expected


def test_sampling_never_draws_an_image_token(model, processor):
    """Not even where it is the only one that top-k leaves."""
    image_token = torch.tensor([model.config.image_token_id])
    inputs = processor(SHORT, images(0))
    with model.lm_head.register_forward_hook(lambda module, args, logits: logits.index_fill(-1, image_token, 1e4)):
        new = model.generate(**inputs, max_new_tokens=4, do_sample=True, top_k=1)[0, inputs["input_ids"].shape[1] :]
    assert model.config.image_token_id not in new


def test_generate_while_training(processor):
    """Gradient checkpointing leaves no cache: each step takes the whole input."""
    model = tiny_model()
    inputs = processor(SHORT, images(0))
    expected = greedy(model, inputs)
    model.train().gradient_checkpointing_enable()
    assert generate(model, inputs)[0].tolist() == expected


def test_inputs_embeds_and_ids_across_the_switch(model, processor):
    """In the very first step, before any token is written, with a cache that the switch makes invalid."""
    inputs = processor("h " * 70)
    embeds, cache = model.get_input_embeddings()(inputs["input_ids"]), DynamicCache(config=model.config)
    with torch.no_grad():
        model(inputs["input_ids"][:, :30], past_key_values=cache)
    assert generate(model, {**inputs, "inputs_embeds": embeds}, 4, **{CACHE: cache})[0].tolist() == greedy(
        model, inputs, 4
    )


def test_inputs_embeds(model, processor):
    inputs = processor("h " * 50)
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    outputs = model.generate(
        inputs_embeds=embeds,
        attention_mask=inputs["attention_mask"],
        max_new_tokens=30,
        do_sample=False,
        eos_token_id=9999,
    )
    assert outputs[0].tolist() == greedy(model, inputs)


@pytest.mark.parametrize("words", [1, 12])
def test_chat_goes_on_with_its_cache(model, processor, words):
    first, second = f"{SHORT}{' b' * words}", " and this: <|image_2|> c"
    cache = DynamicCache(config=model.config)
    generate(model, processor(first, images(0)), 2, **{CACHE: cache})
    answer = "<|end|>"
    inputs = processor(first + answer + second, images(0, 1))
    reused = DynamicCache(config=model.config)
    with torch.no_grad():
        model(**processor(first, images(0)), past_key_values=reused)
    assert generate(model, inputs, 12, **{CACHE: reused})[0].tolist() == greedy(model, inputs, 12)


@pytest.mark.parametrize("shorter", [0, 3])
def test_the_cache_of_another_prompt(model, processor, shorter):
    ids = processor("h " * 20)["input_ids"]
    cache = model(ids)[CACHE]
    with pytest.raises(ValueError, match=f"holds {ids.shape[1]} positions, the input has {ids.shape[1] - shorter}"):
        model.generate(ids[:, shorter:], max_new_tokens=2, **{CACHE: cache})


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_the_cache_by_its_old_and_its_new_name(model, processor, name):
    """Whatever the release calls it, as there are snippets with either name."""
    ids = processor("h " * 20)["input_ids"]
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        first = model(ids[:, :9], **{name: cache})
        second = model(ids[:, 9:], **{name: cache})
        whole = model(ids)
    assert first[CACHE] is cache
    assert cache.get_seq_length() == ids.shape[1]
    torch.testing.assert_close(torch.cat([first.logits, second.logits], dim=1), whole.logits)


def test_chat_beyond_the_switch_with_its_cache(model, processor):
    first = LONG
    inputs = processor(first + " and <|image_3|> c", images(0, 1, 2))
    reused = DynamicCache(config=model.config)
    with torch.no_grad():
        model(**processor(first, images(0, 1)), past_key_values=reused)
    assert generate(model, inputs, 12, **{CACHE: reused})[0].tolist() == greedy(model, inputs, 12)
    # Text only goes on without the pictures too, and a new picture cannot be left out.
    again = DynamicCache(config=model.config)
    with torch.no_grad():
        model(**processor(first, images(0, 1)), past_key_values=again)
    with pytest.raises(ValueError, match="image tokens but 0 pictures"):
        model.generate(input_ids=inputs["input_ids"], **{CACHE: again}, max_new_tokens=2)


class Lossless(QuantizedLayer):
    """A quantized layer without the rounding, so that its answers must be those of an ordinary one."""

    def _quantize(self, tensor, axis):
        return tensor.clone()

    def _dequantize(self, tensor):
        return tensor


@pytest.mark.parametrize("residual_length", [4, 128])
def test_quantized_cache(model, processor, residual_length):
    """The long context starts from an empty cache, its quantized part included."""
    inputs = processor(SHORT, images(0))
    cache = Cache([Lossless(residual_length=residual_length) for _ in range(model.config.num_hidden_layers)])
    assert generate(model, inputs, **{CACHE: cache})[0].tolist() == greedy(model, inputs)
    assert cache.get_seq_length() == inputs["input_ids"].shape[1] + 29


def test_chunked_prefill_is_refused(model, processor):
    with pytest.raises(ValueError, match="Leave out `prefill_chunk_size`"):
        generate(model, processor(SHORT, images(0)), prefill_chunk_size=16)


def test_caller_keeps_its_tensors(model, processor):
    inputs = processor(SHORT, images(0))
    before = {key: value.clone() for key, value in inputs.items()}
    generate(model, inputs)
    for key, value in inputs.items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("eos", [None, 2, [2]])
def test_stop_set_is_filled_in(model, eos):
    """In a copy: the config belongs to the caller."""
    config = GenerationConfig(eos_token_id=eos)
    model.generation_config = config
    assert model.generation_config.eos_token_id == [2, 1000, 1007]
    assert config.eos_token_id == eos


def test_stop_set_of_the_checkpoint_wins(model):
    model.generation_config = GenerationConfig(eos_token_id=[1007])
    assert model.generation_config.eos_token_id == [1007]
    model.generation_config = GenerationConfig()


@pytest.mark.parametrize("folder", ["with_generation_config", "without"])
def test_stop_set_of_loaded_models(folder, tmp_path):
    from shutil import copytree, ignore_patterns

    ignore = ignore_patterns("generation_config.json") if folder == "without" else None
    path = copytree(CHECKPOINT, tmp_path / folder, ignore=ignore)
    model = AutoModelForCausalLM.from_pretrained(path)
    assert model.generation_config.eos_token_id == [2, 1000, 1007]


@pytest.mark.parametrize("stop", [2, 1000, 1007])
def test_generation_stops(model, processor, stop):
    """Every id of the stop set ends a row; an explicit eos_token_id replaces the set."""
    inputs = processor("a b")

    def force(input_ids, scores):
        scores[:, stop if input_ids.shape[1] == inputs["input_ids"].shape[1] + 2 else 7] = 1e9
        return scores

    outputs = model.generate(**inputs, max_new_tokens=6, do_sample=False, logits_processor=[force])
    assert outputs.shape[1] == inputs["input_ids"].shape[1] + 3
    outputs = generate(model, inputs, 6, eos_token_id=9999, logits_processor=[force])
    assert outputs.shape[1] == 6


def test_each_sequence_keeps_its_pictures(model, processor):
    """All of them if a row has several, which the test of beams does not show."""
    inputs = processor([LONG, SHORT], [images(0, 2), images(1)])
    outputs = model.generate(**inputs, max_new_tokens=4, do_sample=True, top_k=1, num_return_sequences=2)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[2], outputs[3])


def test_streaming(model, processor, capsys):
    (new_ids,) = generate(
        model, processor(SHORT, images(0)), 5, streamer=TextStreamer(processor.tokenizer, skip_prompt=True)
    )
    assert capsys.readouterr().out.strip() == processor.tokenizer.decode(new_ids).strip()


@pytest.mark.parametrize("trust_remote_code", [None, True])
def test_pipeline(trust_remote_code, monkeypatch):
    def ask(*args):
        raise AssertionError("asked to run remote code")

    monkeypatch.setattr("builtins.input", ask)
    pipe = pipeline("image-text-to-text", model=str(CHECKPOINT), trust_remote_code=trust_remote_code, device="cpu")
    pipe.processor.image_processor.num_crops = 1
    image = noise_image(90, 90)
    messages = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "Hi"}]}]
    chat = pipe(text=messages, max_new_tokens=4, return_full_text=False)[0]["generated_text"]
    prompt = "<|user|>\n<|image_1|>\nHi<|end|>\n<|assistant|>\n"
    inputs = pipe.processor(prompt, image)
    outputs = pipe.model.generate(**inputs, max_new_tokens=4)[:, inputs["input_ids"].shape[1] :]
    assert chat == pipe.processor.decode(outputs[0], skip_special_tokens=True)
    plain = pipe(images=image, text=prompt, max_new_tokens=4, return_full_text=False)[0]["generated_text"]
    assert plain == chat


def test_a_pipeline_answers_several_prompts_as_each_alone():
    """It pads the batch itself, on the side that the tokenizer names."""
    pipe = pipeline("image-text-to-text", model=str(POCKET), device="cpu", dtype="float32")
    pictures = [noise_image(90, 90), noise_image(60, 120, 1)]
    questions = ["Who wrote this book?", "Describe this picture in detail, please: all that there is to see."]
    chats = [
        [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": question}]}]
        for picture, question in zip(pictures, questions)
    ]
    settings = {"max_new_tokens": 8, "return_full_text": False}
    alone, together = (pipe(text=chats, batch_size=size, **settings) for size in (1, 2))
    texts = [[answer["generated_text"] for (answer,) in answers] for answers in (alone, together)]
    assert texts[0] == texts[1]
    assert all(texts[0])


def test_the_snippet_of_the_original_page():
    """Its own code, but for the address of the model, the picture and the device."""
    model_id = CHECKPOINT

    processor = AutoProcessor.from_pretrained(model_id, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(model_id, trust_remote_code=True, torch_dtype="auto").cpu()

    user_prompt = "<|user|>\n"
    assistant_prompt = "<|assistant|>\n"
    prompt_suffix = "<|end|>\n"
    question = "Could you please introduce this stock to me?"
    prompt = f"{user_prompt}<|image_1|>\n{question}{prompt_suffix}{assistant_prompt}"

    buffer = io.BytesIO()
    noise_image(200, 100).save(buffer, "PNG")
    image = Image.open(buffer)

    inputs = processor(prompt, image, return_tensors="pt").to("cpu")
    generate_ids = model.generate(
        **inputs,
        max_new_tokens=10,
        eos_token_id=processor.tokenizer.eos_token_id,
    )
    generate_ids = generate_ids[:, inputs["input_ids"].shape[1] :]
    response = processor.batch_decode(generate_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)[0]
    assert isinstance(response, str)
    assert generate_ids.shape == (1, 10)


def test_a_draft_model_sees_the_pictures(model, processor):
    inputs = processor(SHORT, images(0))
    assert generate(model, inputs, assistant_model=copy.deepcopy(model))[0].tolist() == greedy(model, inputs)


def test_no_image_token_whatever_is_suppressed(model, processor):
    inputs = processor(SHORT, images(0))
    new = generate(model, inputs, prompt_lookup_num_tokens=3, suppress_tokens=[5])[0].tolist()
    assert len(new) == 30
    assert not {5, model.config.image_token_id} & set(new)


def test_weights_that_are_fetched_when_needed(model, processor, monkeypatch):
    """accelerate's `cpu_offload` leaves only their shapes, on "meta": the input says where to compute."""
    inputs = processor(SHORT, images(0))
    expected = generate(model, inputs, 2)
    monkeypatch.setattr(type(model), "device", torch.device("meta"))
    assert torch.equal(generate(model, inputs, 2), expected)


def test_a_cache_that_must_be_rebuilt_needs_all_ids(model):
    ids = torch.arange(70)[None] + 5
    cache = model(input_ids=ids[:, :60])[CACHE]
    step = {"position_ids": torch.arange(70)[None], "is_first_iteration": True}
    with pytest.raises(ValueError, match="takes all 70 input_ids, got 10"):
        model.prepare_inputs_for_generation(ids[:, 60:], **{CACHE: cache}, **step)


@pytest.mark.parametrize("given", ["all", "new"])  # ids; a mask tells how many there are
@torch.no_grad()
def test_a_picture_right_after_the_cache(given):
    model = tiny_model(original_max_position_embeddings=512)
    inputs = tiny_processor(1)("a b <|image_1|> c", noise_image(9, 9))
    first = int((inputs["input_ids"][0] == model.config.image_token_id).nonzero()[0])
    expected = generate(model, inputs, 5)
    cache = DynamicCache(config=model.config)
    model(inputs["input_ids"][:, :first], **{CACHE: cache})
    if given == "new":
        inputs["input_ids"] = inputs["input_ids"][:, first:]
    assert torch.equal(generate(model, inputs, 5, **{CACHE: cache}), expected)


def test_a_prompt_as_long_as_the_model_takes():
    ids = torch.randint(3, 999, (1, 128))
    model = tiny_model(max_position_embeddings=128)
    assert model.generate(ids, max_new_tokens=1, eos_token_id=9999, pad_token_id=1000).shape == (1, 129)
