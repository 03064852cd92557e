"""training/reading.py and training/looking.py: the lessons beside the answers."""

import re

import numpy as np
import pytest

pytest.importorskip("fontpkg", reason='needs `pip install -e ".[training]"`')

import torch
from training_data import small_model

from training import looking, pictures, reading, train
from training.pictures import cover, fonts
from training.pictures.canvas import Canvas
from training.pictures.sample import CHARACTERS


def test_lessons_name_the_character_on_each_part_of_a_patch():
    # 448 x 224 pixels: two tiles. One character fills the left half of the right tile, one covers a single half patch
    # of the left tile, one is as narrow as a quarter of a patch, and one is too small to be read.
    boxes = [[5, 224, 0, 336, 224], [7, 7, 14, 14, 28], [8, 143.5, 14, 147, 28], [9, 70, 70, 77, 76]]
    classes, places = reading.lessons((448, 224), np.array(boxes, dtype=np.float32))
    whole, left, right = classes.reshape(3, 16, 64)
    assert (right[:, :32] == 5).all()
    assert (right[:, 32:] == reading.NONE).all()
    assert (left[1, 2:4] == 7).all()
    assert (left == 7).sum() == 2
    assert np.allclose(places[1].reshape(16, 64, 3)[1, 2], [0.125, 0, 0.5])
    assert left[1, 41] == 8
    assert (left == 8).sum() == 1
    assert left[5, 20] == reading.IGNORED
    # The global view squeezes both tiles into one: the large character fills its third quarter.
    assert (whole[:, 32:48] == 5).all()
    assert (whole[:, 48:] == reading.NONE).all()


def test_lessons_follow_the_picture_into_its_padding():
    # 224 x 448 pixels would be two tiles; 336 x 448 are padded to 448 x 448, 56 pixels on each side.
    classes, _ = reading.lessons((336, 448), np.array([[3, 0, 0, 168, 224]], dtype=np.float32))
    upper_left = classes[1].reshape(16, 64)
    assert (upper_left[:, :16] == reading.NONE).all()
    assert (upper_left[:, 16:] == 3).all()


def test_lessons_shrink_with_the_picture_where_it_gets_fewer_tiles():
    # In a single tile of 224 x 224 pixels, 336 x 448 become 168 x 224, with 28 on each side.
    classes, _ = reading.lessons((336, 448), np.array([[3, 0, 0, 336, 448]], dtype=np.float32), num_crops=1)
    only_tile = classes[1].reshape(16, 64)
    assert (only_tile[:, 8:56] == 3).all()
    assert (only_tile == 3).sum() == 16 * 48


def test_a_picture_of_unknown_characters_teaches_no_reading():
    classes, boxes = reading.lessons((448, 448), np.zeros((0, 5), dtype=np.float32))
    assert (classes == reading.IGNORED).all()
    predicted = torch.zeros(5, 256, 4, reading.NONE + 1), boxes, torch.zeros(5, 256, 4, 3)
    loss, accuracy = reading.loss_and_accuracy(predicted, torch.zeros(5, 3, 224, 224), classes, boxes)
    assert (loss, accuracy) == (0, 0)


@pytest.mark.parametrize(
    ("kind", "num_crops"), [*((kind, 4) for kind in sorted(pictures.KINDS)), ("chart", 9), ("several", 1)]
)
def test_every_picture_has_its_lessons_tile_by_tile(kind, num_crops):
    collate = train.Collate(train.build_processor(), lessons=True, num_crops=[num_crops])
    samples = [pictures.draw(kind, "train", i) for i in range(2)]
    batch = collate(samples)
    if kind == "notes":
        assert "classes" not in batch
        return
    assert batch["classes"].shape[1:] == (256, 4)
    model = small_model(collate.processor)
    reader = reading.FeatureReader(model.model.vision_embed_tokens)
    model.model.vision_embed_tokens.tiles_at_once = 4  # so that a CPU calls the tower several times
    loss, lesson, _, measures = train.loss_and_measures(model, batch, torch.device("cpu"), reader)
    alone = [reading.PROCESSOR(image, num_crops=num_crops) for sample in samples for image in sample.images]
    numbers = [int(height) * int(width) // 224**2 + 1 for height, width in batch["image_sizes"]]
    assert len(batch["classes"]) == sum(numbers)
    assert torch.equal(reader.tiles, torch.cat([a["pixel_values"][0, :n] for a, n in zip(alone, numbers)]))
    expected = model.vision_tower(reader.tiles).last_hidden_state[:, 1:]  # without the class token
    torch.testing.assert_close(reader.hidden_states, expected)
    (loss + lesson).backward()
    assert model.vision_tower.encoder.layers[0].mlp.fc1.weight.grad.any()
    assert reader.projected_head.weight.grad.any() or not any(len(marks) for s in samples for marks in s.characters)
    assert measures["whole"] == 0


@pytest.mark.parametrize(("kind", "num_crops"), [("chart", 4), ("cover", 4), ("table", 4), ("table", 9)])
def test_lessons_in_looking_point_to_the_character_that_is_said_next(kind, num_crops):
    collate = train.Collate(train.build_processor(), lessons=True, num_crops=[num_crops])
    samples = [pictures.draw(kind, "heldout", i) for i in range(8)]
    batch = collate(samples)
    image_token = collate.image
    assert len(batch["looks"]) > 100
    for row, position, target in batch["looks"].tolist():
        ids, sample = batch["input_ids"][row].tolist(), samples[row]
        said = collate.processor.tokenizer.convert_ids_to_tokens(ids[position + 1]).replace("▁", "")
        assert ids[target] == image_token
        features = looking.features_of(sample.images[0].size, sample.characters[0], num_crops) + ids.index(image_token)
        there = [CHARACTERS[int(index)] for index in sample.characters[0][features == target, 0]]
        assert said[0] in there


def test_what_cannot_be_seen_is_not_looked_for():
    sample = pictures.draw("mismatch", "train", 0)
    assert looking.looks_of(sample, list(sample.turns[0][1])) == []


def test_words_are_cut_at_gaps_and_lines():
    canvas, font = Canvas(300, 100, "white"), fonts.load(fonts.TRAIN[0], 20, 400)
    canvas.text(10, 30, "Two words", font, "black")
    canvas.text(10, 60, "Line", font, "black")
    assert looking.words_of(canvas.characters) == [("Two", 0), ("words", 3), ("Line", 8)]


def test_a_word_is_looked_for_where_it_is_drawn():
    canvas, font = Canvas(300, 200, "white"), fonts.load(fonts.TRAIN[0], 20, 400)
    for line, text in enumerate(("Price", "Lemon $5", "Apple $5", "Pear 12")):
        canvas.text(10, 30 * (line + 1), text, font, "black")
    answer = "a) Lemon: Price $5. b) Apple: Price $5. c) Pear: Price 12. Pear is in c): Price 12."
    places = looking.places_of(answer, canvas.characters)
    read = {k: "PriceLemon$5Apple$5Pear12"[place] for k, place in places.items()}
    assert all(answer[k] == character for k, character in read.items())
    assert {places[found.start()] for found in re.finditer("Price", answer[:55])} == {0}
    assert [places[found.start()] for found in re.finditer(r"\$5", answer)] == [10, 17]
    assert max(places) == answer.index("12") + 1  # what is said a second time is concluded, not read


def test_a_cover_is_looked_at_for_its_title_and_author_alone():
    facts = {"title": "The Author of", "author": "Theo The"}
    answer = cover.ANSWER.format(**facts)
    kept = looking.only(facts.values(), answer)
    assert len(kept) == len(answer)
    assert kept.split() == ["The", "Author", "of", "Theo", "The"]
    assert all(letter in (" ", answer[k]) for k, letter in enumerate(kept))
    assert looking.only(facts.values(), cover.AUTHOR_ANSWER.format(**facts)).strip() == "Theo The"

    samples = (pictures.draw("cover", "train", i) for i in range(1000))
    sample = next(s for s in samples if {"The", "of"} & set(s.truth["title"].split()) and '"' in s.turns[0][1])
    answer = sample.turns[0][1]
    looks = looking.looks_of(sample, list(answer))
    assert looks
    assert min(token for token, _ in looks) > answer.index('"')


def test_the_lesson_in_looking_is_about_the_attention_that_the_model_pays():
    torch.manual_seed(0)
    collate = train.Collate(train.build_processor(), lessons=True)
    model = train.Phi3VForCausalLM(train.build_config(collate.processor)).eval()
    model.set_attn_implementation("eager")
    lesson = looking.Looking(model)
    batch = collate([pictures.draw("table", "train", i) for i in range(2)])
    looks = batch["looks"]
    inputs = {name: batch[name] for name in ("input_ids", "pixel_values", "image_sizes")}
    with torch.no_grad():
        attentions = model(**inputs, output_attentions=True).attentions
        loss, _ = lesson.loss_and_accuracy(looks)
    rows, queries, keys = looks.T
    paid = [attentions[layer][rows, looking.HEAD, queries, keys] for layer in looking.LAYERS]
    torch.testing.assert_close(loss, -sum(part.log().mean() for part in paid), rtol=1e-4, atol=1e-4)


def test_a_padded_row_learns_what_it_learns_alone():
    """Without a mask: the padding is on the right, where no other position looks."""
    torch.manual_seed(0)
    collate = train.Collate(train.build_processor())
    model = train.Phi3VForCausalLM(train.build_config(collate.processor)).eval()
    samples = [pictures.draw(kind, "train", 0) for kind in ("cover", "table")]
    batch = collate(samples)
    loss, *_ = train.loss_and_measures(model, batch, torch.device("cpu"))
    alone = [collate([sample]) for sample in samples]
    losses = [train.loss_and_measures(model, one, torch.device("cpu"))[0] for one in alone]
    counts = [(one["labels"][:, 1:] != -100).sum() for one in alone]
    assert len({one["input_ids"].shape[1] for one in alone}) == 2
    expected = sum(part * count for part, count in zip(losses, counts)) / sum(counts)
    torch.testing.assert_close(loss, expected, rtol=0, atol=2e-5)


def test_a_head_learns_to_look():
    torch.manual_seed(0)
    collate = train.Collate(train.build_processor(), lessons=True)
    model = small_model(collate.processor, 2)
    lesson = looking.Looking(model, layers=(1,))
    batch = collate([pictures.draw("table", "train", i) for i in range(2)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        *_, look, measures = train.loss_and_measures(model, batch, torch.device("cpu"), looking=lesson)
        look.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(look.item())
    assert losses[-1] < losses[0]
    assert 0 <= measures["look"] <= 1


def test_reading_is_measured_where_the_decoder_reads():
    """On the projected features, the last of the two guesses."""
    classes, boxes = torch.full((1, 256, 4), 5), torch.zeros(1, 256, 4, 3)
    right, wrong = (torch.eye(reading.NONE + 1)[torch.full((1, 256, 4), label)] for label in (5, 6))
    tiles = torch.zeros(1, 3, 224, 224)
    assert reading.loss_and_accuracy((right, boxes, boxes), tiles, classes, boxes)[1] == 1
    assert reading.loss_and_accuracy((right, boxes, boxes, wrong), tiles, classes, boxes)[1] == 0
    assert reading.loss_and_accuracy((wrong, boxes, boxes, right), tiles, classes, boxes)[1] == 1
    classes[:, 128:] = reading.IGNORED
    assert reading.loss_and_accuracy((right, boxes, boxes), tiles, classes, boxes)[1] == 1


def test_what_projected_features_say_goes_back_to_its_patch():
    images = small_model(train.build_processor()).model.vision_embed_tokens
    reader = reading.FeatureReader(images)
    channels = images.img_projection[0].in_features // 4
    reader.hidden_states = torch.randn(2, 256, channels)
    copies = torch.zeros(4, reading.PARTS, reading.NONE + 1, 4, channels)
    for patch in range(4):  # of a feature: each part's first logit is the first channel of its patch
        copies[patch, :, 0, patch, 0] = 1
    reader.projected_head = torch.nn.Linear(4 * channels, copies[..., 0, 0].numel(), bias=False)
    reader.projected_head.weight.data = copies.flatten(0, 2).flatten(1)
    *_, again = reader(torch.nn.Identity())
    assert torch.equal(again[..., 0], reader.hidden_states[..., :1].expand(-1, -1, reading.PARTS))


@pytest.mark.parametrize("wrong", [1, 2])
def test_places_and_colours_are_lessons_too(wrong):
    classes, boxes = torch.full((1, 256, 4), 5), torch.zeros(1, 256, 4, 3)
    predicted = [torch.eye(reading.NONE + 1)[classes], boxes, boxes]
    tiles = torch.zeros(1, 3, 224, 224)
    best, _ = reading.loss_and_accuracy(predicted, tiles, classes, boxes)
    predicted[wrong] = boxes + 1
    assert reading.loss_and_accuracy(predicted, tiles, classes, boxes)[0] > best


def test_colors_of_parts():
    tiles = torch.zeros(2, 3, 224, 224)
    tiles[1, 0, :14, 7:14] = 1  # the right half of the first patch is red
    colors = reading.colors_of(tiles)
    assert colors.shape == (2, 256, 4, 3)
    assert colors[1, 0].tolist() == [[0, 0, 0], [0, 0, 0], [1, 0, 0], [1, 0, 0]]
    assert colors.sum() == 2
