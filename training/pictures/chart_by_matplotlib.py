"""Charts as people have them: drawn by matplotlib in its own styles. The characters' places are not recorded."""

import random

import numpy as np
from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from PIL import Image

from . import fonts

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
    """Returns the picture of a `Chart` and an empty array of characters."""
    with style.context(rng.choice(STYLES)):
        figure = Figure(figsize=(rng.uniform(4.8, 5.6), rng.uniform(3.4, 4.2)), dpi=100, layout="constrained")
        canvas, axes = FigureCanvasAgg(figure), figure.subplots()
        while not (file := fonts.file(fonts.pick(rng, split)[0])):
            pass
        family = FontProperties(fname=file)
        small = rng.randint(16, 19)
        color = f"C{rng.randrange(4)}"
        if chart.form == "line":
            axes.plot(chart.labels, chart.numbers, color, marker=rng.choice("os^"))
            for i, (number, value) in enumerate(zip(chart.numbers, chart.values, strict=True)):
                above = {"xytext": (0, 6), "textcoords": "offset points", "ha": "center"}
                axes.annotate(value, (i, number), fontproperties=family, fontsize=small, **above)
        else:
            lying = chart.form == "lying"
            bars = (axes.barh if lying else axes.bar)(chart.labels, chart.numbers, color=color)
            axes.bar_label(bars, chart.values, padding=3, fontproperties=family, fontsize=small)
            if lying:
                axes.invert_yaxis()
        axes.margins(x=0.22 if chart.form == "lying" else 0.08, y=0.12)
        axes.set_title(chart.title, fontproperties=family, fontsize=rng.randint(20, 24))
        (axes.set_xlabel if chart.form == "lying" else axes.set_ylabel)(chart.unit, fontproperties=family, fontsize=18)
        for tick in (axes.get_yticklabels if chart.form == "lying" else axes.get_xticklabels)():
            tick.set(fontproperties=family, fontsize=small)
        (axes.set_xticks if chart.form == "lying" else axes.set_yticks)([])
        canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return image, np.zeros((0, 5), dtype=np.float32)
