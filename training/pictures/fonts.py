"""The fonts of the pictures: open families from PyPI (`fontpkg-*`) and Pillow's built-in one, split in two."""

import functools
import random

import fontpkg.pil
from PIL import ImageFont

#: Pillow's own scalable font (Aileron): what a user gets from `ImageFont.load_default(size)`.
PILLOW = "Pillow default"

TRAIN = (
    "Abril Fatface", "Anton", "Archivo Narrow", "Arimo", "Arvo", "Barlow Condensed", "Bitter", "Cabin", "Comfortaa",
    "Crimson Text", "DM Serif Display", "EB Garamond", "Fira Sans", "IBM Plex Mono", "Inter", "JetBrains Mono",
    "Josefin Sans", "Kanit", "Lato", "Libre Baskerville", "Lora", "Merriweather", "Montserrat", "Noto Serif",
    "Nunito", "Open Sans", "Oswald", PILLOW, "Playfair Display", "Poppins", "PT Serif", "Quicksand", "Raleway",
    "Roboto", "Roboto Slab", "Rubik", "Source Sans 3", "Work Sans", "Zilla Slab",
)  # fmt: skip
HELD_OUT = (
    "Exo 2", "IBM Plex Serif", "Libre Franklin", "Mulish", "Overpass", "Sanchez", "Spectral", "Titillium Web",
)  # fmt: skip


@functools.lru_cache(maxsize=256)
def load(family: str, size: int, weight: int = 400) -> ImageFont.FreeTypeFont:
    """A font of `size` pixels; `weight` is rounded to what the family has. Fonts are large: few are cached."""
    if family == PILLOW:
        return ImageFont.load_default(size)
    return fontpkg.pil.truetype(family, size, weight, nearest=True, layout_engine=ImageFont.Layout.BASIC)


def pick(rng: random.Random, split: str) -> tuple[str, int]:
    """A random family of the split and a weight for it."""
    return rng.choice(HELD_OUT if split == "heldout_fonts" else TRAIN), rng.choice((400, 500, 600, 700, 800))


@functools.cache
def file(family: str) -> str | None:
    """The path of a family's regular file, for libraries that draw their own text and know no weight axis; none for
    a family whose file is thin or bold by default."""
    if family == PILLOW:
        return None
    path = str(fontpkg.path(family, nearest=True))
    try:
        axes = ImageFont.truetype(path).get_variation_axes()
    except OSError:  # not a variable font
        axes = []
    return path if all(axis["default"] == 400 for axis in axes if axis["name"] == b"Weight") else None
