"""Lines of text in mixed fonts, sizes and colours: to learn reading, and "what does it say?"."""

import random

from . import colors, effects, fonts, words
from .canvas import Canvas
from .sample import Sample

QUESTIONS = (
    "What is the text in this picture?",
    "What does the text say?",
    "Read the text in this image.",
    "Can you read this to me?",
    "Please transcribe the text.",
)


def phrase(rng: random.Random, split: str) -> str:
    """A word, a number or a name, cased at random."""
    if rng.random() < 0.15:
        return words.number(rng, split)
    if rng.random() < 0.15:
        return words.name(rng, split)
    word = words.word(rng, split)
    return rng.choice((word, word.capitalize(), word.upper()))


def draw(rng: random.Random, split: str, size=None, sizes=(18, 56), lines=None) -> Sample:
    """A page of `lines` (lowest, highest number) of text whose font sizes, in pixels, lie between `sizes`.

    By default two pages in three have a few short lines, the others are full of text: the decoder learns to read from
    every character of an answer, so long answers teach most.
    """
    lines = lines or rng.choice(((1, 5), (1, 5), (4, 12)))
    width, height = size or rng.choice(((448, 448), (448, 336), (336, 448), (448, 224), (448, 280)))
    background = colors.any_color(rng)
    canvas = Canvas(width, height, background)
    written, y = [], rng.randint(2, 24)
    for _ in range(rng.randint(*lines)):
        pixels = round(sizes[0] * (sizes[1] / sizes[0]) ** rng.random())
        family, weight = fonts.pick(rng, split)
        font = fonts.load(family, pixels, weight)
        baseline = y + 0.85 * pixels
        if baseline + 0.3 * pixels > height:
            break
        fill, margin = colors.readable_on(rng, background), rng.randint(2, 16)
        spacing = rng.choice((0, 0, 0, 0, 0.1 * pixels))
        line = ""
        while canvas.width_of(longer := f"{line} {phrase(rng, split)}".strip(), font, spacing) < width - 2 * margin:
            line = longer
            if lines[1] < 10 and rng.random() < 0.35:
                break
        if line:
            x = margin + rng.random() * (width - 2 * margin - canvas.width_of(line, font, spacing))
            canvas.text(x, baseline, line, font, fill, spacing)
            written.append(line)
            y = baseline + rng.uniform(0.3, 0.7) * pixels
    if not written:  # every phrase was wider than its line
        return draw(rng, split, size, sizes, lines)
    text = "\n".join(written)
    turns = [(rng.choice(QUESTIONS), text)]
    return Sample("page", [effects.wear(rng, canvas.image)], turns, {"text": text}, [canvas.characters])
