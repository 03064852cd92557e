"""Draws four samples of each kind that has pictures, with a question and its answer, for training/README.md.

python -m training.gallery
"""

import argparse
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from .pictures import KINDS, draw
from .pictures.sample import Sample

FOLDER = Path(__file__).resolve().parent / "gallery"
CELL, PICTURE = (300, 400), (284, 220)
#: Four in a row from here on show every form of chart, drawn by hand and by matplotlib.
FIRST = 12


def card(sample: Sample) -> Image.Image:
    """The picture or pictures of a sample above one question and its answer."""
    image, left, top = Image.new("RGB", CELL, "white"), 8, 0
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    for picture in sample.images:
        small = picture.copy()
        small.thumbnail((PICTURE[0] // len(sample.images) - 4, PICTURE[1]), Image.Resampling.LANCZOS)
        image.paste(small, (left, 8))
        pen.rectangle((left - 1, 7, left + small.width, 8 + small.height), outline="lightgray")
        left, top = left + small.width + 8, max(top, small.height + 14)
    question, answer = sample.turns[0]
    for color, part in (("darkblue", question), *(("black", line) for line in answer.split("\n"))):
        for line in textwrap.wrap(part, 46):
            pen.text((8, top), line, color, font)
            top += 14
    return image


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    FOLDER.mkdir(exist_ok=True)
    for kind in (kind for kind in KINDS if kind != "notes"):
        sheet = Image.new("RGB", (4 * CELL[0], CELL[1]), "white")
        for i in range(4):
            sheet.paste(card(draw(kind, "train", FIRST + i)), (i * CELL[0], 0))
        _, _, _, bottom = ImageOps.invert(sheet).getbbox()
        sheet.crop((0, 0, sheet.width, bottom + 8)).quantize(128).save(FOLDER / f"{kind}.png", optimize=True)
        print(f"{FOLDER.name}/{kind}.png")


if __name__ == "__main__":
    main()
