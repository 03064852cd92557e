"""A question about something that the picture does not show: the true answer is to say so."""

import random

from . import chart, cover, scene, table
from .sample import Sample

#: For each kind of picture: what it shows, and questions that need it.
SHOWN = {
    chart: ("a chart", chart.QUESTIONS + chart.HIGHEST_QUESTIONS + chart.LOWEST_QUESTIONS),
    cover: ("a book cover", cover.QUESTIONS + cover.TITLE_QUESTIONS + cover.AUTHOR_QUESTIONS),
    scene: ("shapes", tuple(f"Count the {shape}s." for shape in scene.SHAPES)),
    table: ("a table", table.QUESTIONS),
}
ANSWER = "I cannot see {missing} in this picture. It shows {shown}."


def draw(rng: random.Random, split: str) -> Sample:
    """A picture of one kind and a question for another."""
    kind, other = rng.sample(list(SHOWN), 2)
    (shown, _), (missing, questions) = SHOWN[kind], SHOWN[other]
    sample = kind.draw(rng, split)
    answer = ANSWER.format(missing=missing, shown=shown)
    truth = {"shown": shown, "missing": missing}
    return Sample("mismatch", sample.images, [(rng.choice(questions), answer)], truth, sample.characters)
