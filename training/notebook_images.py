"""Draws the pictures that the notebooks and the README show, and writes down what is true of them.

python -m training.notebook_images
"""

import argparse
import json
import random
import re
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

from .pictures import chart, chart_by_hand, draw, fonts, scene, table
from .pictures.canvas import Canvas
from .pictures.sample import Sample

FOLDER = Path(__file__).resolve().parent.parent / "notebooks" / "images"
#: Kinds and number of the pictures that `07_scores` asks about; none of them was trained on.
SCORED, EACH = ("cover", "chart", "table", "scene", "pair"), 6

#: NVIDIA's data centre revenue by fiscal year, in million dollars, as its annual reports state it.
REVENUE = chart.Chart(
    form="lying",
    title="Data Center Revenue",
    unit="million dollars",
    labels=[f"FY{year}" for year in range(2017, 2025)],
    values=["830", "1,932", "2,932", "2,983", "6,696", "10,613", "15,005", "47,525"],
    ordered=True,
)
SUNSHINE = chart.Chart(
    "line",
    "Sunshine",
    "hours",
    ["Feb", "Mar", "Apr", "May", "Jun"],
    ["78", "121", "166", "203", "194"],
    True,
)
PRICES = [
    ["Name", "Price", "Stock", "Origin"],
    ["Apple", "$1.20", "340", "Poland"],
    ["Mango", "$0.85", "512", "India"],
    ["Cherry", "$6.40", "96", "Turkey"],
    ["Lemon", "$2.15", "208", "Spain"],
]
SHAPES = [
    scene.Thing("star", "yellow", 0, 0),
    scene.Thing("circle", "red", 0, 2),
    scene.Thing("heart", "blue", 1, 1),
    scene.Thing("circle", "red", 2, 0),
    scene.Thing("triangle", "green", 2, 2),
]
#: What the second and the third scene change: the heart turns pink; the star goes too, and a square comes.
SECOND = [replace(thing, color="pink") if thing.shape == "heart" else thing for thing in SHAPES]
THIRD = [*SECOND[1:4], scene.Thing("square", "black", 2, 1), SECOND[4]]


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
    _centered(canvas, "ALONE", 250, fonts.load("Josefin Sans", 120, 600), "white", 6)
    _centered(canvas, "Morgan Maxwell", 380, fonts.load("Lato", 58), (225, 225, 225))
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


def bars(seed: int, content: chart.Chart) -> Image.Image:
    """A chart in the style that `seed` stands for."""
    return chart_by_hand.draw(random.Random(seed), "train", content)[0]


def shapes(things: list[scene.Thing]) -> Image.Image:
    """A scene in the style of the notebooks."""
    return scene.paint(random.Random(4), things, (600, 450))[0]


#: File name, how it is drawn, alt text, and the facts.
PICTURES = {
    "book_cover.png": (book_cover, "Dark book cover: ALONE, by Morgan Maxwell; hills and a grey moon",
        {"title": "ALONE", "author": "Morgan Maxwell"}),
    "hard_cover.png": (hard_cover, "Striped cover, script letters set askew: Whispers of the Tide, by Ana Belmonte",
        {"title": "Whispers of the Tide", "author": "Ana Belmonte"}),
    "revenue_chart.png": (lambda: bars(26, REVENUE), "Bar chart: Data Center Revenue, FY2017 to FY2024",
        vars(REVENUE)),
    "sunshine_chart.png": (lambda: bars(20, SUNSHINE), "Line chart: Sunshine in hours, February to June",
        vars(SUNSHINE)),
    "price_table.png": (lambda: table.paint(random.Random(12), "train", PRICES)[0], "Table: prices of four fruits",
        {"cells": PRICES}),
    "shapes.png": (lambda: shapes(SHAPES), "Five coloured shapes", {"description": scene.description(SHAPES)}),
    "shapes_second.png": (lambda: shapes(SECOND), "The same five shapes, one in another colour",
        {"description": scene.description(SECOND)}),
    "shapes_third.png": (lambda: shapes(THIRD), "Five shapes, two of them different",
        {"description": scene.description(THIRD)}),
}  # fmt: skip


def save(image: Image.Image, file: Path, colors: int = 128):
    """A small PNG. Few colours cost small type a little sharpness."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image.quantize(colors).save(file, optimize=True)


def write_lines(file: Path, lines: list[dict]):
    """A `metadata.jsonl` as `datasets` reads it beside pictures."""
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def facts_of(sample: Sample) -> list[str]:
    """What a true answer to the first question has to contain, in whatever words."""
    truth, answer = sample.truth, sample.turns[0][1]
    if sample.kind == "cover":
        return [truth["title"], truth["author"]]
    if sample.kind == "chart":
        return [truth["title"], *truth["values"]]
    if sample.kind == "table":
        return sorted({cell for row in truth["cells"] for cell in row})
    if sample.kind == "pair":
        side = r"(?:first|second) (?:an? )?(.+?)(?=, second|$)"
        names = [name for text in truth["differences"] for name in re.findall(side, text)]
        return [name for name in names if name != "nothing"] or ["no difference"]
    return answer.removeprefix("The picture shows ").removesuffix(".").split(", ")


def scored_pictures(folder: Path):
    """The pictures, questions and true answers of `07_scores`."""
    lines = []
    for kind in SCORED:
        for i in range(EACH):
            sample = draw(kind, "heldout", i)
            names = [f"{kind}_{i}{letter}.png" for letter in "ab"[: len(sample.images)]]
            for name, image in zip(names, sample.images):
                save(image, folder / name, 256)
            question, truth = sample.turns[0]
            line = {"pictures_file_names": names, "kind": kind, "question": question, "truth": truth}
            lines.append({**line, "facts": list(dict.fromkeys(facts_of(sample)))})
    write_lines(folder / "metadata.jsonl", lines)


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    lines = []
    for name, (make, alt, truth) in PICTURES.items():
        save(make(), FOLDER / name)
        lines.append({"file_name": name, "alt": alt, "truth": truth})
    write_lines(FOLDER / "metadata.jsonl", lines)
    scored_pictures(FOLDER / "scores")
    print(f"{len(lines)} pictures and {len(SCORED) * EACH} to score in {FOLDER.parent.name}/{FOLDER.name}")


if __name__ == "__main__":
    main()
