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
NO_DIFFERENCE = "There is no difference between the two images."


def draw(rng: random.Random, split: str) -> Sample:
    """Two scenes or two charts."""
    images, shown, differences = (_scenes if rng.random() < 0.9 else _charts)(rng, split)
    images = [effects.wear(rng, image) for image in images]
    return Sample("pair", images, [(rng.choice(QUESTIONS), answer(shown, differences))], {"differences": differences})


def answer(shown: list[str], differences: list[str]) -> str:
    """What the two pictures show, then all differences: what is written first helps to compare."""
    first, second = shown
    return f"The first image shows {first}. The second image shows {second}. {compared(differences)}"


def compared(differences: list[str]) -> str:
    """As in "There is one difference: ..." or `NO_DIFFERENCE`."""
    if not differences:
        return NO_DIFFERENCE
    count = (
        "There is one difference"
        if len(differences) == 1
        else f"There are {scene.NUMBERS[len(differences)]} differences"
    )
    return f"{count}: " + "; ".join(differences) + "."


def two_scenes(rng: random.Random) -> tuple[list[scene.Thing], list[scene.Thing], list[str]]:
    """Two scenes and their differences in words."""
    first = scene.content(rng, most=5)
    second, differences = {(thing.row, thing.column): thing for thing in first}, []
    for cell in sorted(rng.sample(range(9), rng.choice((0, 1, 1, 2)))):
        cell = divmod(cell, 3)
        old = second.pop(cell, None)
        if old is None:
            new = scene.Thing(rng.choice(scene.SHAPES), rng.choice(list(scene.COLORS)), *cell)
            differences.append(f"the second image has {new.a_name} at the {new.place}, the first has none")
        elif len(second) > 0 and rng.random() < 0.4:
            differences.append(f"the first image has {old.a_name} at the {old.place}, the second has none")
            continue
        else:
            color = rng.choice([color for color in scene.COLORS if color != old.color])
            new = replace(old, color=color)
            differences.append(
                f"the {old.shape} at the {old.place} is {old.color} in the first image and {color} in the second"
            )
        second[cell] = new
    return first, [second[cell] for cell in sorted(second)], differences


def _scenes(rng, split):
    first, second, differences = two_scenes(rng)
    seed = rng.random()
    images = [scene.paint(random.Random(seed), things)[0] for things in (first, second)]
    return images, [scene.listed(first), scene.listed(second)], differences


def _charts(rng, split):
    first = chart.content(rng, split, most=5)
    values, differences = list(first.values), []
    for i in sorted(rng.sample(range(len(values)), rng.choice((0, 1, 1, 2)))):
        while values[i] in first.values:
            values[i] = _changed(rng, first.values[i])
        differences.append(f"{first.labels[i]} is {first.values[i]} in the first image and {values[i]} in the second")
    seed = rng.random()
    second = replace(first, values=values)
    images = [chart.chart_by_hand.draw(random.Random(seed), split, part)[0] for part in (first, second)]
    return images, [chart.listed(first), chart.listed(second)], differences


def _changed(rng, value: str) -> str:
    """A number written in the same way with one digit changed."""
    places = [i for i, character in enumerate(value) if character.isdigit()]
    place = rng.choice(places)
    digit = rng.choice("123456789" if place == 0 else "0123456789")
    return value[:place] + digit + value[place + 1 :]
