"""training/: the drawn pictures, the tokenizer, and a few steps of both stages on the smallest amount of data."""

import json
import math
import os
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("fontpkg", reason='needs `pip install -e ".[training]"`')
pytest.importorskip("matplotlib", reason='needs `pip install -e ".[training]"`')

import torch
from phi3_v_data import tiny_config, tiny_model
from PIL import Image

from helpers import POCKET, format_prompt, load_model_and_processor
from training import (
    evaluate,
    grow,
    looking,
    notebook_images,
    pictures,
    plot,
    pretrain_vision,
    reading,
    recipe,
    scores,
    soup,
    tokenizer,
    train,
)
from training.loop import Muon, Run, again, inner_matrices, optimizers, start, stream_of_batches
from training.pictures import cover, fonts, words
from training.pictures.canvas import Canvas
from training.pictures.sample import CHARACTERS, SHAPES


@pytest.mark.parametrize("kind", pictures.KINDS)
@pytest.mark.parametrize("split", pictures.SPLITS)
def test_a_picture_is_the_same_every_time(kind, split):
    first, again = (pictures.draw(kind, split, 3) for _ in range(2))
    assert first.turns == again.turns
    assert all(map(np.array_equal, first.images, again.images))
    assert first.turns != pictures.draw(kind, split, 4).turns


def test_held_out_words_and_fonts_are_never_trained_on():
    assert not set(fonts.TRAIN) & set(fonts.HELD_OUT)
    assert len(fonts.TRAIN) >= 20
    seen = {
        split: {
            word.lower()
            for i in range(150)
            for word in pictures.draw("cover", split, i).truth["title"].split()
            if len(word) > 4 and word.isalpha()
        }
        for split in ("train", "heldout")
    }
    assert len(seen["train"]) > 50
    assert len(seen["heldout"]) > 50
    assert not seen["train"] & seen["heldout"]
    assert all(words.held_out(word) for word in seen["heldout"])


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_every_word_in_a_table_is_of_its_split(split):
    """A word that is cut to fit is another word."""
    rows = [row for i in range(150) for row in pictures.table.content(random.Random(i), split)]
    found = {cell for row in rows for cell in row if cell.isalpha()}
    assert len(found) > 300
    assert [word for word in found if words.held_out(word) != (split != "train")] == []


@pytest.mark.parametrize(("split", "number"), [("train", 455), ("heldout", 363), ("heldout_fonts", 489)])
def test_no_line_of_a_cover_runs_out_of_it(split, number):
    """An author of two lines under a long title."""
    sample = pictures.draw("cover", split, number)
    assert sample.characters[0][:, 4].max() <= sample.images[0].height


def test_only_training_has_foreign_words_and_shuffled_letters():
    known = set(words.COMMON)
    shares = {}
    for split in ("train", "heldout"):
        rng = random.Random(0)
        shares[split] = sum(words.word(rng, split) in known for _ in range(2000)) / 2000
    assert 0.3 < shares["train"] < 0.5
    assert 0.7 < shares["heldout"] < 0.8


def test_answers_state_what_the_cover_says():
    for i in range(20):
        sample = pictures.draw("cover", "heldout", i)
        _, answer = sample.turns[0]
        assert (
            answer == f'The title of the book is "{sample.truth["title"]}" and the author is {sample.truth["author"]}.'
        )


def test_a_chart_is_described_by_its_own_numbers():
    for i in range(40):
        sample = pictures.draw("chart", "heldout", i)
        _, answer = sample.turns[0]
        numbers = [float(value.replace(",", "")) for value in sample.truth["values"]]
        labels, values = sample.truth["labels"], sample.truth["values"]
        assert f'"{sample.truth["title"]}" shows values in {sample.truth["unit"]}: ' in answer
        items = [f"{letter}) {label} {value}" for letter, label, value in zip("abcdefgh", labels, values)]
        assert "; ".join(items) in answer
        high, low = numbers.index(max(numbers)), numbers.index(min(numbers))
        assert f"The highest value is {values[high]} in {items[high].removesuffix(values[high]).strip()}, " in answer
        assert f"the lowest is {values[low]} in {items[low].removesuffix(values[low]).strip()}." in answer
        assert numbers.count(max(numbers)) == numbers.count(min(numbers)) == 1
        assert (f"From {items[0]} to {items[-1]} the value" in answer) == sample.truth["ordered"]


def test_a_table_is_its_cells():
    for i in range(40):
        sample = pictures.draw("table", "heldout", i)
        lines = sample.turns[0][1].split("\n")
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        assert cells[:1] + cells[2:] == sample.truth["cells"]
        assert all(set(cell) == {"-"} for cell in cells[1])


def test_a_table_as_json_is_its_cells_too():
    asked = 0
    for i in range(40):
        sample = pictures.draw("table", "train", i)
        for question, answer in sample.turns:
            if "JSON" in question:
                asked += 1
                content = json.loads(answer)
                assert [content["columns"], *content["data"]] == sample.truth["cells"]
    assert asked > 3


def test_a_scene_is_counted_right():
    for i in range(40):
        things = pictures.scene.content(random.Random(i))
        text = pictures.scene.description(things)
        for thing in things:
            assert f"{thing.name} at the {thing.place}" in text
        for question, answer in pictures.scene.small_questions(random.Random(i), things, read=False):
            *aloud, conclusion = re.split(r"(?<=\.) ", answer)
            (shape,) = (shape for shape in pictures.scene.SHAPES if shape in question)
            listed = ", ".join(f"{thing.color} at the {thing.place}" for thing in things if thing.shape == shape)
            assert aloud == [f"{shape.capitalize()}s: {listed}."] * bool(listed)
            if asked := re.search(r"(?:many|Count the) ([a-z ]+?)s\b", question):
                number = sum(asked[1] in (thing.name, thing.shape) for thing in things)
                are, s = ("is", "") if number == 1 else ("are", "s")
                assert conclusion == f"There {are} {pictures.scene.NUMBERS[number]} {asked[1]}{s}."
            else:
                places = [f"The {thing.name} is at the {thing.place}." for thing in things]
                assert (places + [f"The {thing.shape} is {thing.color}." for thing in things]).count(conclusion) == 1


def test_a_cell_is_found_after_all_rows():
    cells = [["Fruit", "Price", "Stock"], ["Apple", "$1", "340"], ["Lemon", "$2", "208"]]
    (_, first), *more = pictures.table.small_questions(random.Random(0), cells, most=4)
    rows = "a) Apple: Price $1; Stock 340. b) Lemon: Price $2; Stock 208. "
    answers = {first.removeprefix(rows), *(answer for _, answer in more)}
    assert first.startswith(rows)
    assert answers == {f"Apple is in a): {cell}." for cell in ("Price $1", "Stock 340")} | {
        f"Lemon is in b): {cell}." for cell in ("Price $2", "Stock 208")
    }


def test_a_value_is_said_after_all_of_them():
    values = pictures.chart.Chart("bar", "Pens", "tons", ["A", "B", "C", "D"], ["3", "1", "12", "4"], False)
    first, later = set(), set()
    for i in range(40):
        (_, one), (_, two) = pictures.chart.small_questions(random.Random(i), values)
        first.add(one)
        later.add(two)
    said = ["The highest value is 12 in c) C.", "The lowest value is 1 in b) B.", "B is b): 1."]
    assert later.issuperset(said)
    assert first.issuperset(f"a) A 3; b) B 1; c) C 12; d) D 4. {answer}" for answer in said)


def test_a_chart_in_time_says_whether_the_last_value_is_above_the_first():
    charts = [pictures.chart.Chart(**pictures.draw("chart", "heldout", i).truth) for i in range(80)]
    in_time = [chart for chart in charts if chart.ordered]
    said = {"rises": 0, "falls": 0}
    for chart in in_time:
        first, *_, last = chart.numbers
        change = "rises" if last > first else "falls"
        assert pictures.chart.description(chart).endswith(f"the value {change}.")
        assert abs(last - first) > 0.03 * max(chart.numbers)
        said[change] += 1
    assert min(said.values()) > 5


def test_in_training_some_charts_grow_many_times_over():
    """Numbers with fewer and with more digits have to be compared, as in the revenue chart of the notebooks."""
    charts = [pictures.chart.content(random.Random(i), "train") for i in range(100)]
    unlike = [chart for chart in charts if max(chart.numbers) > 10 * min(chart.numbers) > 0]
    assert 10 < len(unlike) < 50
    for chart in unlike:
        for number in (max(chart.numbers), min(chart.numbers)):
            assert chart.numbers.count(number) == 1


def test_a_word_that_is_one_token_is_never_held_out():
    vocabulary = tokenizer.build().get_vocab()
    for word in words.WHOLE:
        assert not words.held_out(word)
        assert {f"▁{word}", f"▁{word.capitalize()}"} & set(vocabulary)


def test_a_pair_names_every_difference_and_none_else():
    same = other = 0
    for i in range(40):
        sample = pictures.draw("pair", "heldout", i)
        first, second = (np.asarray(image).astype(int) for image in sample.images)
        differences = sample.truth["differences"]
        answer = sample.turns[0][1]
        assert answer.count(", different.") == len(differences)
        assert all(f"{difference}, different." in answer for difference in differences)
        if differences:
            other += 1
            assert np.abs(first - second).max() > 40
        else:
            same += 1
            assert answer.endswith(pictures.pair.COUNTS[0])
    assert same > 3
    assert other > 10


def test_the_number_in_a_question_picks_its_picture():
    for i in range(20):
        sample = pictures.draw("several", "train", i)
        assert len(sample.images) == len(sample.turns) == len({answer for _, answer in sample.turns}) in (2, 3)
        for question, answer in sample.turns:
            (number,) = (
                n for n, word in enumerate(pictures.several.ORDINALS) if word in question or str(n + 1) in question
            )
            truth = sample.truth["pictures"][number]
            assert answer == truth.get("description", f'The title of the book is "{truth.get("title")}".')


def test_notes_say_themselves_what_is_asked():
    """Every number and every place of an answer stands in what is told, but for how many there are."""
    for i in range(20):
        sample = pictures.draw("notes", "train", i)
        text, first = sample.told, sample.turns[0][1]
        assert not sample.images
        assert first.startswith(text)
        for answer in (first.removeprefix(text), *(answer for _, answer in sample.turns[1:])):
            for fact in re.findall(r"[\d.,]*\d|(?:top|middle|bottom) \w+", answer):
                assert re.search(rf"(?<![\d.,]){re.escape(fact)}(?!\d)", text), (text, answer)


def test_what_is_told_is_not_learned():
    """A label for each token that the model has to say itself, beginning right after what it was told."""
    collate = train.Collate(train.build_processor())
    for i in range(20):
        sample = pictures.draw("notes", "train", i)
        batch = collate([sample])
        learned = collate.processor.tokenizer.decode(batch["labels"][batch["labels"] != -100])
        assert learned.startswith(sample.turns[0][1].removeprefix(sample.told).strip() + "<|end|>")


@pytest.mark.parametrize("kind", ["chart", "scene"])
def test_what_was_read_is_not_read_again(kind):
    """The first answer says all that a picture shows; later ones only if just that is asked."""
    module, followed = getattr(pictures, kind), 0
    whole = module.QUESTIONS if kind == "chart" else module.DESCRIBE_QUESTIONS
    for i in range(30):
        sample = pictures.draw(kind, "train", i)
        read = module.listed(module.Chart(**sample.truth)) if kind == "chart" else sample.truth["description"]
        assert read in sample.turns[0][1]
        for question, answer in sample.turns[1:]:
            assert (read in answer) == (question in whole)
            followed += question not in whole
    assert followed > 10


def test_what_a_picture_does_not_show_is_not_invented():
    shown = {pictures.draw("mismatch", "heldout", i).truth["shown"] for i in range(40)}
    assert pictures.mismatch.NOTHING in shown
    for i in range(20):
        sample = pictures.draw("mismatch", "heldout", i)
        assert (
            sample.turns[0][1]
            == f"I cannot see {sample.truth['missing']} in this picture. It shows {sample.truth['shown']}."
        )
        assert sample.truth["missing"] != sample.truth["shown"]


@pytest.mark.parametrize("kind", pictures.KINDS)
def test_the_true_answer_has_the_best_score_and_nothing_the_worst(kind):
    worst_is_zero = {"exact", "title", "author", "cells", "numbers", "found"}
    for i in range(5):
        sample = pictures.draw(kind, "heldout", i)
        best, worst = scores.score(sample, sample.turns[0][1]), scores.score(sample, "")
        assert best["exact"]
        assert best["cer"] == 0
        assert not any(best.get(name) for name in ("missing", "missed", "invented"))
        assert worst["cer"] == 1
        assert not any(worst[name] for name in worst_is_zero & set(worst))


@pytest.mark.parametrize("kind", ["chart", "scene", "table"])
def test_short_questions_are_scored_by_their_conclusion(kind):
    for i in range(10):
        sample = evaluate.short(pictures.draw(kind, "heldout", i), i)
        _, answer = sample.turns[0]
        assert scores.score(sample, answer) == {"exact": True, "cer": 0, "conclusion": True}
        last = answer.split(". ")[-1]
        assert scores.score(sample, f"Read wrong. {last}")["conclusion"]
        assert not scores.score(sample, answer.replace(last, "something else."))["conclusion"]


def test_a_conclusion_has_its_row_and_its_capitals():
    for said in ("Read on. Soup is in b): Kind Sweet.", "Read on. Bean is in c): Kind sweet."):
        assert scores.conclusion(said) != scores.conclusion("Read. Soup is in b): Kind sweet.")


def test_facts_of_a_pair_are_whole_numbers():
    """Of what 07_scores asks for in an answer no part may stand for the whole."""
    sample = pictures.draw("pair", "heldout", 184)
    assert notebook_images.facts_of(sample) == ["2,787", "1,787"]


def test_other_pictures_can_be_scored_and_in_more_tiles(tmp_path, monkeypatch, capsys):
    drawn, asked = [], []

    def draw(kind, split, index):
        drawn.append((split, index))
        return pictures.draw(kind, split, index)

    def truths(model, processor, questions, images, **settings):
        return [pictures.draw("scene", *which).turns[0][1] for which in drawn[-len(questions) :]]

    def load(checkpoint, **settings):
        asked.append(settings)
        return None, None

    monkeypatch.setattr(evaluate, "load_model_and_processor", load)
    monkeypatch.setattr(evaluate, "draw", draw)
    monkeypatch.setattr(evaluate, "generate_many", truths)
    arguments = ["--kinds", "scene", "--pictures", "2", "--first", "70", "--num-crops", "9", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["evaluate", *arguments])
    evaluate.main()
    assert [settings["num_crops"] for settings in asked] == [9]
    assert drawn == [("heldout", 70), ("heldout", 71), ("heldout_fonts", 70), ("heldout_fonts", 71)]
    assert "| scene, heldout | 2 | 100.0% |" in capsys.readouterr().out
    assert json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))["scene, heldout"]["wrong"] == []


def test_the_smallest_type_is_scored_by_itself(tmp_path, monkeypatch, capsys):
    processor = train.build_processor()

    samples = [pictures.draw("table", "heldout", i) for i in range(5)]
    widths = [evaluate.width_of_type(sample, processor) for sample in samples]

    def truths(*args, **settings):
        return [sample.turns[0][1] * (width > min(widths)) for sample, width in zip(samples, widths, strict=True)]

    monkeypatch.setattr(evaluate, "load_model_and_processor", lambda *args, **settings: (None, processor))
    monkeypatch.setattr(evaluate, "generate_many", truths)
    monkeypatch.setattr(evaluate, "HELD_OUT", ["heldout"])
    monkeypatch.setattr("sys.argv", ["evaluate", "--kinds", "table", "--pictures", "5", "--out", str(tmp_path)])
    evaluate.main()
    row = rf"\| table, heldout \| 5 \| 80.0% \| .*, small 0.0%, width {min(widths):.2f} \|"
    assert re.search(row, capsys.readouterr().out)


def test_type_is_measured_as_the_model_sees_it():
    sample, processor = pictures.draw("table", "heldout", 0), train.build_processor()
    width = evaluate.width_of_type(sample, processor)
    larger = replace(
        sample,
        images=[sample.images[0].resize([3 * side for side in sample.images[0].size])],
        characters=[sample.characters[0] * [1, 3, 3, 3, 3]],
    )
    assert evaluate.width_of_type(larger, processor) == pytest.approx(width, rel=0.01)


def test_invented_numbers_and_differences_are_counted():
    sample = pictures.draw("chart", "heldout", 0)
    _, truth = sample.turns[0]
    number = sample.truth["values"][0]
    wrong = scores.score(sample, truth.replace(number, "1" + number))
    assert wrong["missing"] == wrong["invented"] == truth.count(number)
    assert scores.score(sample, truth)["values"]
    assert not wrong["values"]
    label = sample.truth["labels"][0]
    assert not scores.score(sample, truth.replace(f"{label} {number}", f"Other {number}"))["values"]
    pair = next(s for s in (pictures.draw("pair", "heldout", i) for i in range(20)) if len(s.truth["differences"]) == 1)
    said = pair.turns[0][1].replace(", second ", ", second not ")
    assert scores.score(pair, said)["invented"] == scores.score(pair, said)["missed"] == 1
    assert scores.score(pair, pictures.pair.COUNTS[0])["invented"] == 0


def test_a_conclusion_counts_where_all_values_are_right():
    sample = pictures.draw("chart", "heldout", 0)
    _, answer = sample.turns[0]
    read = pictures.chart.listed(pictures.chart.Chart(**sample.truth))
    assert scores.score(sample, answer)["concluded"]
    assert not scores.score(sample, answer.replace("lowest", "least"))["concluded"]
    assert scores.score(sample, answer.replace("The bar", "A bar").replace("The line", "A line"))["concluded"]
    assert "concluded" not in scores.score(sample, answer.replace(read, read[1:]))


def test_a_cover_wrong_by_one_letter_is_told_from_the_others():
    sample = pictures.draw("cover", "heldout", 0)
    _, answer = sample.turns[0]
    title = sample.truth["title"]
    assert "one" not in scores.score(sample, answer)
    assert scores.score(sample, answer.replace(title, title[1:]))["one"]
    assert not scores.score(sample, answer.replace(title, title[2:]))["one"]


def test_names_are_printed_smaller_than_titles():
    for i in range(40):
        sample = pictures.draw("cover", "train", i)
        marks, title = sample.characters[0], sample.truth["title"].replace(" ", "")
        printed = "".join(CHARACTERS[int(mark[0])] for mark in marks)
        start = printed.index(title)
        heights = marks[:, 4] - marks[:, 2]
        titles = heights[start : start + len(title)]
        names = np.delete(heights, np.s_[start : start + len(title)])
        assert names.max() < 0.85 * titles.min()


def test_a_wrong_line_of_a_page_leaves_the_others_right():
    pages = (pictures.draw("page", "heldout", i) for i in range(20))
    sample = next(page for page in pages if "\n" in page.truth["text"])
    first, rest = sample.truth["text"].split("\n", 1)
    lines = 1 + len(rest.split("\n"))
    assert scores.score(sample, f"{first}x\n{rest}")["lines"] == (lines - 1) / lines
    assert scores.score(sample, rest)["lines"] == 0


def test_every_page_has_text():
    assert all(pictures.draw("page", "heldout_fonts", i).truth["text"] for i in range(60))


def test_recorded_characters_lie_where_the_ink_is():
    sample = pictures.draw("cover", "train", 0)
    image = np.asarray(sample.images[0]).astype(int)
    letters = sample.truth["title"].replace(" ", "") + sample.truth["author"].replace(" ", "")
    drawn = "".join(CHARACTERS[int(index)] for index in sample.characters[0][:, 0])
    assert sorted(drawn) == sorted(letters)
    for index, left, top, right, bottom in sample.characters[0]:
        part = image[int(top) : int(bottom) + 1, int(left) : int(right) + 1]
        assert np.ptp(part) > 40, CHARACTERS[int(index)]


def test_on_a_sheet_characters_move_with_the_picture():
    rng = random.Random(0)
    image, marks = pictures.table.paint(rng, "train", [["Item", "Price"], ["Lemon", "$2.15"]])
    sheet, moved = pictures.effects.on_a_sheet(rng, image, marks)
    assert image.size < sheet.size
    assert moved.dtype == marks.dtype
    assert not np.array_equal(moved, marks)
    for (_, *mark), (_, *there) in zip(marks.round(), moved.round(), strict=True):
        assert image.crop(mark).tobytes() == sheet.crop(there).tobytes()


@pytest.mark.parametrize("kind", ["chart", "table"])
def test_some_charts_and_tables_to_learn_from_are_on_a_sheet(kind, monkeypatch):
    sheet = Image.new("RGB", (50, 40)), np.zeros((0, 5), np.float32)
    monkeypatch.setattr(pictures.effects, "on_a_sheet", lambda *picture: sheet)
    for split, some in (("heldout", False), ("train", True)):
        samples = [pictures.draw(kind, split, i) for i in range(8)]
        assert any(sample.images[0].size == (50, 40) and not len(sample.characters[0]) for sample in samples) == some


@pytest.mark.parametrize("form", ["bar", "line"])
def test_names_by_matplotlib_do_not_touch(form):
    years, values = [str(year) for year in range(2009, 2017)], [str(1000 + 7 * i**4) for i in range(8)]
    chart = pictures.chart.Chart(form, "Years", "tons", years, values, True)
    for seed in range(8):
        _, marks = pictures.chart.chart_by_matplotlib.draw(random.Random(seed), "train", chart)
        lowest = marks[marks[:, 4] > marks[:, 4].max() - 3]
        names = lowest[lowest[:, 1].argsort()].reshape(8, 4, 5)
        assert (names[1:, 0, 1] - names[:-1, -1, 3]).min() > 0


@pytest.mark.parametrize("form", ["bar", "lying", "line"])
def test_characters_of_matplotlib_lie_where_the_ink_is(form):
    chart = pictures.chart.Chart(form, "Title", "hours", ["Jan", "Feb", "Mar"], ["120", "340", "560"], True)
    image, marks = pictures.chart.chart_by_matplotlib.draw(random.Random(0), "train", chart)
    image = np.asarray(image).astype(int)
    drawn = "".join(CHARACTERS[int(index)] for index in marks[:, 0])
    assert sorted(drawn) == sorted("".join([chart.title, chart.unit, *chart.labels, *chart.values]))
    for index, *box in marks:
        left, top, right, bottom = map(round, box)
        assert np.ptp(image[top : bottom + 1, left : right + 1]) > 40, CHARACTERS[int(index)]


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


def test_a_picture_of_unknown_characters_teaches_no_reading():
    classes, boxes = reading.lessons((448, 448), np.zeros((0, 5), dtype=np.float32))
    assert (classes == reading.IGNORED).all()
    predicted = torch.zeros(5, 256, 4, reading.NONE + 1), boxes, torch.zeros(5, 256, 4, 3)
    loss, accuracy = reading.loss_and_accuracy(predicted, torch.zeros(5, 3, 224, 224), classes, boxes)
    assert (loss, accuracy) == (0, 0)


def small_model(processor, layers: int = 1):
    """The model that is trained, with a layer in the tower and few in the decoder."""
    config = train.build_config(processor)
    config.num_hidden_layers = layers
    config.img_processor["vision_config"]["num_hidden_layers"] = 2  # of these the last is not built
    return train.Phi3VForCausalLM(config)


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
    reader = reading.FeatureReader(model.vision_tower, model.config.hidden_size)
    loss, lesson, _, measures = train.loss_and_measures(model, batch, torch.device("cpu"), reader)
    alone = [reading.PROCESSOR(image, num_crops=num_crops) for sample in samples for image in sample.images]
    numbers = [int(height) * int(width) // 224**2 + 1 for height, width in batch["image_sizes"]]
    assert len(batch["classes"]) == sum(numbers)
    assert torch.equal(reader.tiles, torch.cat([a["pixel_values"][0, :n] for a, n in zip(alone, numbers)]))
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
    """No mask: what fills a row up stands behind all that looks back."""
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
    """In what the projector makes of a tile, the last of the two guesses."""
    classes, boxes = torch.full((1, 256, 4), 5), torch.zeros(1, 256, 4, 3)
    right, wrong = (torch.eye(reading.NONE + 1)[torch.full((1, 256, 4), label)] for label in (5, 6))
    tiles = torch.zeros(1, 3, 224, 224)
    assert reading.loss_and_accuracy((right, boxes, boxes), tiles, classes, boxes)[1] == 1
    assert reading.loss_and_accuracy((right, boxes, boxes, wrong), tiles, classes, boxes)[1] == 0
    assert reading.loss_and_accuracy((wrong, boxes, boxes, right), tiles, classes, boxes)[1] == 1


@pytest.mark.parametrize("wrong", [1, 2])
def test_places_and_colours_are_lessons_too(wrong):
    classes, boxes = torch.full((1, 256, 4), 5), torch.zeros(1, 256, 4, 3)
    predicted = [torch.eye(reading.NONE + 1)[classes], boxes, boxes]
    tiles = torch.zeros(1, 3, 224, 224)
    best, _ = reading.loss_and_accuracy(predicted, tiles, classes, boxes)
    predicted[wrong] = boxes + 1
    assert reading.loss_and_accuracy(predicted, tiles, classes, boxes)[0] > best


def test_shapes_are_marked_where_they_are():
    sample = pictures.draw("scene", "train", 1)
    assert len(sample.characters[0]) == len(sample.truth["things"])
    for (index, left, top, right, bottom), thing in zip(sample.characters[0], sample.truth["things"]):
        assert (*CHARACTERS, *SHAPES)[int(index)] == thing["shape"]
        column, row = (left + right) / 2 / sample.images[0].width, (top + bottom) / 2 / sample.images[0].height
        assert (int(3 * row), int(3 * column)) == (thing["row"], thing["column"])


def test_colors_of_parts():
    tiles = torch.zeros(2, 3, 224, 224)
    tiles[1, 0, :14, 7:14] = 1  # the right half of the first patch is red
    colors = reading.colors_of(tiles)
    assert colors.shape == (2, 256, 4, 3)
    assert colors[1, 0].tolist() == [[0, 0, 0], [0, 0, 0], [1, 0, 0], [1, 0, 0]]
    assert colors.sum() == 2


def test_positions_of_smaller_tiles_are_repeated():
    small = pretrain_vision.Reader(pretrain_vision.CLIPVisionConfig(**{**recipe.VISION, "image_size": 112}))
    reader = pretrain_vision.Reader(pretrain_vision.CLIPVisionConfig(**recipe.VISION))
    name = "vision_tower.embeddings.position_embedding.weight"
    fresh = reader.state_dict()[name].clone()
    state = small.state_dict()
    state[name][1] += 1
    reader.load_state_dict(pretrain_vision.with_larger_tiles(state))
    grown = (reader.state_dict()[name] - fresh)[1:].reshape(16, 16, -1).mean(-1)
    assert torch.allclose(grown[::8, ::8], torch.ones(2, 2), atol=1e-5)
    assert torch.allclose(grown.sum(), torch.tensor(4.0), atol=1e-3)


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


def tiny_run(folder, total, **settings):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1))
    return Run(str(folder), model, optimizers(model, lambda name: 0.01), total, **settings)


def steps(run, count):
    for step, batch in enumerate(run.steps(iter(torch.arange(40.0).reshape(10, 4)), 1)):
        if step == count:
            break
        run.update(run.model(batch).square().mean())


def test_an_interrupted_run_goes_on_where_it_was(tmp_path):
    run = tiny_run(tmp_path, 8)
    steps(run, 4)
    run.seconds = 7.0
    run.save()
    resumed = tiny_run(tmp_path, 8)
    assert (resumed.seen, resumed.seconds) == (4, 7.0)
    for optimizer, before in zip(resumed.optimizers, run.optimizers, strict=True):
        assert before.state
        torch.testing.assert_close(optimizer.state_dict()["state"], before.state_dict()["state"])
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])
    run.report(score=0.5)
    assert json.loads((tmp_path / "log.jsonl").read_text(encoding="utf-8"))["score"] == 0.5


def test_a_run_ends_when_its_minutes_are_over(tmp_path, monkeypatch):
    """The wait for the first batch does not count: it would use up the warm-up."""
    clock = SimpleNamespace(now=1000.0, monotonic=lambda: clock.now)
    monkeypatch.setattr("training.loop.time", clock)

    def batches():
        clock.now += 300
        yield from range(100)

    run, done = tiny_run(tmp_path, math.inf, minutes=2), []
    for _ in run.steps(batches(), 1):
        done.append(run.done)
        clock.now += 30
    assert done == [0, 0.25, 0.5, 0.75]


def test_a_short_run_is_logged_at_its_end(tmp_path):
    run = tiny_run(tmp_path, 2)
    for batch in run.steps(iter(torch.ones(5, 1, 4)), 1, lambda: {"score": 0.5}):
        run.update(run.model(batch).square().mean())
    line = json.loads((tmp_path / "log.jsonl").read_text(encoding="utf-8"))
    assert (line["seen"], line["score"]) == (2, 0.5)
    assert list(tiny_run(tmp_path, 2).steps(iter(torch.ones(5, 1, 4)), 1)) == []  # and not once more


@pytest.mark.parametrize("settings", [{"total": 0}, {"total": 8, "minutes": 0}])
def test_a_run_needs_something_to_do(tmp_path, settings):
    with pytest.raises(ValueError, match="Nothing to do"):
        tiny_run(tmp_path, **settings)


def test_several_processes_take_no_minutes(tmp_path, monkeypatch):
    monkeypatch.setattr("training.loop.WORLD", 2)
    with pytest.raises(ValueError, match="give pictures, not minutes"):
        Run(str(tmp_path), torch.nn.Linear(1, 1), [], 8, minutes=5)


def test_a_batch_without_a_finite_gradient_changes_nothing(tmp_path, capsys):
    run = tiny_run(tmp_path, 8)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.update(run.model(torch.full((1, 4), float("inf"))).square().mean())
    assert "no finite gradient" in capsys.readouterr().out
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())
    assert all(parameter.grad is None for parameter in run.model.parameters())


def test_a_run_that_only_leaves_out_is_given_up(tmp_path):
    run = tiny_run(tmp_path, 8)
    bad = torch.full((1, 4), float("nan"))
    for _ in range(4):
        run.update(run.model(bad).square().mean())
    with pytest.raises(FloatingPointError, match="5 batches in a row"):
        run.update(run.model(bad).square().mean())
    run = tiny_run(tmp_path, 8)
    for values in 6 * [bad, torch.ones(1, 4)]:
        run.update(run.model(values).square().mean())


def test_one_process_trains_on_a_gpu(monkeypatch):
    monkeypatch.setattr("training.loop.WORLD", 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(RuntimeError, match="leave `torchrun` out"):
        start()


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


def number_of(split: str, index: int) -> int:
    return index


@pytest.mark.parametrize("rank", [0, 1])
def test_each_process_has_its_own_pictures(monkeypatch, rank):
    monkeypatch.setattr("training.loop.WORLD", 2)
    monkeypatch.setattr("training.loop.RANK", rank)
    assert next(iter(stream_of_batches(number_of, list, batch=2, workers=0, first=0))) == [rank, 2 + rank]


def test_a_run_with_other_batches_goes_on_at_the_beginning_of_a_step():
    batches = stream_of_batches(number_of, list, batch=4, workers=1, first=10)
    assert next(iter(batches)) == [8, 9, 10, 11]


@pytest.mark.parametrize(
    ("times", "order"),
    [(1, range(6)), (2, [0, 1, 2, 0, 3, 1, 4, 2, 5, 3]), (3, [0, 1, 2, 0, 1, 3, 2, 0, 4, 1, 3, 5, 2, 4])],
)
def test_a_batch_comes_again_some_steps_later(times, order):
    assert list(again(range(6), times, later=2)) == list(order)


def steps_of_muon(optimizer) -> list[torch.Tensor]:
    """Some matrices after five steps, in which now and then one has no gradient."""
    torch.manual_seed(0)
    matrices = [torch.nn.Parameter(torch.randn(size)) for size in [(8, 4), (4, 8), (8, 4), (6, 6), (8, 4)]]
    muon = optimizer(matrices, lr=0.1, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    for step in range(5):
        for i, matrix in enumerate(matrices):
            matrix.grad = torch.randn_like(matrix) if (step + i) % 4 else None
        muon.step()
    return [*matrices, *(state["momentum_buffer"] for state in muon.state.values())]


def test_muon_for_many_matrices_is_pytorchs():
    for ours, theirs in zip(steps_of_muon(Muon), steps_of_muon(torch.optim.Muon), strict=True):
        torch.testing.assert_close(ours, theirs, atol=5e-3, rtol=0)  # bfloat16; each step moves by about 0.05


def test_workers_that_begin_anew_can_be_started():
    batches = stream_of_batches(number_of, list, batch=2, workers=1, first=0)
    batches.multiprocessing_context = "spawn"
    assert next(iter(batches)) == [0, 1]


def test_stage_1_learns():
    torch.manual_seed(0)
    reader = pretrain_vision.Reader(pretrain_vision.CLIPVisionConfig(**{**recipe.VISION, "num_hidden_layers": 1}))
    run_optimizers = optimizers(reader, lambda name: 1e-3)
    batch = pretrain_vision.collate([pretrain_vision.picture("train", 0)])
    losses = []
    for _ in range(5):
        loss, _ = pretrain_vision.loss_and_accuracy(reader, batch, torch.device("cpu"))
        loss.backward()
        for optimizer in run_optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_the_tower_is_frozen_first_and_the_rate_rises_and_falls(tmp_path, monkeypatch):
    frozen, rates, update = [], [], Run.update

    def watched(run, loss, **measures):
        frozen.append(not any(p.requires_grad for p in run.model["model"].vision_tower.parameters()))
        update(run, loss, **measures)
        rates.append(run.optimizers[1].param_groups[0]["lr"])

    monkeypatch.setattr(Run, "update", watched)
    options = "--pictures 4 --batch 1 --workers 0 --kinds notes --frozen 0.5 --num-crops 1 4".split()
    paths = ["--out", str(tmp_path / "run"), "--checkpoint", str(tmp_path / "checkpoint")]
    monkeypatch.setattr("sys.argv", ["train", *options, *paths])
    train.main()
    assert frozen == [True, True, False, False]
    assert rates[0] < 0.05 * rates[1]
    assert rates[1] > rates[2] > rates[3]
    log = json.loads((tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8"))
    assert {"heldout_loss_notes", "heldout_loss_notes_1"} <= set(log)


def test_what_learns_at_which_rate():
    model = small_model(train.build_processor())
    assert train.part_of("reader.head.weight") == "reader"
    parts = {name: train.part_of(f"model.{name}") for name, _ in model.named_parameters()}
    tower = {name for name, part in parts.items() if part == "tower"}
    assert tower == {name for name in parts if "img_processor" in name}
    assert 0 < len(tower) < len(parts)
    ends = {name for name, p in model.named_parameters() if p.ndim == 2} - set(inner_matrices(model))
    assert {name.split(".")[-2] for name in ends} == {"embed_tokens", "lm_head", "position_embedding"}


def test_a_further_run_draws_new_pictures(monkeypatch):
    monkeypatch.setattr(train, "draw", lambda *picture: picture)
    drawing = train.Drawing(("cover", "table"), 2, 7)
    assert [drawing("train", i) for i in range(4)] == [
        ("cover", "train", 7),
        ("cover", "train", 8),
        ("table", "train", 9),
        ("table", "train", 10),
    ]


def test_the_tower_of_stage_1_is_taken_over(tmp_path):
    model = small_model(train.build_processor())
    ones = {f"vision_tower.{name}": torch.ones_like(p) for name, p in model.vision_tower.state_dict().items()}
    torch.save({"model": ones | {"head.weight": torch.ones(1)}}, tmp_path / "state.pt")
    train.with_tower(model, tmp_path / "state.pt")
    assert all((p == 1).all() for p in model.vision_tower.parameters())


def test_export_can_be_loaded_and_stage_1_fits_the_tower(tmp_path):
    processor = train.build_processor()
    model = train.Phi3VForCausalLM(train.build_config(processor))
    reader = pretrain_vision.Reader(pretrain_vision.CLIPVisionConfig(**recipe.VISION))
    tower = {k: v for k, v in reader.vision_tower.state_dict().items() if "post_layernorm" not in k}
    assert set(tower) == set(model.vision_tower.state_dict())
    train.export(model, processor, tmp_path)
    loaded, _ = load_model_and_processor(tmp_path)
    assert all(torch.equal(a.float(), b) for a, b in zip(model.parameters(), loaded.parameters()))
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["model_type"] == "phi3_v"


def test_logs_are_plotted(tmp_path, monkeypatch):
    run = tiny_run(tmp_path, 8)
    steps(run, 2)
    run.report(heldout=0.5, heldout_loss=1.0)
    run.report(heldout=0.6)
    monkeypatch.setattr("sys.argv", ["plot", str(tmp_path), "--out", str(tmp_path / "curves.png")])
    plot.main()
    assert Image.open(tmp_path / "curves.png").width > 500


def test_a_wider_decoder_begins_with_the_narrow_one():
    narrow, wide = tiny_model(), tiny_model(hidden_size=96, intermediate_size=160, num_attention_heads=8)
    weights = grow.grown(narrow.state_dict(), wide.state_dict())
    wide.load_state_dict(weights)
    old, new = narrow.state_dict(), wide.state_dict()
    for name, blocks in (("qkv_proj", 3), ("gate_up_proj", 2), ("o_proj", 1), ("down_proj", 1)):
        (key,) = (key for key in old if key.startswith("model.layers.0") and name in key)
        for before, after in zip(old[key].chunk(blocks), new[key].chunk(blocks)):
            rows, columns = before.shape
            assert torch.equal(after[:rows, :columns], before)
            assert not after[:rows, columns:].any()  # what is new is not read yet
            assert after[rows:].any()
    assert torch.equal(new["lm_head.weight"][:, :48], old["lm_head.weight"])
    assert not new["lm_head.weight"][:, 48:].any()
    assert new["model.embed_tokens.weight"][:, 48:].all()


def test_a_deeper_decoder_begins_with_the_shallow_one():
    shallow, deep = tiny_model(num_hidden_layers=2), tiny_model(num_hidden_layers=3)
    deep.load_state_dict(grow.grown(shallow.state_dict(), deep.state_dict()), strict=False)
    ids = torch.randint(3, 90, (1, 12))
    with torch.no_grad():
        torch.testing.assert_close(deep(ids).logits, shallow(ids).logits, rtol=1e-4, atol=1e-5)
    assert deep.model.layers[2].self_attn.qkv_proj.weight.any()
    with pytest.raises(ValueError, match="has 3 layers and does not fit into 2"):
        grow.grown(deep.state_dict(), shallow.state_dict())


def test_a_deeper_tower_begins_with_the_shallow_one():
    tower = tiny_config().img_processor["vision_config"]
    shallow = tiny_model()
    deep = tiny_model(img_processor={"vision_config": {**tower, "num_hidden_layers": 5}})
    weights = grow.grown(shallow.state_dict(), deep.state_dict())
    deep.load_state_dict(weights, strict=False)
    tiles = torch.rand(1, 3, 112, 112)
    with torch.no_grad():
        expected, found = (model.vision_tower(tiles).last_hidden_state for model in (shallow, deep))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert len(deep.vision_tower.encoder.layers) == len(shallow.vision_tower.encoder.layers) + 2


def test_the_mean_of_two_checkpoints(tmp_path, monkeypatch):
    other = train.weights_of(POCKET)
    changed = train.Phi3VForCausalLM(train.build_config(train.build_processor()))
    changed.load_state_dict({name: weight + 1 for name, weight in other.items()})
    train.export(changed, train.build_processor(), tmp_path / "changed")
    arguments = ["soup", str(POCKET), str(tmp_path / "changed"), "--share", "0.25"]
    monkeypatch.setattr("sys.argv", [*arguments, "--checkpoint", str(tmp_path / "mean")])
    soup.main()
    for name, weight in train.weights_of(tmp_path / "mean").items():
        torch.testing.assert_close(weight, other[name] + 0.75, rtol=0.02, atol=0.02)


TWO_PROCESSES = """
import torch
from torch import nn

from training.loop import RANK, Run, optimizers, start

start()
model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2))
run = Run("run", model, optimizers(model, lambda name: 0.1), 100)
for _ in range(3):
    run.seen += 2
    run.update((model(torch.full((3, 4), 1.0 + RANK)) ** 2).mean())
    assert all(p.grad is None for p in model.parameters())
run.save()
torch.save(model.state_dict(), f"model{RANK}.pt")
"""


def test_two_processes_stay_alike(tmp_path):
    """Each trains its share of the matrices; both have all of them, all have changed, and either can go on."""
    (tmp_path / "two.py").write_text(TWO_PROCESSES)
    environment = os.environ | {"PYTHONPATH": str(Path(train.__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "two.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"model{rank}.pt", weights_only=True) for rank in (0, 1))
    torch.manual_seed(0)
    untrained = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 6), torch.nn.Linear(6, 2)).state_dict()
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name
        assert not torch.allclose(weight, untrained[name]), name
    assert {file.name for file in (tmp_path / "run").iterdir()} == {"state.pt", "optimizers0.pt", "optimizers1.pt"}
    # No matrix is remembered twice: Muon, the first of the two optimisers, has a share in each process.
    memory = [torch.load(tmp_path / "run" / f"optimizers{rank}.pt", weights_only=True)[0] for rank in (0, 1)]
    assert sorted(len(part["state"]) for part in memory) == [1, 2]
