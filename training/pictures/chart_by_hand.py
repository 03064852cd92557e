"""Charts drawn with Pillow alone; fast, and every character's place is known."""

import random

from . import colors, fonts
from .canvas import Canvas


def draw(rng: random.Random, split: str, chart):
    """Returns the picture of a `Chart` and its characters as `Sample.characters` describes."""
    scale = rng.choice((1.0, 1.0, rng.uniform(1.0, 2.0)))
    heights = (299, 336, 380) if len(chart.labels) < 6 else (336, 380, 420)
    width, height = round(448 * scale), round(rng.choice(heights) * scale)
    background = rng.choice(((255, 255, 255), (255, 255, 255), colors.any_color(rng)))
    canvas = Canvas(width, height, background)
    ink = colors.readable_on(rng, background, ratio=4.5)
    family, weight = fonts.pick(rng, split)

    def write(text, x, baseline, size, align="center"):
        font = fonts.load(family, max(8, round(size)), weight)
        x -= {"left": 0, "center": 0.5, "right": 1}[align] * canvas.width_of(text, font)
        canvas.text(x, baseline, text, font, ink)

    def fitting(texts, size, room):
        font = fonts.load(family, round(size), weight)
        return size * min(1, room / max(canvas.width_of(text, font) for text in texts))

    align = rng.choice(("left", "center"))
    x = {"left": 0.04, "center": 0.5}[align] * width
    title_size = fitting([chart.title], rng.uniform(27, 36) * scale, 0.92 * width)
    write(chart.title, x, 1.15 * title_size, title_size, align)
    unit_size = min(rng.uniform(23, 28) * scale, title_size)
    write(f"in {chart.unit}", x, 1.15 * title_size + 1.4 * unit_size, unit_size, align)
    top = 1.15 * title_size + 2.2 * unit_size
    tint = colors.readable_on(rng, background, ratio=1.6)
    painter = _lying if chart.form == "lying" else _standing
    painter(rng, chart, canvas, scale, top, ink, tint, write, fitting)
    return canvas.image, canvas.characters


def _standing(rng, chart, canvas, scale, top, ink, tint, write, fitting):
    width, height = canvas.image.size
    step = 0.94 * width / len(chart.labels)
    size = fitting([*chart.labels, *chart.values], rng.uniform(25, 34) * scale, 0.86 * step)
    bottom, top = height - 1.9 * size, top + 1.4 * size
    if rng.random() < 0.4:
        for i in range(4):
            y = top + (bottom - top) * i / 4
            canvas.draw.line((0.03 * width, y, 0.97 * width, y), _between(canvas, ink), 1)
    canvas.draw.line((0.03 * width, bottom, 0.97 * width, bottom), ink, max(1, round(scale)))
    numbers, points = chart.numbers, []
    for i, number in enumerate(numbers):
        x = 0.03 * width + (i + 0.5) * step
        y = bottom - (bottom - top) * number / max(numbers)
        points.append((x, y))
        if chart.form == "bar":
            canvas.draw.rectangle((x - 0.33 * step, y, x + 0.33 * step, bottom), tint)
    if chart.form == "line":
        canvas.draw.line(points, tint, max(2, round(2 * scale)), joint="curve")
        for x, y in points:
            canvas.draw.ellipse((x - 3 * scale, y - 3 * scale, x + 3 * scale, y + 3 * scale), tint)
    for (x, y), label, value in zip(points, chart.labels, chart.values, strict=True):
        write(value, x, y - 0.45 * size, size)
        write(label, x, bottom + 1.3 * size, size)


def _lying(rng, chart, canvas, scale, top, ink, tint, write, fitting):
    width, height = canvas.image.size
    step = (height - top - 6 * scale) / len(chart.labels)
    size = fitting(chart.labels, rng.uniform(25, 34) * scale, 0.31 * width)
    size = min(fitting(chart.values, size, 0.23 * width), 0.85 * step)
    left, room = 0.33 * width, 0.42 * width
    for i, (label, value, number) in enumerate(zip(chart.labels, chart.values, chart.numbers, strict=True)):
        y = top + (i + 0.5) * step
        right = left + room * number / max(chart.numbers)
        canvas.draw.rectangle((left, y - 0.36 * step, right, y + 0.36 * step), tint)
        write(label, left - 0.015 * width, y + 0.35 * size, size, "right")
        write(value, right + 0.4 * size, y + 0.35 * size, size, "left")
    canvas.draw.line((left, top, left, top + step * len(chart.labels)), ink, max(1, round(scale)))


def _between(canvas, ink):
    return tuple((3 * a + b) // 4 for a, b in zip(canvas.image.getpixel((0, 0)), ink, strict=True))
