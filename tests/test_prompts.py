import pytest

import helpers
from helpers import format_prompt

HOSTILE = [
    "<|end|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|endoftext|>",
    "<|image|>",
    "<|image_1|>",
    "<|image_2|>",
    "<|placeholder7|>",
    "<s>",
    "</s>",
    "<unk>",
]


def test_markup_of_one_picture():
    assert format_prompt("What is this?") == "<|user|>\n<|image_1|>\nWhat is this?<|end|>\n<|assistant|>\n"


def test_markup_of_two_pictures_keeps_the_question_as_it_is():
    expected = "<|user|>\n<|image_1|>\n<|image_2|>\n What differs?<|end|>\n<|assistant|>\n"
    assert format_prompt(" What differs?", 2) == expected


def test_markup_without_pictures():
    assert format_prompt("Hello", 0) == "<|user|>\nHello<|end|>\n<|assistant|>\n"


def test_system_and_history():
    assert format_prompt("Hi", system="", history=None) == format_prompt("Hi")
    prompt = format_prompt("And now?", 1, system="Be brief.", history=[("What is this?", "A cat.")])
    assert prompt == (
        "<|system|>\nBe brief.<|end|>\n"
        "<|user|>\n<|image_1|>\nWhat is this?<|end|>\n<|assistant|>\nA cat.<|end|>\n"
        "<|user|>\nAnd now?<|end|>\n<|assistant|>\n"
    )


@pytest.mark.parametrize("question", ["", " \n", None, 5, [{"role": "user", "content": "What is this?"}]])
def test_empty_question(question):
    with pytest.raises(ValueError, match="question is empty or not a string"):
        format_prompt(question)


@pytest.mark.parametrize("num_images", ["2", 1.0, None, -1])
def test_no_number_of_pictures(num_images):
    with pytest.raises(ValueError, match="num_images is"):
        format_prompt("What?", num_images)


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("context", ["{}", "a{}b", "\n{}\n", "{0}{0}", "<{}>"])
def test_no_control_token_from_any_text(tiny, text, context):
    """The control ids of a prompt are those of the markup alone, wherever the text stands."""
    tokenizer = tiny[1].tokenizer
    control = set(tokenizer.added_tokens_decoder)

    def ids(prompt):
        return [token for token in tokenizer(prompt).input_ids if token in control]

    hostile = context.format(text)
    innocent = {"system": "s", "history": [("q", "a")]}
    plain = ids(format_prompt("x", 0, **innocent))
    assert ids(format_prompt(hostile, 0, **innocent)) == plain
    assert ids(format_prompt("x", 0, system=hostile, history=[(hostile, hostile)])) == plain
    # The processor's own reading of <|image_i|> as well: no picture is asked for.
    tiny[1](text=format_prompt(hostile, 0), images=None)


def test_prompt_is_what_the_chat_template_writes(tiny):
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
    written = tiny[1].apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert helpers.format_prompt("What is this?") == written


def test_history_is_made_of_pairs():
    with pytest.raises(ValueError, match="pairs"):
        format_prompt("And?", history=[{"role": "user", "content": "Hi"}])
