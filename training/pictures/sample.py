"""What every kind of picture returns."""

from dataclasses import dataclass, field

import numpy as np
from PIL import Image

#: The characters that pictures hold and that the vision tower learns to name, in the order of its classes.
CHARACTERS = "".join(chr(code) for code in range(33, 127))
#: The shapes that it learns to name; their classes follow those of the characters.
SHAPES = ("circle", "square", "triangle", "star", "heart")


@dataclass
class Sample:
    """One training or test example: pictures (none in `notes`), questions with their true answers, the facts behind.

    `characters` has one array a picture, float32 `(number of characters, 5)`: index into `(*CHARACTERS, *SHAPES)`,
    then left, top, right, bottom in pixels of that picture. `told` is the beginning of the first answer that is given
    and not learned: what would be read from a picture, where there is none.
    """

    kind: str
    images: list[Image.Image]
    turns: list[tuple[str, str]]
    truth: dict = field(default_factory=dict)
    characters: list[np.ndarray] = field(default_factory=list)
    told: str = ""


def letter(place: int) -> str:
    """As in "a)" for 0: a letter is easier to look up than a name."""
    return f"{chr(ord('a') + place)})"


def lettered(items: list[str]) -> list[str]:
    """As in "a) one", "b) other"."""
    return [f"{letter(i)} {item}" for i, item in enumerate(items)]


def read_first(read: str, turns: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The first answer begins with all that was `read`, as a small model finds nothing at a glance; the others do not
    repeat it."""
    (question, answer), *more = turns
    return [(question, f"{read} {answer}"), *more]
