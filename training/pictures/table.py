"""Tables of two to four columns and two to five rows, headers above, in several styles."""

import json
import random

from . import colors, effects, fonts, words
from .canvas import Canvas
from .sample import Sample, letter, lettered, read_first

QUESTIONS = (
    "Convert this table to Markdown.",
    "Can you convert the table to markdown format?",
    "Read the table and give it to me in Markdown.",
    "Please transcribe this table as Markdown.",
)
JSON_QUESTIONS = (
    "Convert this table to JSON.",
    "Give me the table as JSON.",
    "Can you convert the table to JSON format?",
)
CELL_QUESTIONS = (
    "What is the {column} of {row}?",
    "What does the table say for {row} under {column}?",
    "Give me only the {column} of {row}.",
)
CELL_ANSWER = "{row} is in {letter}: {column} {cell}."


def draw(rng: random.Random, split: str) -> Sample:
    """A table of random words and numbers; the first column names the rows."""
    cells = content(rng, split)
    turns = [(rng.choice(QUESTIONS), markdown(cells))]
    if split == "train":
        if rng.random() < 0.25:
            turns = [(rng.choice(JSON_QUESTIONS), as_json(cells))]
        more = small_questions(rng, cells)
        turns = rng.choice((turns, more, more + turns, turns + more))
    image, characters = paint(rng, split, cells)
    if split == "train" and rng.random() < effects.SHEETS:
        image, characters = effects.on_a_sheet(rng, image, characters)
    return Sample("table", [effects.wear(rng, image)], turns, {"cells": cells}, [characters])


def small_questions(rng: random.Random, cells: list[list[str]], most: int = 3) -> list[tuple[str, str]]:
    """Questions about `most` cells; the first answer begins with all rows."""
    places = [(j, i) for j in range(1, len(cells)) for i in range(1, len(cells[0]))]
    turns = []
    for j, i in rng.sample(places, min(len(places), most)):
        fact = {"column": cells[0][i], "row": cells[j][0], "cell": cells[j][i], "letter": letter(j - 1)}
        turns.append((rng.choice(CELL_QUESTIONS).format(**fact), CELL_ANSWER.format(**fact)))
    return read_first(listed(cells), turns)


def listed(cells: list[list[str]]) -> str:
    """As in "a) Lemon: Price $2.15; Stock 208. b) Apple: Price $1.10; Stock 5."."""
    header, *rows = cells
    facts = ["; ".join(map(" ".join, zip(header[1:], row[1:], strict=True))) for row in rows]
    return " ".join(f"{item}." for item in lettered([f"{row[0]}: {fact}" for row, fact in zip(rows, facts)]))


def markdown(cells: list[list[str]]) -> str:
    """The rows as a Markdown table, the first one as its header."""
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + " --- |" * len(cells[0]), *lines[1:]])


def as_json(cells: list[list[str]]) -> str:
    """The keyword arguments of `pandas.DataFrame`, one row a line."""
    columns, *rows = (json.dumps(row, ensure_ascii=False) for row in cells)
    return '{"columns": ' + columns + ',\n"data": [' + ",\n".join(rows) + "]}"


def content(rng: random.Random, split: str) -> list[list[str]]:
    """Rows of cells, the header first; a column holds words or numbers, and the first one names that differ."""
    columns, rows = rng.randint(2, 4), rng.randint(2, 5)
    longest = {2: 10, 3: 8, 4: 6}[columns]  # room for large type

    def different(count, make):
        found: list[str] = []
        while len(found) < count:
            text = make()
            if text not in found and len(text) <= longest:
                found.append(text)
        return found

    def fitting():
        # Drawn again, not cut: the part of a word is another word, which may belong to another split.
        while True:
            text = rng.choice((words.word(rng, split), words.word(rng, split).capitalize()))
            if len(text) <= longest:
                return text

    table = [different(rows, lambda: words.word(rng, split).capitalize())]
    for _ in range(columns - 1):
        if rng.random() < 0.75:
            digits = rng.randint(1, 4)
            decimals = rng.choice((0, 0, 0, 1, 2)) if digits < (4 if columns < 4 else 3) else 0
            suffix, prefix = rng.choice((("", ""), ("", ""), ("%", ""), ("", "$")))
            table.append(
                [
                    f"{prefix}{rng.uniform(0, 10**digits):{',' if digits > 3 else ''}.{decimals}f}{suffix}"
                    for _ in range(rows)
                ]
            )
        else:
            table.append([fitting() for _ in range(rows)])
    header = different(columns, lambda: words.word(rng, split).capitalize())
    return [header, *map(list, zip(*table, strict=True))]


def paint(rng: random.Random, split: str, cells: list[list[str]]):
    """The picture of a table, header first, and its characters as `Sample.characters` describes."""
    scale = rng.choice((1.0, 1.0, rng.uniform(1.0, 2.0)))
    family, bold = fonts.pick(rng, split)[0], rng.choice((400, 600, 700))
    background = rng.choice(((255, 255, 255), (255, 255, 255), colors.any_color(rng)))
    zebra = tuple(round(c + (128 - c) * rng.uniform(0.06, 0.16)) for c in background)
    head = rng.choice((background, zebra, colors.any_color(rng)))
    ink, head_ink = colors.readable_on(rng, background, zebra, ratio=4.5), colors.readable_on(rng, head, ratio=4.5)
    striped, lines = rng.random() < 0.35, rng.choice(("all", "rows", "head", "none"))
    right = rng.random() < 0.4

    size, room = rng.uniform(24, 34) * scale, 436 * scale
    while True:
        body, top = fonts.load(family, round(size), 400), fonts.load(family, round(size), bold)
        pad = 0.55 * size
        widths = [
            max(Canvas.width_of(row[i], top if row is cells[0] else body) for row in cells) + 2 * pad
            for i in range(len(cells[0]))
        ]
        if sum(widths) <= room or size < 11 * scale:
            break
        size *= 0.95
    spare = (room - sum(widths)) / len(widths) * rng.choice((0, 0.5, 1))
    widths = [width + max(0, spare) for width in widths]
    row_height = size * rng.uniform(1.6, 2.3)
    margin = rng.uniform(4, 14) * scale
    width = round(sum(widths) + 2 * margin)
    height = round(row_height * len(cells) + 2 * margin)
    canvas = Canvas(width, height, background)
    line = tuple((2 * a + b) // 3 for a, b in zip(background, ink, strict=True))
    thin = max(1, round(scale))
    for j, row in enumerate(cells):
        y = margin + j * row_height
        fill = head if j == 0 else zebra if striped and j % 2 == 0 else background
        canvas.draw.rectangle((margin, y, width - margin, y + row_height), fill)
        x = margin
        for i, text in enumerate(row):
            font = top if j == 0 else body
            space = widths[i] - canvas.width_of(text, font)
            left = x + (space - pad if right and i > 0 else pad)
            canvas.text(left, y + row_height / 2 + 0.36 * size, text, font, head_ink if j == 0 else ink)
            x += widths[i]
    for j in range(len(cells) + 1):
        if lines in ("all", "rows") or (lines == "head" and j == 1):
            y = margin + j * row_height
            canvas.draw.line((margin, y, width - margin, y), line, thin)
    if lines == "all":
        for i in range(len(widths) + 1):
            x = margin + sum(widths[:i])
            canvas.draw.line((x, margin, x, height - margin), line, thin)
    return canvas.image, canvas.characters
