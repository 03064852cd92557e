"""Draws the pictures that the notebooks and the README show.

python -m training.notebook_images
"""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

from .pictures import fonts
from .pictures.canvas import Canvas

FOLDER = Path(__file__).resolve().parent.parent / "notebooks" / "images"


def book_cover() -> Image.Image:
    """The cover of the page that the collection grew from, redrawn: "ALONE" by Morgan Maxwell."""
    canvas = Canvas(600, 900, (17, 18, 22))
    pen = canvas.draw
    pen.ellipse((220, 470, 380, 630), fill=(46, 48, 56))
    for color, points in (
        ((34, 36, 43), [(0, 720), (130, 610), (260, 700), (420, 590), (600, 710), (600, 900), (0, 900)]),
        ((26, 27, 33), [(0, 800), (180, 720), (330, 790), (480, 710), (600, 780), (600, 900), (0, 900)]),
    ):
        pen.polygon(points, fill=color)
    pen.line((300, 770, 300, 806), fill=(8, 8, 10), width=6)  # somebody, alone
    pen.ellipse((293, 752, 307, 768), fill=(8, 8, 10))
    _centered(canvas, "ALONE", 250, fonts.load("Josefin Sans", 120, 600), "white", 14)
    _centered(canvas, "Morgan Maxwell", 380, fonts.load("Lato", 52), (225, 225, 225))
    return canvas.image


def hard_cover() -> Image.Image:
    """A cover that is hard for the bundled checkpoint: a script font, set askew, on a busy ground."""
    canvas = Canvas(600, 900, (214, 196, 150))
    for i in range(-900, 900, 36):
        canvas.draw.line((i, 0, i + 900, 900), fill=(196, 172, 120), width=14)
    text = Image.new("RGBA", (600, 420))
    pen = ImageDraw.Draw(text)
    pen.text((300, 130), "Whispers of", font=fonts.load("Dancing Script", 96, 700), fill=(80, 20, 40), anchor="ms")
    pen.text((300, 240), "the Tide", font=fonts.load("Dancing Script", 96, 700), fill=(80, 20, 40), anchor="ms")
    pen.text((300, 370), "Ana Belmonte", font=fonts.load("Dancing Script", 60, 600), fill=(60, 40, 30), anchor="ms")
    text = text.rotate(14, Image.Resampling.BICUBIC, expand=True)
    canvas.image.paste(text, ((600 - text.width) // 2, 200), text)
    return canvas.image.filter(ImageFilter.GaussianBlur(1))


def _centered(canvas: Canvas, text: str, baseline: int, font, fill, spacing: int = 0):
    x = (canvas.image.width - canvas.width_of(text, font, spacing)) / 2
    canvas.text(x, baseline, text, font, fill, spacing)


PICTURES = {"book_cover.png": book_cover, "hard_cover.png": hard_cover}


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        draw().quantize(128).save(FOLDER / name, optimize=True)
        print(FOLDER.name + "/" + name)


if __name__ == "__main__":
    main()
