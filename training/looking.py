"""Lessons in looking for the decoder: where in the pictures stands what it is saying.

The drawings know the place of every character and shape. One attention head (`attention.py`) is told to look at what
has just been said, a later one at what comes next, so that no row is read twice and none is left out.
"""

import math
import re

import numpy as np

from .pictures.sample import CHARACTERS, Sample
from .reading import PROCESSOR
from .recipe import PATCH, TILE

#: Side of the square of pixels that becomes one image token.
CELL = 2 * PATCH
_PLACE = r"(?:(top|middle|bottom) )?(left|center|right)"
_THING = re.compile(rf"an? \w+ \w+ at the {_PLACE}(?=[,.])")
_SCENES = re.compile(rf"t the {_PLACE}: (first [^,]*)(, second [^,]*),")
_VALUES = re.compile(r"(\S+(?: \d\d)?): first (\S+), second (\S+),")


def words_of(characters: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Characters and their edges, (number of characters, 5), as words: text, edges (characters of the word, 4)."""
    found: list[tuple[str, list]] = []
    lines = np.flatnonzero(np.abs(np.diff(characters[:, 2], prepend=-1e9)) > 0.5)
    for line in np.split(characters, lines[1:]):
        gaps = line[1:, 1] - line[:-1, 3]
        # Letters may be spaced; a space between words is wider.
        wide = (gaps > gaps.min(initial=0) + 0.15 * (line[0, 4] - line[0, 2])) | (gaps < -2)
        for word in np.split(line, np.flatnonzero(wide) + 1):
            text = "".join(CHARACTERS[int(i)] for i in word[:, 0] if i < len(CHARACTERS))
            found.append((text, word[:, 1:]))
    return found


def image_tokens(size: tuple[int, int], box: np.ndarray) -> list[int]:
    """The image tokens that show a box (left, top, right, bottom, in pixels) of a picture of this size, counted from
    the picture's first: in the tiles and in the global view."""
    resized = PROCESSOR.get_resized_size(*size)
    width, height = (math.ceil(side / TILE) * TILE for side in resized)
    pad = np.array([(width - resized[0]) // 2, (height - resized[1]) // 2] * 2)
    edges = box * np.tile(np.divide(resized, size), 2) + pad
    columns, rows, side = width // CELL, height // CELL, TILE // CELL
    small = edges * np.tile([TILE / width, TILE / height], 2)
    views = (edges, columns, rows, 0), (small, side, side, rows * (columns + 1) + 1)
    tokens = []
    for (left, top, right, bottom), columns, rows, first in views:
        # What only reaches into a cell by a pixel or two can hardly be seen there.
        x = range(max(0, int((left + 2) // CELL)), min(columns - 1, int((right - 2) // CELL)) + 1)
        y = range(max(0, int((top + 2) // CELL)), min(rows - 1, int((bottom - 2) // CELL)) + 1)
        tokens += [first + j * (columns + 1) + i for j in y for i in x]
    return tokens


def lessons(parts: list[str], is_image: list[bool], sample: Sample) -> list[tuple[int, int]]:
    """Pairs of the position of a token that is said and of an image token that shows it, where that is known.

    `parts` has the text of every token of the conversation, `is_image` tells which are parts of a picture.
    """
    if not sample.images or any(len(characters) == 0 for characters in sample.characters):
        return []
    return _Conversation(parts, is_image, sample).pairs


class _Conversation:
    """Goes through all answers and collects `pairs`."""

    def __init__(self, parts: list[str], is_image: list[bool], sample: Sample):
        self.text, self.owner = "".join(parts), [i for i, part in enumerate(parts) for _ in part]
        self.pairs: list[tuple[int, int]] = []
        self.pictures = []  # size, position of the first image token, words
        position = 0
        for image, characters in zip(sample.images, sample.characters, strict=True):
            position = is_image.index(True, position)
            self.pictures.append((image.size, position, words_of(characters)))
            width, height = PROCESSOR.get_resized_size(*image.size)
            position += PROCESSOR.get_num_image_tokens(*(math.ceil(side / TILE) * TILE for side in (height, width)))
        read = {"scene": self._scene, "pair": self._pair}.get(sample.kind, self._words)
        for answer in re.finditer(r"<\|assistant\|>[^<]*", self.text) if sample.kind != "several" else ():
            read(answer.span())

    def _look(self, span: tuple[int, int], picture: int, box):
        size, first, _ = self.pictures[picture]
        tokens = image_tokens(size, box)
        self.pairs += [(position, first + token) for position in set(self.owner[slice(*span)]) for token in tokens]

    def _look_at_place(self, span, picture: int, row: str | None, column: str):
        width, height = self.pictures[picture][0]
        x = ("left", "center", "right").index(column) * width / 3
        y = ("top", "middle", "bottom").index(row or "middle") * height / 3
        # A thing is in the inner part of its place.
        box = np.array([x + 0.1 * width / 3, y + 0.1 * height / 3, x + 0.9 * width / 3, y + 0.9 * height / 3])
        self._look(span, picture, box)

    def _look_at_word(self, word: str, start: int, picture: int, last: int) -> int | None:
        """The word, or else the next the same after the one numbered `last`; returns its number."""
        words = self.pictures[picture][2]
        found = [i for i, (text, _) in enumerate(words) if text == word]
        if not found:
            return None
        here = next((i for i in found if i > last), found[0])
        for i, edges in enumerate(words[here][1]):
            self._look((start + i, start + i + 1), picture, edges)
        return here

    def _scene(self, answer):
        for thing in _THING.finditer(self.text, *answer):
            self._look_at_place(thing.span(), 0, *thing.groups())

    def _pair(self, answer):
        for place in _SCENES.finditer(self.text, *answer):
            for picture in (0, 1):
                self._look_at_place(place.span(3 + picture), picture, *place.groups()[:2])
        last = [-1, -1]
        for values in _VALUES.finditer(self.text, *answer):
            for k in (0, 1):
                for group in (1, 2 + k):
                    if k == 0 or group != 1:  # the label is read in the first picture
                        here = self._look_at_word(values[group], values.start(group), k, last[k])
                        last[k] = last[k] if here is None else here

    def _words(self, answer):
        last = -1
        for match in re.compile(r"\S+").finditer(self.text, *answer):
            for word, start in _forms(match):
                here = self._look_at_word(word, start, 0, last)
                if here is not None:
                    last = here
                    break


def _forms(match):
    """A word as it is and without the signs around it, each with its beginning."""
    word, start = match[0], match.start()
    yield word, start
    inner = word.lstrip('"|[{')
    start += len(word) - len(inner)
    while inner:
        yield inner, start
        if inner[-1] not in '";:,.]}|':
            return
        inner = inner[:-1]
