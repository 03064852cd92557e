"""A picture to draw on that remembers where each character went."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .sample import CHARACTERS

INDEX = {character: i for i, character in enumerate(CHARACTERS)}


class Canvas:
    """A Pillow picture of `width` x `height` pixels with a `text` method that records every character's box."""

    def __init__(self, width: int, height: int, color):
        self.image = Image.new("RGB", (width, height), color)
        self.draw = ImageDraw.Draw(self.image)
        self._boxes: list[tuple[float, ...]] = []

    @property
    def characters(self) -> np.ndarray:
        """All characters so far, float32 `(number of characters, 5)` as `Sample.characters` describes."""
        return np.array(self._boxes, dtype=np.float32).reshape(-1, 5)

    def text(self, x: float, baseline: float, text: str, font: ImageFont.FreeTypeFont, fill, spacing: float = 0):
        """Draws one line from `x` on `baseline`, with `spacing` extra pixels between the characters."""
        x, baseline = round(x), round(baseline)
        if not spacing:
            self.draw.text((x, baseline), text, font=font, fill=fill, anchor="ls")
        top, bottom = baseline - 0.72 * font.size, baseline + 0.12 * font.size
        for character in text:
            right = x + font.getlength(character)
            if spacing:
                self.draw.text((x, baseline), character, font=font, fill=fill, anchor="ls")
            if character in INDEX:
                self._boxes.append((INDEX[character], x, top, right, bottom))
            x = right + spacing

    @staticmethod
    def width_of(text: str, font: ImageFont.FreeTypeFont, spacing: float = 0) -> float:
        """Width in pixels that `text` will take."""
        return font.getlength(text) + spacing * max(len(text) - 1, 0)
