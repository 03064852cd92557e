import json
import pickle
import random
import signal
import threading
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import helpers
from helpers import Answer, format_prompt, generate, stream

ENDS = [2, 1000, 1007]  # </s>, <|endoftext|>, <|end|> of the tiny checkpoint


@pytest.fixture(scope="module")
def picture(golden_images):
    return golden_images / "square_224x224.png"


@pytest.fixture(scope="module")
def long_prompt(golden_checkpoint):
    """505 tokens of text; the tiny model's short context ends at 512."""
    case = golden_checkpoint.parent / "cases" / "pub12_cross512_text.json"
    return json.loads(case.read_text(encoding="utf-8"))["prompt"]


def reference(model, processor, prompt, images=None, new_tokens=24) -> str:
    """The same answer by transformers' own loop."""
    inputs = processor(text=prompt, images=images, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False, eos_token_id=ENDS)
    ids = [token for token in ids[0, inputs["input_ids"].shape[1] :].tolist() if token not in ENDS]
    return processor.decode(ids, skip_special_tokens=True)


def test_equals_transformers(tiny, picture):
    prompt = format_prompt("What is this?")
    expected = reference(*tiny, prompt, [helpers.load_image(picture)])
    assert generate(*tiny, "What is this?", picture, max_new_tokens=24) == expected
    assert generate(*tiny, prompt, [picture], max_new_tokens=24) == expected


def test_equals_transformers_past_the_short_context(tiny, long_prompt, picture):
    assert generate(*tiny, long_prompt, max_new_tokens=24) == reference(*tiny, long_prompt)
    question = " ".join(["two lines of a table"] * 25)
    prompt = format_prompt(question)
    answer = generate(*tiny, question, picture, max_new_tokens=24)
    limit = tiny[0].config.original_max_position_embeddings
    assert answer.prompt_tokens < limit < answer.prompt_tokens + answer.new_tokens
    assert answer == reference(*tiny, prompt, [helpers.load_image(picture)])


@pytest.mark.parametrize("before", ["\n", "  ", "<s>", "<s>\n", "\n<s>"])
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_what_may_stand_before_a_whole_prompt(tiny, picture, before, system):
    prompt = format_prompt("What is this?", system=system)
    expected = reference(*tiny, prompt, [helpers.load_image(picture)], new_tokens=12)
    assert generate(*tiny, before + prompt, picture, max_new_tokens=12) == expected


def test_plain_question_without_picture(tiny):
    answer = generate(*tiny, "Hello", max_new_tokens=3)
    assert answer.image_tokens == 0
    assert answer == reference(*tiny, format_prompt("Hello", 0), new_tokens=3)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.5, "seed": 11}])
def test_stream_equals_generate(tiny, picture, long_prompt, sampling):
    for prompt, images in (("What is this?", [picture]), ("Compare", [picture, picture]), (long_prompt, [])):
        pieces = list(stream(*tiny, prompt, images, max_new_tokens=24, **sampling))
        assert len(pieces) > 3
        assert "".join(pieces) == generate(*tiny, prompt, images, max_new_tokens=24, **sampling)


class Scripted:
    """A stand-in for a model, that "generates" the ids it is given."""

    device = torch.device("cpu")
    config = SimpleNamespace(stop_token_ids=ENDS)
    generation_config = SimpleNamespace(cache_implementation=None)

    def __init__(self, ids):
        self.ids = ids

    def generate(self, **kwargs):
        return iter(self.ids)


def bytes_of(tokenizer, text):
    return [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in text.encode()]


def test_pieces_never_split_a_character(tiny):
    tokenizer = tiny[1].tokenizer
    words = tokenizer(" red circle", add_special_tokens=False).input_ids
    ids = words + bytes_of(tokenizer, "é漢🙂") + words + [ENDS[2]]
    pieces = list(stream(Scripted(ids), tiny[1], "x"))
    assert "".join(pieces) == tokenizer.decode(ids[:-1])
    assert "é漢🙂" in "".join(pieces)
    assert all("\ufffd" not in piece for piece in pieces)


def test_pieces_join_to_the_decoded_answer_for_any_ids(tiny):
    """Special tokens, broken bytes and leading spaces at every place."""
    tokenizer = tiny[1].tokenizer
    rng = random.Random(0)
    for _ in range(300):
        ids = [rng.randrange(3, 260 if rng.random() < 0.5 else 1000) for _ in range(rng.randrange(1, 12))]
        ids = [token if rng.random() < 0.9 else rng.choice([1001, 1010, 0, 1]) for token in ids]
        pieces = list(stream(Scripted(ids), tiny[1], "x"))
        assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)
        assert all(pieces)


def test_an_id_that_the_tokenizer_does_not_have(tiny):
    """The official head has more rows than the tokenizer pieces."""
    word = tiny[1].tokenizer(" circle", add_special_tokens=False).input_ids
    assert generate(Scripted([*word, 10**6, ENDS[0]]), tiny[1], "x").strip() == "circle"


@pytest.mark.parametrize("end", ENDS)
def test_end_tokens_finish_and_are_not_text(tiny, end):
    word = tiny[1].tokenizer(" circle", add_special_tokens=False).input_ids
    answer = generate(Scripted([*word, end]), tiny[1], "x")
    assert answer.strip() == "circle"
    assert answer.finished
    assert answer.new_tokens == len(word) + 1
    assert not generate(Scripted(word), tiny[1], "x").finished


def test_end_tokens_reach_the_model(tiny, monkeypatch):
    monkeypatch.setattr(tiny[0].generation_config, "eos_token_id", [5])  # whatever the checkpoint says
    free = generate(*tiny, "Hello", max_new_tokens=8)
    head = tiny[0].lm_head
    bias = torch.zeros(head.out_features)
    bias[ENDS[2]] = 1e6
    with head.register_forward_hook(lambda module, inputs, logits: logits + bias):
        ended = generate(*tiny, "Hello", max_new_tokens=8)
    assert (ended, ended.new_tokens, ended.finished) == ("", 1, True)
    assert (free.new_tokens, free.finished) == (8, False)


def test_answer_counts(tiny, picture):
    answer = generate(*tiny, "What is this?", [picture, picture], max_new_tokens=5)
    inputs = tiny[1](text=format_prompt("What is this?", 2), images=[Image.open(picture)] * 2)
    assert answer.prompt_tokens == inputs["input_ids"].shape[1]
    assert answer.image_tokens == 2 * 313
    assert answer.new_tokens == 5
    assert answer.tokens_per_second == 5 / answer.seconds
    assert answer.peak_memory is None or answer.peak_memory > 10**8
    assert "626 image + " in answer.cost()
    assert "cut off" in answer.cost()
    assert "\n" not in answer.cost()


def test_the_line_of_costs():
    answer = Answer("x", image_tokens=1300, prompt_tokens=1325, new_tokens=50, seconds=4.0, peak_memory=1_500_000_000)
    line = "1,300 image + 25 text tokens in, 50 out, 4.0 s (12.5 tokens/s), peak memory 1.50 GB"
    assert answer.cost() == line
    cut_off = Answer("x", **vars(answer) | {"finished": False})
    assert cut_off.cost() == line + "; cut off by max_new_tokens"


def test_answer_survives_pickling():
    answer = Answer("yes", new_tokens=4, seconds=2.0)
    again = pickle.loads(pickle.dumps(answer))  # noqa: S301
    assert (again, again.new_tokens, again.tokens_per_second) == ("yes", 4, 2.0)


def test_seed_repeats_and_leaves_torch_alone(tiny):
    settings = {"max_new_tokens": 12, "temperature": 1.0}
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second, other = (generate(*tiny, "Hello", seed=seed, **settings) for seed in (1, 1, 2))
    assert torch.rand(1) == expected
    assert first == second != other
    assert generate(*tiny, "Hello", **settings) != generate(*tiny, "Hello", **settings)


def test_a_low_temperature_leaves_no_choice(tiny):
    settings = {"max_new_tokens": 12, "seed": 1}
    likeliest = generate(*tiny, "Hello", max_new_tokens=12)
    assert generate(*tiny, "Hello", temperature=1e-6, **settings) == likeliest
    assert generate(*tiny, "Hello", temperature=1.0, **settings) != likeliest


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": 1.5}, "max_new_tokens is 1.5"),
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": 1e-39}, "temperature is 1e-39"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"temperature": 1, "seed": 1.7}, "seed is 1.7"),
        ({"temperature": 1, "seed": [1]}, "seed is .1."),
        ({"temperature": 1, "seed": float("nan")}, "seed is nan"),
        ({"temperature": 1, "seed": 2**64}, "seed is 18446744073709551616"),
        ({"prompt": ""}, "question is empty"),
        ({"prompt": None}, "question is empty"),
        ({"prompt": "<|user|>\nno tag<|end|>\n<|assistant|>\n"}, "0 image tags"),
    ],
)
def test_wrong_settings(tiny, picture, settings, message):
    with pytest.raises(ValueError, match=message):
        generate(*tiny, **{"prompt": "x", "images": picture, "max_new_tokens": 2} | settings)


@pytest.mark.parametrize(("function", "asked"), [(generate, "x"), (helpers.generate_many, ["x"])])
def test_a_forgotten_processor(tiny, picture, function, asked):
    model, processor = tiny
    for wrong in ((model, asked, [picture]), (processor, model, asked), (tiny, processor, asked)):
        with pytest.raises(ValueError, match="are the model and the processor"):
            function(*wrong)


def test_unreadable_picture(tiny):
    with pytest.raises(helpers.ImageLoadError):
        generate(*tiny, "x", "missing.png")


def test_closing_the_stream_stops_the_model(tiny):
    count = []
    with tiny[0].register_forward_hook(lambda *args: count.append(1)):
        pieces = stream(*tiny, "Hello", max_new_tokens=500)
        next(pieces)
        before = len(count)
        pieces.close()
    assert len(count) == before < 20


def test_gradients_are_off_for_the_model_and_on_for_the_caller(tiny):
    during = []
    with tiny[0].register_forward_hook(lambda *args: during.append(torch.is_grad_enabled())):
        for _ in stream(*tiny, "Hello", max_new_tokens=3):
            assert torch.is_grad_enabled()
    assert during == [False] * 3


@pytest.mark.usefixtures("ctrl_c")
def test_interrupt(tiny, picture):
    """Ctrl-C at random forward passes: it comes through at once and the next answer is as usual."""
    expected = generate(*tiny, "What is this?", picture, max_new_tokens=12)
    threads = threading.active_count()
    rng = random.Random(0)
    for _ in range(5):
        count, stop_at = [], rng.randrange(1, 10)

        def interrupt(*args, count=count, stop_at=stop_at):
            count.append(1)
            if len(count) == stop_at:
                signal.raise_signal(signal.SIGINT)

        with tiny[0].model.layers[0].register_forward_hook(interrupt), pytest.raises(KeyboardInterrupt):
            generate(*tiny, "What is this?", picture, max_new_tokens=12)
        assert len(count) == stop_at
        assert generate(*tiny, "What is this?", picture, max_new_tokens=12) == expected
    assert threading.active_count() == threads


def test_other_errors_come_through(tiny):
    def fail(*args):
        raise RuntimeError("something else")

    with tiny[0].model.layers[1].register_forward_hook(fail), pytest.raises(RuntimeError, match="something else"):
        generate(*tiny, "Hello")
