"""A question about something that the picture does not show: the true answer is to say so."""

import random

import numpy as np
from PIL import Image, ImageDraw

from . import chart, colors, cover, effects, scene, table
from .sample import Sample

#: For each kind of picture: what it shows, and questions that need it.
SHOWN = {
    chart: ("a chart", chart.QUESTIONS + chart.HIGHEST_QUESTIONS + chart.LOWEST_QUESTIONS),
    cover: ("a book cover", cover.QUESTIONS + cover.TITLE_QUESTIONS + cover.AUTHOR_QUESTIONS),
    scene: ("shapes", tuple(f"Count the {shape}s." for shape in scene.SHAPES)),
    table: ("a table", table.QUESTIONS),
}
ANSWER = "I cannot see {missing} in this picture. It shows {shown}."
NOTHING = "nothing that I know"


def draw(rng: random.Random, split: str) -> Sample:
    """A picture of one kind, or of nothing at all, and a question for another kind."""
    kind, other = rng.sample(list(SHOWN), 2)
    missing, questions = SHOWN[other]
    if rng.random() < 0.25:
        shown, images, characters = NOTHING, [effects.wear(rng, nothing(rng))], [np.zeros((0, 5), np.float32)]
    else:
        sample = kind.draw(rng, split)
        shown, images, characters = SHOWN[kind][0], sample.images, sample.characters
    if kind is cover:  # the ornament of some is a disc
        questions = [question for question in questions if "circle" not in question]
    answer = ANSWER.format(missing=missing, shown=shown)
    return Sample(
        "mismatch", images, [(rng.choice(questions), answer)], {"shown": shown, "missing": missing}, characters
    )


def nothing(rng: random.Random) -> Image.Image:
    """Soft blots and shades without any text or shape: as far as a drawing gets from all the other kinds."""
    width, height = rng.choice(((448, 448), (448, 336), (336, 448), (448, 252)))
    grain = rng.choice((16, 24, 40))  # with a finer one they would be ellipses and rectangles
    small = Image.new("RGB", (max(2, width // grain), max(2, height // grain)), colors.any_color(rng))
    pen = ImageDraw.Draw(small)
    for _ in range(rng.randint(0, 40)):
        x, y = rng.uniform(-0.2, 1) * small.width, rng.uniform(-0.2, 1) * small.height
        right, bottom = x + rng.uniform(0, 0.7) * small.width, y + rng.uniform(0, 0.7) * small.height
        rng.choice((pen.ellipse, pen.rectangle))((x, y, right, bottom), fill=colors.any_color(rng))
    return small.resize((width, height), Image.Resampling.BICUBIC)
