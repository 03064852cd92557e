"""training/tokenizer.py and what `train.Collate` makes of samples."""

import pytest

pytest.importorskip("fontpkg", reason='needs `pip install -e ".[training]"`')

import torch

from helpers import format_prompt
from training import pictures, tokenizer, train


def test_what_is_told_is_not_learned():
    """A label for each token that the model has to say itself, beginning right after what it was told."""
    collate = train.Collate(train.build_processor())
    for i in range(20):
        sample = pictures.draw("notes", "train", i)
        batch = collate([sample])
        learned = collate.processor.tokenizer.decode(batch["labels"][batch["labels"] != -100])
        assert learned.startswith(sample.turns[0][1].removeprefix(sample.told).strip() + "<|end|>")


def test_tokenizer_follows_the_official_layout():
    tok = tokenizer.build()
    base = tok.convert_tokens_to_ids("<|endoftext|>")
    expected = {"<|assistant|>": 1, "<|system|>": 6, "<|end|>": 7, "<|user|>": 10, "<|image|>": 44}
    assert {token: tok.convert_tokens_to_ids(token) - base for token in expected} == expected
    assert tokenizer.vocab_size(tok) == base + 64
    assert tok.convert_tokens_to_ids(["<unk>", "<s>", "</s>"]) == [0, 1, 2]


@pytest.mark.parametrize("text", ['The title of the book is "ALONE"', "Thunder titan", "a\nb", "héllo ✓ 漢", "tit"])
def test_tokenizer_gives_every_text_back(text):
    tok = tokenizer.build()
    assert tok.decode(tok(text).input_ids, skip_special_tokens=True) == text


def test_unknown_words_are_spelled():
    tok = tokenizer.build()
    assert tok.convert_ids_to_tokens(tok('"Morgan"').input_ids)[2:] == ['"', *"Morgan", '"']


def test_labels_are_what_the_assistant_says():
    processor = train.build_processor()
    sample = pictures.draw("cover", "heldout", 0)
    sample.turns = [("First?", "One."), ("Second?", "Two.")]
    inputs = train.Collate(processor)([sample])
    labels = inputs["labels"][0]
    assert processor.tokenizer.decode(labels[labels != -100]) == "One.<|end|> Two.<|end|><|endoftext|>"
    assert torch.equal(labels[labels != -100], inputs["input_ids"][0][labels != -100])


def test_training_prompts_are_those_of_generate():
    processor = train.build_processor()
    sample = pictures.draw("cover", "heldout", 0)
    question, _ = sample.turns[0]
    asked = processor(format_prompt(question), sample.images)["input_ids"][0]
    trained = train.Collate(processor)([sample])["input_ids"][0]
    assert torch.equal(asked, trained[: len(asked)])


def test_pixel_values_come_in_the_dtype_of_the_computation():
    collate = train.Collate(train.build_processor(), lessons=True, dtype=torch.bfloat16)
    assert collate([pictures.draw("cover", "train", 0)])["pixel_values"].dtype == torch.bfloat16


def test_batches_have_now_few_tiles_a_picture_and_now_many():
    torch.manual_seed(0)
    collate = train.Collate(train.build_processor(), lessons=True, num_crops=[1, 4])
    sample = pictures.draw("cover", "train", 0)
    tiles = [len(collate([sample])["classes"]) for _ in range(40)]
    assert set(tiles) == {2, 5}  # with the global view
    assert min(map(tiles.count, {2, 5})) >= 10
