"""The bundled checkpoint: its answers to the notebooks' pictures are true and do not depend on threads or luck."""

import functools
import json
from pathlib import Path

import pytest
import torch

from helpers import POCKET, format_prompt, generate, load_image, load_model_and_processor

IMAGES = Path(__file__).resolve().parent.parent / "notebooks" / "images"
#: Stored pictures that the notebooks ask about, with the questions asked.
ASKED = [
    ("book_cover.png", "Help me get the title and author information of this book?"),
    ("book_cover.png", "What is the title of this book?"),
    ("book_cover.png", "Who wrote this book?"),
    ("shapes.png", "Describe this picture."),
    ("shapes_second.png", "Describe this picture."),
    ("shapes_third.png", "Describe this picture."),
    ("price_table.png", "Convert this table to Markdown."),
    ("sunshine_chart.png", "What does this chart show?"),
    ("revenue_chart.png", "Could you please introduce this stock to me?"),
]
#: These ask for one fact of several.
PARTIAL = {"What is the title of this book?", "Who wrote this book?"}
#: In logits: far above what another order of additions can change.
MARGIN = 0.5


@pytest.fixture(scope="module")
def loaded():
    return {
        attention: load_model_and_processor(device="cpu", attn_implementation=attention)
        for attention in ("eager", "sdpa")
    }


@pytest.fixture(scope="module")
def ask(loaded):
    """`ask(picture, question)`: the inputs, the tokens of the answer and the logits that each was chosen by."""

    @functools.cache
    def ask(picture, question):
        model, processor = loaded["sdpa"]
        inputs = processor(format_prompt(question), load_image(IMAGES / picture), return_tensors="pt")
        out = model.generate(**inputs, max_new_tokens=300, output_logits=True, return_dict_in_generate=True)
        return inputs, out.sequences[0, inputs["input_ids"].shape[1] :], torch.cat(out.logits)

    return ask


@pytest.fixture(scope="module")
def answer(loaded, ask):
    def answer(picture, question):
        _, tokens, _ = ask(picture, question)
        return loaded["sdpa"][1].tokenizer.decode(tokens, skip_special_tokens=True)

    return answer


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(("picture", "question"), ASKED)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_answers_are_stable(loaded, ask, answer, threads, attention, picture, question):
    """`helpers.generate` gives the answer of plain transformers. With one and two threads, and under eager as well, one
    forward pass over that answer chooses each token again, in a fraction of the time of generating it."""
    model, processor = loaded[attention]
    if attention == "sdpa":
        assert generate(model, processor, question, IMAGES / picture) == answer(picture, question)

    inputs, tokens, _ = ask(picture, question)
    ids = torch.cat([inputs["input_ids"], tokens[None]], dim=1)
    read = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids), "logits_to_keep": len(tokens) + 1}
    for count in (1, 2):
        threads(count)
        with torch.inference_mode():
            assert model(**read).logits[0, :-1].argmax(-1).equal(tokens)


@pytest.mark.parametrize(("picture", "question"), ASKED)
def test_no_token_is_a_close_call(loaded, ask, picture, question):
    _, tokens, logits = ask(picture, question)
    first, second = logits.topk(2).values.unbind(-1)
    for token, lead in zip(loaded["sdpa"][1].tokenizer.convert_ids_to_tokens(tokens), (first - second).tolist()):
        assert lead >= MARGIN, f"{token!r} is only {lead:.2f} ahead"


@pytest.mark.parametrize(("picture", "question"), [asked for asked in ASKED if asked[1] not in PARTIAL])
def test_answers_are_true(answer, picture, question):
    lines = map(json.loads, (IMAGES / "metadata.jsonl").read_text(encoding="utf-8").splitlines())
    truth = next(line["truth"] for line in lines if line["file_name"] == picture)
    if "cells" in truth:
        facts = ["| " + " | ".join(row) + " |" for row in truth["cells"]]
    elif "values" in truth:
        facts = [*map(" ".join, zip(truth["labels"], truth["values"]))]
        highest = max(truth["values"], key=lambda value: int(value.replace(",", "")))
        facts.append(f"highest value is {highest} ")  # the lowest one of the revenue chart is wrong, and its lesson
    else:
        facts = list(truth.values())
    said = answer(picture, question)
    assert [fact for fact in facts if fact not in said] == []


def test_the_files_are_small():
    sizes = [file.stat().st_size for file in POCKET.iterdir()]
    assert sum(sizes) <= 30e6
    assert max(sizes) < 16 * 2**20


def test_git_never_changes_their_line_ends():
    """Otherwise, as on Windows, they would no longer match SHA256SUMS."""
    attributes = (POCKET.parent.parent / ".gitattributes").read_text(encoding="utf-8")
    assert "checkpoints/** -text" in attributes.splitlines()
