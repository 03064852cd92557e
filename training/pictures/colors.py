"""Random colours that can be read on each other."""

import colorsys
import random


def luminance(color) -> float:
    """Relative luminance, 0 (black) to 1 (white), of an 8-bit RGB colour (WCAG 2, without its linear part)."""
    red, green, blue = ((channel / 255) ** 2.2 for channel in color)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(a, b) -> float:
    """WCAG 2 contrast ratio of two colours, 1 to 21."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def any_color(rng: random.Random):
    """Black, white or any colour, with pale and dark ones as often as strong ones."""
    if rng.random() < 0.3:
        return rng.choice(((0, 0, 0), (255, 255, 255), (250, 246, 235), (24, 26, 32)))
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(rng.random(), rng.random() ** 0.7, rng.random() ** 0.7))


def readable_on(rng: random.Random, *backgrounds, ratio: float = 3.0):
    """A colour with at least `ratio` of contrast to every background; black or white where no other is found."""
    for _ in range(30):
        color = any_color(rng)
        if all(contrast(color, background) >= ratio for background in backgrounds):
            return color
    return max(((0, 0, 0), (255, 255, 255)), key=lambda c: min(contrast(c, b) for b in backgrounds))
