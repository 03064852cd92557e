"""Two pictures of one kind that differ in nothing, one or two things."""

import random
from dataclasses import replace

from . import chart, effects, scene
from .sample import Sample

QUESTIONS = (
    "What is difference in this two images?",
    "What is the difference between these two images?",
    "What are the differences between the two pictures?",
    "Compare the two pictures.",
)
COUNTS = ("There is no difference between the two images.", "There is one difference.", "There are two differences.")


def draw(rng: random.Random, split: str) -> Sample:
    """Two scenes or two charts."""
    images, marks, places = (_scenes if rng.random() < 0.9 else _charts)(rng, split)
    images = [effects.wear(rng, image) for image in images]
    truth = {"differences": [clause(place) for place in places if place[1] != place[2]]}
    return Sample("pair", images, [(rng.choice(QUESTIONS), answer(places))], truth, marks)


def answer(places: list[tuple[str, str, str]]) -> str:
    """Place by place, what the first picture has there, what the second has, and whether that is the same; then
    the number of differences. Writing both down first helps the model to compare them."""
    clauses = [f"{clause(place)}, {'same' if place[1] == place[2] else 'different'}." for place in places]
    return " ".join([*clauses, COUNTS[sum(place[1] != place[2] for place in places)]])


def clause(place: tuple[str, str, str]) -> str:
    """As in "At the center: first a blue heart, second a pink heart"."""
    where, first, second = place
    return f"{where[0].upper()}{where[1:]}: first {first}, second {second}"


def two_scenes(rng: random.Random) -> tuple[list[scene.Thing], list[scene.Thing]]:
    """Two scenes that differ in no, one or two cells."""
    first = scene.content(rng, most=5)
    second = {(thing.row, thing.column): thing for thing in first}
    taken, changes = list(second), rng.choice((0, 1, 1, 2))
    if changes > len(taken) or rng.random() < 0.4:  # otherwise most differences would be things that appear
        taken = [(row, column) for row in range(3) for column in range(3)]
    for cell in sorted(rng.sample(taken, changes)):
        old = second.pop(cell, None)
        if old is None:
            second[cell] = scene.Thing(rng.choice(scene.SHAPES), rng.choice(list(scene.COLORS)), *cell)
        elif not second or rng.random() < 0.6:  # a scene is never empty
            second[cell] = replace(old, color=rng.choice([color for color in scene.COLORS if color != old.color]))
    return first, [second[cell] for cell in sorted(second)]


def side_by_side(first: list[scene.Thing], second: list[scene.Thing]) -> list[tuple[str, str, str]]:
    """For each cell that is not empty in both: where it is, what the first scene has there, what the second has."""
    things = [{(thing.row, thing.column): thing for thing in part} for part in (first, second)]
    cells = sorted(things[0].keys() | things[1].keys())
    names = [[part[cell].a_name if cell in part else "nothing" for part in things] for cell in cells]
    places = [next(part[cell].place for part in things if cell in part) for cell in cells]
    return [(f"at the {place}", *pair) for place, pair in zip(places, names, strict=True)]


def _scenes(rng, split):
    first, second = two_scenes(rng)
    seed = rng.random()
    images, marks = zip(*(scene.paint(random.Random(seed), things) for things in (first, second)))
    return images, [*marks], side_by_side(first, second)


def _charts(rng, split):
    first = chart.content(rng, split, most=5)
    values = list(first.values)
    for i in rng.sample(range(len(values)), rng.choice((0, 1, 1, 2))):
        while values[i] in first.values:
            values[i] = _changed(rng, first.values[i])
    seed = rng.random()
    parts = first, replace(first, values=values)
    images, marks = zip(*(chart.chart_by_hand.draw(random.Random(seed), split, part) for part in parts))
    return images, [*marks], list(zip(first.labels, first.values, values, strict=True))


def _changed(rng, value: str) -> str:
    """A number written in the same way with one digit changed."""
    places = [i for i, character in enumerate(value) if character.isdigit()]
    place = rng.choice(places)
    digit = rng.choice("123456789" if place == 0 else "0123456789")
    return value[:place] + digit + value[place + 1 :]
