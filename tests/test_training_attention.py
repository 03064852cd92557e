"""training/attention.py and what tells it where to look: finding.py and looking.py."""

import itertools

import pytest

pytest.importorskip("fontpkg", reason='needs `pip install -e ".[training]"`')
pytest.importorskip("matplotlib", reason='needs `pip install -e ".[training]"`')

import torch
from PIL import Image

from training import attention, finding, looking, pictures, train
from training.pictures.sample import CHARACTERS, Sample

LIST = "3 at Apple; 12 at Bean; 4 at Corn."


def found_in(text: str) -> tuple[dict[int, int], dict[int, int]]:
    """Where each position of a text, a token a letter, binds to and what it finds."""
    bind, find = finding.lessons(list(text))
    return dict(bind), dict(find)


@pytest.mark.parametrize(
    ("before", "statement", "source"),
    [
        (LIST, " The highest value is 12 at Bean.", " 12 at Bean;"),
        (" Apple 3; Bean 12; Corn 4.", " The value of Corn is 4. ", " Corn 4."),
        (
            " shows a red star at the top left, a red heart at the center.",
            " The red heart is at the center.",
            " center",
        ),
        (" Bean: Price $2; Stock 12.", " The Stock of Bean is 12. ", " 12."),
    ],
)
def test_what_is_said_again_is_found_letter_by_letter(before, statement, source):
    text = before + statement
    bind, find = found_in(text)
    looks = {here: there for here, there in find.items() if here >= len(before)}
    assert looks
    for here, there in looks.items():
        assert text[there] == text[here + 1]
        assert before.index(source) <= there < before.index(source) + len(source)
        assert text[bind[here] + 1] in " ;"  # the end of a word that stands before
        assert bind[here] < here


def test_things_are_counted_one_after_the_other():
    shown = " shows a red star at the top left, a red heart at the center, a blue star at the bottom right."
    text = shown + " 1: top left, 2: bottom right. There are two stars."
    _, find = found_in(text)
    for place in (" top left", " bottom right"):
        here, there = text.index(place, len(shown)), text.index(place)
        assert [find[here - 1 + i] for i in range(len(place))] == [there + i for i in range(len(place))]
    assert find[len(shown) - 1] == text.index(" top left")
    assert find[text.index(", 2:") - 1] == text.index(" bottom right")


def test_only_the_same_pair_is_found():
    text = LIST + " The lowest value is 5 at Bean."
    _, find = found_in(text)
    assert not [here for here in find if here > len(LIST)]


def test_sides_are_compared_letter_by_letter():
    text = "Q1 20: first 3,120, second 3,170, different. Q2 20: first 9.5, second 9.4, different. "
    text += "At the top left: first a blue heart, second a pink star, different. "
    text += "From 47.1 at 2019 to 83.6 at 2025 the trend rises."
    bind, _ = found_in(text)
    for one, other in (("3,120", "3,170"), ("9.5", "9.4"), ("blue", "pink"), ("heart", "star"), ("47.1", "83.6")):
        first, second = text.index(one), text.index(other)
        assert [bind[second + i] for i in range(len(other))] == [first + i for i in range(len(other))]


@pytest.mark.parametrize("kind", ["cover", "page", "chart", "table"])
def test_letters_are_looked_for_where_they_stand(kind):
    """An image token that a letter looks at has that letter among the reading lessons of its patches."""
    collate = train.Collate(train.build_processor(), read=True)
    texts, image, letters = collate.attention.texts, collate.attention.image, 0
    for i in range(12):
        sample = pictures.draw(kind, "train", i)
        if not len(sample.characters[0]):
            continue
        batch = collate([sample])
        ids = batch["input_ids"][0].tolist()
        # Rows of tiles and, behind them, the global view, as the image tokens are ordered; a row's end shows nothing.
        classes = batch["classes"].unflatten(1, (8, 2, 8, 2)).transpose(2, 3).flatten(3).flatten(4 - 1)
        height, width = (int(side) // 224 for side in batch["image_sizes"][0])
        tiles = classes[1:].unflatten(0, (height, width)).transpose(1, 2).flatten(0, 1).flatten(1, 2)
        rows = [*tiles, [[-1]], *classes[0]]
        shown = {}
        position = ids.index(image)
        for row in rows:
            for cell in row:
                shown[position] = [int(c) for c in cell]
                position += 1
            position += len(row) > 1
        looks = {}
        for _, here, there in batch["here"].tolist():
            looks.setdefault(here, []).append(there)
        for here, places in looks.items():
            letter = CHARACTERS.index(texts[ids[here]].strip()[0])
            assert any(letter in shown.get(place, ()) for place in places), (i, texts[ids[here]])
            letters += 1
    assert letters > 100


def test_things_are_looked_for_in_their_place():
    image = Image.new("RGB", (448, 448))
    truth, things = {}, "The picture shows a red star at the top left, a blue heart at the bottom right."
    sample = Sample("scene", [image], [("Describe this picture.", things)], truth, [torch.zeros(1, 5).numpy()])
    tokens = 16 * 17 + 1 + 8 * 9
    parts = [""] * tokens + ["<|assistant|>", *things]
    pairs = looking.lessons(parts, [part == "" for part in parts], sample)
    star, heart = tokens + 1 + things.index("star"), tokens + 1 + things.index("heart")
    in_rows = {
        here: {divmod(there, 17) for word, there in pairs if word == here and there < 16 * 17} for here, _ in pairs
    }
    assert in_rows[star] == set(itertools.product(range(5), range(5)))
    assert in_rows[heart] == set(itertools.product(range(11, 16), range(11, 16)))


def test_attention_is_that_of_the_model():
    collate = train.Collate(train.build_processor())
    batch = collate([pictures.draw("notes", "train", i) for i in range(2)])
    model = train.Phi3VForCausalLM(train.build_config(collate.processor)).model.eval()
    model.set_attn_implementation("eager")
    mask = batch["attention_mask"]
    with torch.no_grad():
        outputs = model(batch["input_ids"], attention_mask=mask, output_hidden_states=True, output_attentions=True)
        for (layer, head), (row, real) in itertools.product(attention.HEADS.values(), enumerate(mask.bool())):
            here = torch.arange(3, int(real.sum()), 5)
            logs = attention.attention(model, outputs.hidden_states[layer][row][real], here, layer, head)
            models = outputs.attentions[layer][row, head][real][:, real][here]
            torch.testing.assert_close(logs.exp(), models, atol=1e-5, rtol=1e-4)


def test_the_loss_is_that_of_looking_elsewhere():
    collate = train.Collate(train.build_processor())
    samples = [pictures.draw("notes", "train", i) for i in range(4)]
    batch = collate(samples)
    assert all(len(batch[name]) == 0 for name in ("here", "next"))
    model = train.Phi3VForCausalLM(train.build_config(collate.processor)).model
    hidden_states = [torch.zeros(*batch["input_ids"].shape, 288)] * 6
    loss, right = attention.loss_and_accuracy(model, hidden_states, batch["attention_mask"], batch)
    assert set(right) == {"bind", "find"}
    assert loss > 2  # nothing is known: as far as from anywhere
    everywhere = {name: torch.zeros(0, 3, dtype=torch.int64) for name in attention.HEADS}
    assert attention.loss_and_accuracy(model, hidden_states, batch["attention_mask"], everywhere) == (0, {})
