"""Conversations without a picture, about what the question itself says: lists, tables, two scenes in words.

They teach to repeat, to take up a name from a question, to find it again, and to compare.
"""

import random

from . import chart, pair, scene, table
from .sample import Sample

TURNS = 6


def draw(rng: random.Random, split: str) -> Sample:
    """`TURNS` questions with their answers; no picture."""
    ways = (_repeated, _of_chart, _of_chart, _of_table, _of_scene, _of_pair)
    return Sample("notes", [], [rng.choice(ways)(rng, split) for _ in range(TURNS)])


def _repeated(rng, split) -> tuple[str, str]:
    text = rng.choice(
        (
            chart.listed(chart.content(rng, split)),
            table.markdown(table.content(rng, split)),
            scene.listed(scene.content(rng)),
        )
    )
    return f"Repeat: {text}", text


def _of_chart(rng, split) -> tuple[str, str]:
    values = chart.content(rng, split)
    turns = [(rng.choice(chart.QUESTIONS), chart.description(values)), *chart.small_questions(rng, values)]
    question, answer = rng.choice(turns)
    return f'{chart.NAMES[values.form]} "{values.title}" in {values.unit}: {chart.listed(values)}. {question}', answer


def _of_table(rng, split) -> tuple[str, str]:
    cells = table.content(rng, split)
    question, answer = rng.choice(table.small_questions(rng, cells))
    return f"{table.markdown(cells)}\n{question}", answer


def _of_scene(rng, split) -> tuple[str, str]:
    things = scene.content(rng)
    question, answer = rng.choice(scene.small_questions(rng, things))
    return f"The picture shows {scene.listed(things)}. {question}", answer


def _of_pair(rng, split) -> tuple[str, str]:
    first, second = pair.two_scenes(rng)
    shown = f"The first image shows {scene.listed(first)}. The second image shows {scene.listed(second)}."
    return f"{shown} {rng.choice(pair.QUESTIONS)}", pair.answer(pair.side_by_side(first, second))
