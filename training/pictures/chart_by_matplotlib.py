"""Charts as people have them: drawn by matplotlib in its own styles."""

import functools
import itertools
import random

import numpy as np
from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text
from PIL import Image, ImageFont

from . import fonts
from .canvas import INDEX

STYLES = (
    "default",
    "ggplot",
    "bmh",
    "fivethirtyeight",
    "seaborn-v0_8-whitegrid",
    "seaborn-v0_8-pastel",
    "dark_background",
)


def draw(rng: random.Random, split: str, chart):
    """Returns the picture of a `Chart` and its characters as `Sample.characters` describes."""
    with style.context(rng.choice(STYLES)):
        lying, most = chart.form == "lying", max(map(len, [*chart.labels, *chart.values]))
        width, height = rng.uniform(4.8, 5.4), rng.uniform(3.6, 4.2) + 0.4 * (len(chart.labels) > 5)
        figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
        canvas, axes = FigureCanvasAgg(figure), figure.subplots()
        while not (file := fonts.file(fonts.pick(rng, split)[0])):
            pass
        family = FontProperties(fname=file)
        small = rng.randint(19, 22)
        if not lying:  # names and values stand side by side
            small = min(small, 72 * 0.85 * width / len(chart.labels) / (0.58 * most))
        color = f"C{rng.randrange(4)}"
        if chart.form == "line":
            axes.plot(chart.labels, chart.numbers, color, marker=rng.choice("os^"))
            above = {"xytext": (0, 6), "textcoords": "offset points", "ha": "center"}
            values = [
                axes.annotate(value, (i, number), fontproperties=family, fontsize=small, **above)
                for i, (number, value) in enumerate(zip(chart.numbers, chart.values, strict=True))
            ]
        else:
            bars = (axes.barh if lying else axes.bar)(chart.labels, chart.numbers, color=color)
            values = axes.bar_label(bars, chart.values, padding=3, fontproperties=family, fontsize=small)
            if lying:
                axes.invert_yaxis()
        axes.margins(**{"x": 0.22, "y": 0.03} if lying else {"x": 0.08, "y": 0.16})  # room for the values
        title_size = min(rng.randint(22, 26), 72 * 0.7 * width / (0.58 * len(chart.title)))
        axes.set_title(chart.title, fontproperties=family, fontsize=title_size)
        (axes.set_xlabel if lying else axes.set_ylabel)(chart.unit, fontproperties=family, fontsize=19)
        names = (axes.get_yticklabels if lying else axes.get_xticklabels)()
        for name in names:
            name.set(fontproperties=family, fontsize=small)
        (axes.set_xticks if lying else axes.set_yticks)([])
        canvas.draw()
        while not lying and (_touch(names, canvas) or _touch(values, canvas)):
            for text in (*names, *values):
                text.set_fontsize(0.95 * text.get_fontsize())
            canvas.draw()
        boxes = [box for text in figure.findobj(Text) for box in _boxes(text, canvas)]
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return image, np.array(boxes, dtype=np.float32).reshape(-1, 5)


def _touch(texts: list[Text], canvas: FigureCanvasAgg) -> bool:
    """Whether two neighbours in a row are less than a narrow space apart."""
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in texts]
    space = 0.15 * texts[0].get_fontsize() * canvas.figure.dpi / 72
    return any(
        left.x1 + space > right.x0 and left.x0 < right.x1 and left.y0 < right.y1 and right.y0 < left.y1
        for left, right in itertools.pairwise(boxes)
    )


#: Cached: a figure's texts share a file and a few sizes, and reading a font takes longer than measuring with it.
_font = functools.lru_cache(maxsize=16)(ImageFont.truetype)


def _boxes(text: Text, canvas: FigureCanvasAgg) -> list[tuple[float, ...]]:
    """The characters of a text, horizontal or rotated by 90 degrees, with their sides as in `Canvas.text`."""
    string, properties = text.get_text(), text.get_fontproperties()
    if not string.strip() or not text.get_visible():
        return []
    renderer, size = canvas.get_renderer(), text.get_fontsize() * canvas.figure.dpi / 72
    # A line has room for descenders even where it has none.
    *_, descent = renderer.get_text_width_height_descent(f"{string}lp", properties, False)
    extent, standing = text.get_window_extent(renderer), text.get_rotation() == 90
    font = _font(properties.get_file(), round(size))
    length, height = extent.height if standing else extent.width, canvas.figure.bbox.height
    boxes, end, whole = [], 0.0, font.getlength(string)
    for character in string:
        begin, end = end, end + font.getlength(character) / whole * length
        if standing:  # the baseline is on the right
            left, right = extent.x1 - descent - 0.72 * size, extent.x1 - descent + 0.12 * size
            top, bottom = height - extent.y0 - end, height - extent.y0 - begin
        else:
            left, right, baseline = extent.x0 + begin, extent.x0 + end, height - extent.y0 - descent
            top, bottom = baseline - 0.72 * size, baseline + 0.12 * size
        if character in INDEX:
            boxes.append((INDEX[character], left, top, right, bottom))
    return boxes
