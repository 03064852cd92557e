"""Conversations without a picture, about what the first question itself says: lists, tables, two scenes in words.

They teach to repeat, to take up a name from a question, to find it again, to count and to compare, at a fraction of
what a picture costs.
"""

import random

from . import chart, pair, scene, table
from .sample import Sample

#: Questions about the text, at most.
MOST = 8


def draw(rng: random.Random, split: str) -> Sample:
    """One text and up to `MOST` questions with their answers; no picture."""
    ways = (_repeated, _of_chart, _of_chart, _of_table, _of_scene, _of_scene, _of_pair)
    text, [(question, answer), *more] = rng.choice(ways)(rng, split)
    return Sample("notes", [], [(f"{text} {question}".strip(), answer), *more])


def _repeated(rng, split):
    contents = (
        lambda: chart.listed(chart.content(rng, split)),
        lambda: table.markdown(table.content(rng, split)),
        lambda: scene.listed(scene.content(rng)),
    )
    text = rng.choice(contents)()
    return f"Repeat: {text}", [("", text)]


def _of_chart(rng, split):
    values, described_first = chart.content(rng, split), rng.random() < 0.5
    described = [(rng.choice(chart.QUESTIONS), chart.description(values))]
    asked = chart.small_questions(rng, values, MOST - 1, read=not described_first)
    text = f'{chart.NAMES[values.form]} "{values.title}" in {values.unit}: {chart.listed(values)}.'
    return text, described + asked if described_first else asked + described


def _of_table(rng, split):
    cells = table.content(rng, split)
    return f"{table.markdown(cells)}\n", table.small_questions(rng, cells, MOST)


def _of_scene(rng, split):
    things = scene.content(rng)
    return scene.description(things), scene.small_questions(rng, things, MOST)


def _of_pair(rng, split):
    first, second = pair.two_scenes(rng)
    text = f"The first image shows {scene.listed(first)}. The second image shows {scene.listed(second)}."
    return text, [(rng.choice(pair.QUESTIONS), pair.answer(pair.side_by_side(first, second)))]
