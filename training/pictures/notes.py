"""Conversations without a picture, about what the first question itself says: lists, tables, two scenes in words.

They teach to repeat, to take up a name from a question, to find it again, to count and to compare, at a fraction of
what a picture costs.
"""

import random

from . import chart, pair, scene, table
from .sample import Sample, read_first

#: Texts in a conversation, and questions about each at most.
TEXTS, MOST = 3, 8


def draw(rng: random.Random, split: str) -> Sample:
    """`TEXTS` texts, each with up to `MOST` questions and their answers; no picture."""
    ways, turns = (_repeated, _of_chart, _of_chart, _of_table, _of_scene, _of_scene, _of_pair), []
    for _ in range(TEXTS):
        text, [(question, answer), *more] = rng.choice(ways)(rng, split)
        turns += [(f"{text} {question}".strip(), answer), *more]
    return Sample("notes", [], turns)


def _repeated(rng, split):
    contents = (
        lambda: chart.listed(chart.content(rng, split)),
        lambda: table.markdown(table.content(rng, split)),
        lambda: scene.listed(scene.content(rng)),
    )
    text = rng.choice(contents)()
    return f"Repeat: {text}", [("", text)]


def _of_chart(rng, split):
    values = chart.content(rng, split)
    described = (rng.choice(chart.QUESTIONS), chart.description(values))
    turns, read = chart.small_questions(rng, values, MOST - 1), f"{chart.listed(values)}."
    text = f'{chart.NAMES[values.form]} "{values.title}" in {values.unit}: {read}'
    return text, rng.choice(([described, *turns], [*read_first(read, turns), described]))


def _of_table(rng, split):
    cells = table.content(rng, split)
    return f"{table.markdown(cells)}\n", table.small_questions(rng, cells, MOST)


def _of_scene(rng, split):
    things = scene.content(rng)
    shown = scene.description(things)
    return shown, read_first(shown, scene.small_questions(rng, things, MOST))


def _of_pair(rng, split):
    first, second = pair.two_scenes(rng)
    text = f"The first image shows {scene.listed(first)}. The second image shows {scene.listed(second)}."
    return text, [(rng.choice(pair.QUESTIONS), pair.answer(pair.side_by_side(first, second)))]
