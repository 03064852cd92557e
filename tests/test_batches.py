import sys

import pytest
import torch
from phi3_v_data import noise_image
from PIL import Image

from helpers import ImageLoadError, generate, generate_many

PROMPTS = [
    "What is this?",
    "word " * 60,
    "<|user|>\nHello<|end|>\n<|assistant|>\n",
    "And these?",
    "a b c",
    "x",
    "a " * 30,
]


@pytest.fixture(scope="module")
def images():
    first, second = noise_image(90, 90), noise_image(120, 90, 1)
    return [first, second, [], [first, second], [first], second, []]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_as_one_by_one(tiny, images, batch_size):
    """Rows of all lengths, with two pictures, one or none; two of them pass the short context while answering."""
    expected = [generate(*tiny, *pair, max_new_tokens=16) for pair in zip(PROMPTS, images)]
    answers = generate_many(*tiny, PROMPTS, images, batch_size=batch_size, max_new_tokens=16)
    assert answers == expected
    for name in ("image_tokens", "prompt_tokens", "new_tokens", "finished"):
        assert [getattr(answer, name) for answer in answers] == [getattr(answer, name) for answer in expected]


def test_a_tokenizer_that_was_set_for_training(tiny, images, monkeypatch):
    before = generate_many(*tiny, PROMPTS, images, max_new_tokens=8)
    monkeypatch.setattr(tiny[1].tokenizer, "padding_side", "right")
    assert generate_many(*tiny, PROMPTS, images, max_new_tokens=8) == before


@pytest.mark.parametrize("setting", ["num_return_sequences", "prompt_lookup_num_tokens", "num_beams"])
def test_settings_of_a_checkpoint_that_would_change_the_answers(tiny, images, monkeypatch, setting):
    model, processor = tiny
    asked, pictures = ["What?", "Who is it?"], images[:2]
    before = generate_many(model, processor, asked, pictures, max_new_tokens=8, progress=False)
    monkeypatch.setattr(model.generation_config, "do_sample", True)
    monkeypatch.setattr(model.generation_config, setting, 2)
    assert generate_many(model, processor, asked, pictures, max_new_tokens=8, progress=False) == before
    assert [generate(model, processor, *pair, max_new_tokens=8) for pair in zip(asked, pictures)] == before


def test_an_answer_tells_whether_it_was_cut_off(tiny, images):
    """The first prompt ends its answer at once, the second goes on until it is cut off."""
    end = tiny[1].tokenizer.convert_tokens_to_ids("<|end|>")

    def force(module, inputs, logits):
        logits[0, :, end] = 1e6
        return logits

    with tiny[0].lm_head.register_forward_hook(force):
        answers = generate_many(*tiny, PROMPTS[:2], images[:2], max_new_tokens=4, progress=False)
    assert [(answer.new_tokens, answer.finished) for answer in answers] == [(1, True), (4, False)]
    assert answers[0] == ""
    assert answers[0].seconds == answers[1].seconds > 0


@pytest.mark.parametrize(
    ("picture", "error"), [("missing.png", ImageLoadError), (Image.new("RGB", (1000, 1)), ValueError)]
)
def test_a_broken_picture_or_a_wrong_tag_costs_no_answers(tiny, images, picture, error):
    batches = []
    with tiny[0].register_forward_hook(lambda *args: batches.append(1)):
        for i in (0, 2):
            with pytest.raises(error, match=rf"^Question \[{i}\]: "):
                generate_many(*tiny, PROMPTS[:3], images[:i] + [picture] + images[i + 1 : 3], batch_size=1)
        prompts = ["word " * 30, "<|user|>\n<|image_2|>\nHello<|end|>\n<|assistant|>\n"]
        with pytest.raises(ValueError, match=r"^Question \[1\]: .*image tags"):
            generate_many(*tiny, prompts, images[:2], batch_size=1)
        with pytest.raises(ValueError, match=r"^Question \[1\]: The question is empty"):
            generate_many(*tiny, ["Hello", float("nan")], images[:2])
        for text, said in (("\ud800", "half a character"), ("<|user|>\n<|image|>", r"The prompt holds <\|image\|>")):
            with pytest.raises(ValueError, match=rf"^Question \[1\]: .*{said}"):
                generate_many(*tiny, ["word " * 30, text], batch_size=1)
    assert not batches


@pytest.mark.parametrize("address", ["https://example.com/a.png", "HTTP://example.com/a.png"])
def test_a_web_address_is_fetched_once(tiny, images, monkeypatch, address):
    """A file is read again instead: hundreds of decoded pictures may not fit into memory."""
    loaded = []

    def load(source):
        loaded.append(source)
        return images[0]

    monkeypatch.setattr("helpers.batches.load_image", load)
    generate_many(*tiny, ["x"], [address], max_new_tokens=1, progress=False)
    generate_many(*tiny, ["x"], ["a.png"], max_new_tokens=1, progress=False)
    assert loaded == [address, images[0], "a.png", "a.png"]


def test_out_of_memory_says_what_to_change(tiny, images):
    """In the first batch, which is the longest."""
    lengths = []

    def fail(module, args, output):
        lengths.append(output.shape[1])
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    advice = r"num_crops.*quantization.*batch_size"
    with tiny[0].model.embed_tokens.register_forward_hook(fail), pytest.raises(RuntimeError, match=advice) as caught:
        generate_many(*tiny, PROMPTS, images, batch_size=3)
    assert caught.value.__context__ is None
    assert len(lengths) == 1
    assert lengths[0] > 600  # with two pictures


@pytest.mark.parametrize("notebook", [True, False])
def test_the_progress_bar_looks_like_neither_a_warning_nor_a_result(tiny, images, capfd, monkeypatch, notebook):
    monkeypatch.setitem(sys.modules, "ipykernel", object())
    if not notebook:
        monkeypatch.delitem(sys.modules, "ipykernel")
    generate_many(*tiny, PROMPTS[:2], images[:2], max_new_tokens=2)
    out, err = capfd.readouterr()
    assert "/2" in (out if notebook else err)
    assert (err if notebook else out) == ""
    generate_many(*tiny, PROMPTS[:2], images[:2], max_new_tokens=2, progress=False)
    assert capfd.readouterr() == ("", "")


def test_nothing_to_do(tiny):
    assert generate_many(*tiny, [], []) == []


def test_wrong_counts(tiny, images):
    with pytest.raises(ValueError, match="2 prompts but 1 pictures"):
        generate_many(*tiny, PROMPTS[:2], images[:1])
    with pytest.raises(ValueError, match="batch_size is 0"):
        generate_many(*tiny, PROMPTS[:2], images[:2], batch_size=0)
    with pytest.raises(ValueError, match="0 images"):
        generate_many(*tiny, ["<|user|>\n<|image_1|>\nHello<|end|>\n<|assistant|>\n"], [[]])


def test_one_question_is_not_many(tiny, images):
    for asked in (("Hi", images[:2]), (PROMPTS[:1], "picture.png")):
        with pytest.raises(ValueError, match="are lists"):
            generate_many(*tiny, *asked)


def test_no_picture(tiny):
    ((none, nothing),) = [generate_many(*tiny, PROMPTS[:2], [None, []], max_new_tokens=4, progress=False)]
    assert none == generate(*tiny, PROMPTS[0], None, max_new_tokens=4)
    assert nothing == generate(*tiny, PROMPTS[1], max_new_tokens=4)


def test_a_column_of_a_table(tiny, images):
    """Its rows are taken by position, whatever their labels are."""
    pd = pytest.importorskip("pandas")

    table = pd.DataFrame({"prompt": PROMPTS, "images": images}, index=range(len(PROMPTS), 0, -1))
    assert generate_many(*tiny, table["prompt"], table["images"], max_new_tokens=4, progress=False) == generate_many(
        *tiny, PROMPTS, images, max_new_tokens=4, progress=False
    )


@pytest.mark.parametrize("nothing", [(), (None,), ([None, None],), ([float("nan"), []],)], ids=repr)
def test_questions_without_pictures(tiny, nothing):
    """No pictures at all, None for all, or an empty cell of a table, as pandas reads it, for one."""
    asked, settings = ["What?", "Who is it?"], {"max_new_tokens": 4}
    expected = [generate(*tiny, question, **settings) for question in asked]
    assert generate_many(*tiny, asked, *nothing, progress=False, **settings) == expected
