"""Conversations about charts, tables and scenes without their pictures: the answer is given what it would read.

They teach how to look up, count and compare what an answer has just said, at a fraction of the cost of a picture.
"""

import random
from dataclasses import replace

from . import chart, scene, table
from .sample import Sample

#: The most questions that are asked.
MOST = 3


def draw(rng: random.Random, split: str) -> Sample:
    """Up to `MOST` questions with their answers, of which the first begins with what is told; no picture."""
    told, turns = rng.choice((_of_chart, _of_chart, _of_chart, _of_table, _of_scene, _of_scene))(rng, split)
    return Sample("notes", [], turns, told=told)


def _of_chart(rng, split):
    content = chart.content(rng, split)
    if rng.random() < 0.7:  # numbers of the same and of different length
        numbers, comma = [], rng.choice(("", ","))
        for digits in rng.choice(((3,), (2, 3), (3, 4), (4, 5), (3, 4, 5), (1, 2, 3, 4, 5))):
            numbers += rng.sample(range(10 ** (digits - 1), 10**digits), 8)
        values = [f"{number:{comma}}" for number in rng.sample(numbers, len(content.labels))]
        content = replace(content, values=values)
    if rng.random() < 0.5:
        return f"{chart.listed(content)}.", chart.small_questions(rng, content, MOST)
    described = (rng.choice(chart.QUESTIONS), chart.description(content))
    return chart.said_of(content), [described, *chart.small_questions(rng, content, MOST - 1, read=False)]


def _of_table(rng, split):
    cells = table.content(rng, split)
    return table.listed(cells), table.small_questions(rng, cells, MOST)


def _of_scene(rng, split):
    things = scene.content(rng)
    return scene.description(things), scene.small_questions(rng, things, MOST)
