"""What an answer got right: a dictionary of scores for each answer, without those that do not apply to it."""

import re
from collections import Counter

from rapidfuzz.distance import Levenshtein

from .pictures import chart, cover
from .pictures.sample import Sample

_FIELDS = {r"\{title\}": "(?P<title>.*)", r"\{author\}": "(?P<author>.*)"}
_COVER = re.compile(re.sub(r"\\{\w+\\}", lambda field: _FIELDS[field[0]], re.escape(cover.ANSWER)))
#: These scores are counts, or a width in pixels; all others are shares.
COUNTS = {"numbers", "missing", "invented", "found", "missed", "width"}
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


def score(sample: Sample, text: str) -> dict[str, float]:
    """`exact` (the whole answer, letter by letter) and `cer` (character errors per character of the true answer),
    then what is particular to the kind."""
    _, truth = sample.turns[0]
    general = {"exact": text == truth, "cer": Levenshtein.distance(text, truth) / len(truth)}
    return general | PARTICULAR.get(sample.kind, lambda sample, text: {})(sample, text)


def score_cover(sample: Sample, text: str) -> dict[str, float]:
    """Are `title` and `author` exact? `cer` counts the characters of these two only. Is a wrong answer wrong by just
    `one` character?"""
    found = _COVER.fullmatch(text)
    pairs = {field: (sample.truth[field], found[field] if found else "") for field in ("title", "author")}
    errors = sum(Levenshtein.distance(*pair) for pair in pairs.values())
    right = {field: truth == said for field, (truth, said) in pairs.items()}
    by_one = {"one": errors == 1} if errors else {}
    return right | {"cer": errors / sum(len(truth) for truth, _ in pairs.values())} | by_one


def score_chart(sample: Sample, text: str) -> dict[str, float]:
    """Are all labels with their `values` right, and if so, is what is `concluded` from them? How many numbers of the
    true answer are said, how many are `missing`, and how many others are `invented`?"""
    _, answer = sample.turns[0]
    truth, said = _NUMBER.findall(answer), _NUMBER.findall(text)
    missing, read = _left_over(truth, said), f": {chart.listed(chart.Chart(**sample.truth))}. "
    values = read in text
    concluded = {"concluded": text.split(read)[1] == answer.split(read)[1]} if values else {}
    numbers = {"numbers": len(truth) - missing, "missing": missing, "invented": _left_over(said, truth)}
    return {"values": values} | concluded | numbers


def score_table(sample: Sample, text: str) -> dict[str, float]:
    """The share of `cells` that are exact and in their place."""
    lines = [line for i, line in enumerate(text.split("\n")) if i != 1]
    said = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    places = [(j, i) for j, row in enumerate(sample.truth["cells"]) for i in range(len(row))]
    right = [j < len(said) and i < len(said[j]) and said[j][i] == sample.truth["cells"][j][i] for j, i in places]
    return {"cells": sum(right) / len(right)}


def score_page(sample: Sample, text: str) -> dict[str, float]:
    """The share of `lines` that are exact and in their place."""
    truth, said = (lines.split("\n") for lines in (sample.truth["text"], text))
    return {"lines": sum(map(str.__eq__, truth, said)) / len(truth)}


def score_scene(sample: Sample, text: str) -> dict[str, float]:
    """How many of the things are `found` in their place, how many are `missed`, how many others are `invented`."""
    truth, said = (
        answer.removeprefix("The picture shows ").removesuffix(".").split(", ") for answer in (sample.turns[0][1], text)
    )
    missed = _left_over(truth, said)
    return {"found": len(truth) - missed, "missed": missed, "invented": _left_over(said, truth)}


def score_pair(sample: Sample, text: str) -> dict[str, float]:
    """How many of the differences are `found`, how many are `missed`, and how many others are `invented`."""
    said = [clause.removesuffix(", different") for clause in text.split(". ") if clause.endswith(", different")]
    truth = sample.truth["differences"]
    missed = _left_over(truth, said)
    return {"found": len(truth) - missed, "missed": missed, "invented": _left_over(said, truth)}


def score_short(sample: Sample, text: str) -> dict[str, float]:
    """Is the `conclusion` exact: the last sentence, after all that was read on the way?"""
    return {"conclusion": conclusion(text) == conclusion(sample.turns[0][1])}


def conclusion(answer: str) -> str:
    """The last sentence."""
    return answer.split(". ")[-1]


def _left_over(these: list[str], others: list[str]) -> int:
    """How many of `these` are not among the `others`, each of which can stand for one."""
    return (Counter(these) - Counter(others)).total()


PARTICULAR = {
    "cover": score_cover,
    "chart": score_chart,
    "table": score_table,
    "page": score_page,
    "scene": score_scene,
    "pair": score_pair,
    "short chart": score_short,
    "short scene": score_short,
    "short table": score_short,
}
