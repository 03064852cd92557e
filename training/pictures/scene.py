"""Scenes of coloured shapes: what, how many, which colour, where."""

import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from . import effects
from .sample import CHARACTERS, SHAPES, Sample, read_first

COLORS = {
    "red": (214, 39, 40), "green": (44, 150, 60), "blue": (40, 90, 210), "yellow": (245, 208, 40),
    "orange": (250, 135, 25), "purple": (130, 60, 170), "black": (25, 25, 25), "pink": (250, 140, 190),
}  # fmt: skip
NUMBERS = "no one two three four five six seven eight nine".split()
#: A scene is a grid of three rows and three columns; no cell holds more than one thing.
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "center", "right")
BACKGROUNDS = ((255, 255, 255), (240, 240, 235), (225, 235, 245), (245, 235, 220), (205, 225, 205))

DESCRIBE_QUESTIONS = (
    "Describe this picture.",
    "Describe this image.",
    "What do you see in this picture?",
    "What objects are in this image?",
)
COUNT_QUESTIONS = ("How many {things} are there?", "How many {things} do you see?", "Count the {things}.")
WHERE_QUESTIONS = ("Where is the {thing}?", "Where in the picture is the {thing}?")
COLOR_QUESTIONS = ("Which color is the {shape}?", "What color does the {shape} have?")


@dataclass(frozen=True)
class Thing:
    """One shape: its kind, its colour, its cell (row, column)."""

    shape: str
    color: str
    row: int
    column: int

    @property
    def name(self) -> str:
        """As in "red circle"."""
        return f"{self.color} {self.shape}"

    @property
    def a_name(self) -> str:
        """As in "an orange heart"."""
        return f"{'an' if self.color[0] in 'aeiou' else 'a'} {self.name}"

    @property
    def place(self) -> str:
        """As in "top left", "center"."""
        if (self.row, self.column) == (1, 1):
            return "center"
        return f"{ROWS[self.row]} {COLUMNS[self.column]}"


def draw(rng: random.Random, split: str) -> Sample:
    """One to six things; the description names all of them, row by row."""
    things = content(rng)
    turns = [(rng.choice(DESCRIBE_QUESTIONS), description(things))]
    more = small_questions(rng, things)
    if split == "train":  # many answers for one picture cost little more than one
        turns = rng.choice((turns, more, more + turns, turns + small_questions(rng, things, read=False)))
    image, marks = paint(rng, things)
    truth = {"things": [vars(thing) for thing in things], "description": description(things)}
    return Sample("scene", [effects.wear(rng, image)], turns, truth, [marks])


def content(rng: random.Random, most: int = 6) -> list[Thing]:
    """Up to `most` things in the order of their cells; few kinds, so that some come more than once."""
    kinds = [(rng.choice(SHAPES), rng.choice(list(COLORS))) for _ in range(rng.randint(1, 4))]
    cells = sorted(rng.sample(range(9), rng.randint(1, most)))
    return [Thing(*rng.choice(kinds), *divmod(cell, 3)) for cell in cells]


def listed(things: list[Thing]) -> str:
    """As in "a red circle at the top left, an orange heart at the center"."""
    return ", ".join(f"{thing.a_name} at the {thing.place}" for thing in things)


def description(things: list[Thing]) -> str:
    """Each thing with its place."""
    return f"The picture shows {listed(things)}."


def aloud(things: list[Thing], shape: str) -> str:
    """As in "Stars: red at the top left, blue at the center. ": a small model answers better once it has listed them;
    empty where there are none."""
    said = ", ".join(f"{thing.color} at the {thing.place}" for thing in things if thing.shape == shape)
    return f"{shape.capitalize()}s: {said}. " if said else ""


def counted(things: list[Thing], color: str, shape: str) -> str:
    """How many there are of this shape and, unless it is empty, of this colour, as in "There are two stars."."""
    number = sum(thing.shape == shape and color in ("", thing.color) for thing in things)
    are, plural = ("is", "") if number == 1 else ("are", "s")
    return f"There {are} {NUMBERS[number]} {f'{color} {shape}'.strip()}{plural}."


def small_questions(rng: random.Random, things: list[Thing], most: int = 2, read: bool = True) -> list[tuple[str, str]]:
    """Up to `most` questions about counts, places and colours, as far as they have one answer, in random order; with
    `read` the first answer begins with the description."""
    turns = {}
    for thing in rng.sample(things, len(things)):
        color = rng.choice(("", thing.color, rng.choice(list(COLORS))))
        shape = rng.choice((*3 * (thing.shape,), rng.choice(SHAPES)))
        question = rng.choice(COUNT_QUESTIONS).format(things=f"{color} {shape}s".strip())
        turns[question] = aloud(things, shape) + counted(things, color, shape)
        if sum(t.name == thing.name for t in things) == 1:
            question = rng.choice(WHERE_QUESTIONS).format(thing=thing.name)
            turns[question] = f"{aloud(things, thing.shape)}The {thing.name} is at the {thing.place}."
        if sum(t.shape == thing.shape for t in things) == 1:
            question = rng.choice(COLOR_QUESTIONS).format(shape=thing.shape)
            turns[question] = f"{aloud(things, thing.shape)}The {thing.shape} is {thing.color}."
    chosen = rng.sample(list(turns.items()), min(len(turns), most))
    return read_first(description(things), chosen) if read else chosen


def paint(rng: random.Random, things: list[Thing], size: tuple[int, int] | None = None):
    """The picture of the things, and their boxes as `Sample.characters` describes.

    It is drawn at twice its size and reduced, so that edges are smooth.
    """
    width, height = size or rng.choice(((448, 448), (448, 336), (400, 300), (336, 448), (600, 450)))
    image = Image.new("RGB", (2 * width, 2 * height), rng.choice(BACKGROUNDS))
    pen = ImageDraw.Draw(image)
    cell_width, cell_height = 2 * width / 3, 2 * height / 3
    seed, boxes = rng.random(), []
    for thing in things:
        # Each cell has its own random numbers: where two scenes hold the same thing it looks the same.
        own = random.Random(f"{seed}/{thing.row}/{thing.column}")
        radius = min(cell_width, cell_height) * own.uniform(0.26, 0.4)
        x = (thing.column + 0.5) * cell_width + own.uniform(-1, 1) * (cell_width / 2 - radius) * 0.6
        y = (thing.row + 0.5) * cell_height + own.uniform(-1, 1) * (cell_height / 2 - radius) * 0.6
        corners = outline(thing.shape, x, y, radius)
        pen.polygon(corners, COLORS[thing.color])
        xs, ys = (np.array(part) / 2 for part in zip(*corners))
        boxes.append((len(CHARACTERS) + SHAPES.index(thing.shape), xs.min(), ys.min(), xs.max(), ys.max()))
    return image.reduce(2), np.array(boxes, dtype=np.float32).reshape(-1, 5)


def outline(shape: str, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """The corners of a shape around (x, y), in pixels."""
    if shape == "square":
        side = 0.85 * radius
        return [(x - side, y - side), (x + side, y - side), (x + side, y + side), (x - side, y + side)]
    if shape == "heart":
        # The heart curve x = 16 sin³ t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t.
        turns = [2 * math.pi * i / 60 for i in range(60)]
        return [
            (
                x + radius * math.sin(t) ** 3,
                y - radius * (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16,
            )
            for t in turns
        ]
    corners, inner = {"circle": (60, 1), "triangle": (3, 1), "star": (10, 0.42)}[shape]
    return [
        (
            x + radius * (inner if i % 2 and shape == "star" else 1) * math.sin(2 * math.pi * i / corners),
            y - radius * (inner if i % 2 and shape == "star" else 1) * math.cos(2 * math.pi * i / corners),
        )
        for i in range(corners)
    ]
