"""Drawn pictures whose truth is known: one module a kind, each with `draw(rng, split) -> Sample`.

CONTRIBUTING.md says how to add a kind.
"""

import random

from . import chart, cover, mismatch, notes, page, pair, scene, several, table
from .sample import Sample

KINDS = {
    "cover": cover.draw,
    "page": page.draw,
    "chart": chart.draw,
    "table": table.draw,
    "scene": scene.draw,
    "pair": pair.draw,
    "several": several.draw,
    "mismatch": mismatch.draw,
    "notes": notes.draw,
}

#: Words, fonts and seeds of the three splits never meet: `heldout` takes words that are never trained on,
#: `heldout_fonts` takes such words in fonts that are never trained on.
SPLITS = ("train", "heldout", "heldout_fonts")


def draw(kind: str, split: str, index: int) -> Sample:
    """The `index`-th picture of a kind and a split; the same one on every machine with the same fonts."""
    return KINDS[kind](random.Random(f"{kind}/{split}/{index}"), split)
