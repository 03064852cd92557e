"""training/scores.py and training/evaluate.py: how answers are judged."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fontpkg", reason='needs `pip install -e ".[training]"`')


from training import evaluate, notebook_images, pictures, scores, train
from training.pictures.sample import Sample


@pytest.mark.parametrize("kind", pictures.KINDS)
def test_the_true_answer_has_the_best_score_and_nothing_the_worst(kind):
    worst_is_zero = {"exact", "title", "author", "cells", "numbers", "found"}
    for i in range(5):
        sample = pictures.draw(kind, "heldout", i)
        best, worst = scores.score(sample, sample.turns[0][1]), scores.score(sample, "")
        assert best["exact"]
        assert best["cer"] == 0
        assert all(best.get(name, 1) == 1 for name in ("title", "author", "values", "cells", "lines"))
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
    """Otherwise 07_scores would accept a part of a number as the whole."""
    sample = pictures.draw("pair", "heldout", 184)
    assert notebook_images.facts_of(sample) == ["2,787", "1,787"]


def test_what_is_said_beside_the_truth_counts():
    """A long wrong answer has more errors than the truth has characters, and more numbers than one may be invented."""
    cover, page, chart = (pictures.draw(kind, "heldout", 0) for kind in ("cover", "page", "chart"))
    truth = cover.turns[0][1]
    assert not scores.score(cover, truth + " ")["exact"]
    assert not scores.score(cover, f"{truth}\nIt is red.")["author"]
    assert scores.score(page, 3 * page.turns[0][1])["cer"] == 2
    said = scores.score(chart, chart.turns[0][1] + " And 12345 and 1.5.")
    assert (said["missing"], said["invented"]) == (0, 2)
    assert scores._NUMBER.findall("1,234.5 of 6") == ["1,234.5", "6"]


def test_other_pictures_can_be_scored_and_in_more_tiles(tmp_path, monkeypatch, capsys):
    drawn, asked = [], []

    def draw(kind, split, index):
        drawn.append((split, index))
        return pictures.draw(kind, split, index)

    def truths(model, processor, questions, images, **settings):
        samples = [pictures.draw("scene", *which) for which in drawn[-len(questions) :]]
        assert [[image.tobytes() for image in row] for row in images] == [[s.images[0].tobytes()] for s in samples]
        return [sample.turns[0][1] for sample in samples]

    def load(*args, **settings):
        asked.append((*args, settings))
        return None, None

    monkeypatch.setattr(evaluate, "load_model_and_processor", load)
    monkeypatch.setattr(evaluate, "draw", draw)
    monkeypatch.setattr(evaluate, "generate_many", truths)
    arguments = ["--kinds", "scene", "--pictures", "2", "--first", "70", "--num-crops", "9", "--out", str(tmp_path)]
    arguments += ["--checkpoint", "candidate", "--quantization", "int8"]
    monkeypatch.setattr("sys.argv", ["evaluate", *arguments])
    evaluate.main()
    assert asked == [("candidate", {"num_crops": 9, "quantization": "int8"})]
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


def test_the_width_of_type_is_across():
    # In tiles of 224 pixels, four at most, 100 x 200 pixels become 224 x 448.
    letter = np.array([[0, 10, 10, 20, 40]], dtype=np.float32)
    sample = Sample("cover", [Image.new("RGB", (100, 200))], [], characters=[letter])
    assert evaluate.width_of_type(sample, train.build_processor()) == pytest.approx(22.4)


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


def test_a_wrong_line_of_a_page_leaves_the_others_right():
    pages = (pictures.draw("page", "heldout", i) for i in range(20))
    sample = next(page for page in pages if "\n" in page.truth["text"])
    first, rest = sample.truth["text"].split("\n", 1)
    lines = 1 + len(rest.split("\n"))
    assert scores.score(sample, f"{first}x\n{rest}")["lines"] == (lines - 1) / lines
    assert scores.score(sample, rest)["lines"] == 0
    assert scores.score(sample, first)["lines"] == 1 / lines
