"""training/pictures: the drawn pictures and what is true of them."""

import json
import random
import re

import numpy as np
import pytest

pytest.importorskip("fontpkg", reason='needs `pip install -e ".[training]"`')

from PIL import Image

from training import pictures, tokenizer
from training.pictures import fonts, words
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


def test_shapes_are_marked_where_they_are():
    sample = pictures.draw("scene", "train", 1)
    assert len(sample.characters[0]) == len(sample.truth["things"])
    for (index, left, top, right, bottom), thing in zip(sample.characters[0], sample.truth["things"]):
        assert (*CHARACTERS, *SHAPES)[int(index)] == thing["shape"]
        column, row = (left + right) / 2 / sample.images[0].width, (top + bottom) / 2 / sample.images[0].height
        assert (int(3 * row), int(3 * column)) == (thing["row"], thing["column"])
