"""A picture of a few words, for those who have no picture at hand."""

from PIL import Image, ImageDraw, ImageFont

LARGEST, SMALLEST = 90, 24  # font sizes in pixels; below, the bundled checkpoint reads little


def draw_text(text: str, size: tuple[int, int] = (600, 400), ink="black", paper="#f4ead5") -> Image.Image:
    """Return a picture with the lines of `text` in its middle, in the largest letters that fit.

    Args:
        text: one line or several, of plain letters, digits and signs (ASCII).
        size: width and height in pixels.
        ink, paper: colours, as Pillow names them.

    Raises:
        ValueError: no text, too much of it to stay readable, or other characters than these.
    """
    if not isinstance(text, str):
        raise ValueError(f"The text to draw is {text!r}; pass a string.")
    text = "\n".join(line.strip() for line in text.expandtabs(4).strip().splitlines())
    if not text:
        raise ValueError("There are no words to draw; write some first.")
    others = "".join(sorted({letter for letter in text if not " " <= letter <= "~"} - {"\n"}))
    if others:
        raise ValueError(f"Only plain letters, digits and signs are drawn, not {others!r}; leave these out.")
    picture = Image.new("RGB", size, paper)
    pen = ImageDraw.Draw(picture)
    for pixels in range(LARGEST, SMALLEST - 1, -2):
        style = {"font": ImageFont.load_default(pixels), "spacing": 0.6 * pixels, "align": "center", "anchor": "mm"}
        left, top, right, bottom = pen.multiline_textbbox((size[0] / 2, size[1] / 2), text, **style)
        if right - left <= 0.9 * size[0] and bottom - top <= 0.9 * size[1]:
            pen.multiline_text((size[0] / 2, size[1] / 2), text, ink, **style)
            return picture
    raise ValueError(f"The text does not fit at {SMALLEST} pixels a letter; write less, or shorter lines.")
