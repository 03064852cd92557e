"""Book covers: a title of one to four lines, an author, and ornaments that are not to be read."""

import random

from . import colors, effects, fonts, words
from .canvas import Canvas
from .sample import Sample

QUESTIONS = (
    "Help me get the title and author information of this book?",
    "Help me get the title and author information of this book",
    "What is the title and who is the author of this book?",
    "Who wrote this book and what is it called?",
    "Read the title and the author from this cover.",
)
ANSWER = 'The title of the book is "{title}" and the author is {author}.'
TITLE_QUESTIONS = ("What is the title of this book?", "What is this book called?", "Give me only the title.")
TITLE_ANSWER = 'The title of the book is "{title}".'
AUTHOR_QUESTIONS = ("Who is the author of this book?", "Who wrote this book?", "Give me only the author.")
AUTHOR_ANSWER = "The author is {author}."


def draw(rng: random.Random, split: str) -> Sample:
    """A cover of random size; all lengths below are for a cover 448 pixels high and grow with it."""
    scale = rng.choice((1.0, 1.0, rng.uniform(1.0, 2.0)))
    width, height = round(rng.uniform(290, 360) * scale), round(448 * scale)
    title, author = words.title(rng, split), words.name(rng, split)
    background = colors.any_color(rng)
    canvas = Canvas(width, height, background)
    panel = _ornaments(rng, canvas, background, scale)
    ink = colors.readable_on(rng, background, panel)
    printed_author = author.upper() if rng.random() < 0.3 else author
    align = rng.choice(("center", "center", "left", "right"))

    title_font, spacing, lines = _fit(rng, split, title, width, rng.uniform(44, 68) * scale, 4)
    author_size = min(rng.uniform(30, 42) * scale, 0.75 * title_font.size)
    author_font, author_spacing, author_lines = _fit(rng, split, printed_author, width, author_size, 2)
    title_height = len(lines) * title_font.size * 1.15
    author_height = author_font.size * 1.2
    blocks = [(lines, title_font, spacing), (author_lines, author_font, author_spacing)]
    free = height - title_height - author_height - 40 * scale
    top = 20 * scale + rng.random() * free * 0.6
    gap = rng.uniform(min(14 * scale, free * 0.4), free * 0.4)
    top = min(top, height - title_height - gap - len(author_lines) * author_font.size * 1.15)  # of two lines, too
    if rng.random() < 0.3:
        blocks.reverse()
    ink_author = ink if rng.random() < 0.5 else colors.readable_on(rng, background, panel)
    for i, (block, font, extra) in enumerate(blocks):
        for line in block:
            space = width - canvas.width_of(line, font, extra)
            x = {"center": space / 2, "left": 0.07 * width, "right": 0.93 * width - (width - space)}[align]
            canvas.text(x, top + 0.85 * font.size, line, font, ink if font is title_font else ink_author, extra)
            top += font.size * 1.15
        if i == 0:
            if rng.random() < 0.2:
                y = top + gap / 2
                canvas.draw.line((0.3 * width, y, 0.7 * width, y), ink, max(1, round(2 * scale)))
            top += gap
    facts = {"title": title, "author": printed_author}
    turns = [(rng.choice(QUESTIONS), ANSWER.format(**facts))]
    extra_turn = rng.choice(((TITLE_QUESTIONS, TITLE_ANSWER), (AUTHOR_QUESTIONS, AUTHOR_ANSWER)))
    if split == "train" and rng.random() < 0.3:
        turns.append((rng.choice(extra_turn[0]), extra_turn[1].format(**facts)))
        if rng.random() < 0.5:
            turns.reverse()
    return Sample("cover", [effects.wear(rng, canvas.image)], turns, facts, [canvas.characters])


def _fit(rng, split, text, width, size, max_lines):
    """Font, spacing and lines so that `text` fits: the preferred size first, smaller ones until it does."""
    family, weight = fonts.pick(rng, split)
    wide = rng.random()
    loose = 2 * wide if wide < 0.15 else 0  # letter spacing in ems, as titles of one short word often have
    while True:
        font, spacing = fonts.load(family, round(size), weight), loose * size
        lines = _wrap(text, font, spacing, 0.88 * width)
        widest = max(Canvas.width_of(line, font, spacing) for line in lines)
        if len(lines) <= max_lines and widest <= 0.9 * width:
            return font, spacing, lines
        loose, size = 0, size * 0.94


def _wrap(text, font, spacing, width):
    lines = []
    for word in text.split():
        if lines and Canvas.width_of(f"{lines[-1]} {word}", font, spacing) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _ornaments(rng, canvas, background, scale):
    """Frames, bands, discs and hills in a colour close to the background; returns that colour."""
    width, height = canvas.image.size
    shade = rng.uniform(0.75, 1.25)
    color = tuple(max(0, min(255, round(c * shade + rng.uniform(-15, 15)))) for c in background)
    style = rng.random()
    if style < 0.2:
        inset = rng.randint(4, 10) * scale
        canvas.draw.rectangle((inset, inset, width - inset, height - inset), outline=color, width=round(2 * scale))
    elif style < 0.35:
        y = rng.uniform(0, height)
        canvas.draw.rectangle((0, y, width, y + rng.uniform(0.1, 0.5) * height), fill=color)
    elif style < 0.55:
        for _ in range(rng.randint(1, 4)):
            x, y, r = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0.05, 0.4) * width
            canvas.draw.ellipse((x - r, y - r, x + r, y + r), fill=color)
    elif style < 0.7:
        points = [(x * width / 4, height * rng.uniform(0.55, 1.0)) for x in range(5)]
        canvas.draw.polygon([*points, (width, height), (0, height)], fill=color)
    elif style < 0.85:
        for y in range(height):
            mix = y / height
            line = tuple(round(b * (1 - mix) + c * mix) for b, c in zip(background, color, strict=True))
            canvas.draw.line((0, y, width, y), line)
    else:
        return background
    return color
