"""Scores the bundled checkpoint on pictures it has never seen.

    python -m training.evaluate --pictures 500

Prints a table, and writes into `runs/evaluation/` the file `scores.json` with every wrong answer, and for each kind
a picture of the worst ones.
"""

import argparse
import itertools
import json
import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from helpers import generate_many, load_model_and_processor

from .pictures import KINDS, SPLITS, chart, draw, scene, table
from .pictures.sample import Sample
from .scores import COUNTS, score

#: The kinds that can be scored: `notes` have no pictures, and are told what they would read.
SCORED = [kind for kind in KINDS if kind != "notes"]
#: The kinds whose type is measured.
TYPE = ("cover", "page", "table", "chart")
HELD_OUT = SPLITS[1:]
#: What `--short` can ask about a picture whose truth is known.
SMALL_QUESTIONS = {
    "chart": lambda rng, truth: chart.small_questions(rng, chart.Chart(**truth)),
    "scene": lambda rng, truth: scene.small_questions(rng, [scene.Thing(**thing) for thing in truth["things"]]),
    "table": lambda rng, truth: table.small_questions(rng, truth["cells"]),
}


def short(sample: Sample, index: int) -> Sample:
    """The same picture with one short question: a value of a chart, a cell of a table, a count, place or colour."""
    turns = SMALL_QUESTIONS[sample.kind](random.Random(index), sample.truth)
    return replace(sample, kind=f"short {sample.kind}", turns=turns[:1])


def width_of_type(sample: Sample, processor) -> float:
    """The median width of the characters, in pixels of the picture as the model sees it."""
    (image,), (characters,) = sample.images, sample.characters
    _, width = processor.image_processor.get_resized_size(image.height, image.width)
    return float(np.median(characters[:, 3] - characters[:, 1])) * width / image.width


def sheet_of_errors(wrong, file: Path):
    """The pictures of the worst answers with what was said under each."""
    columns, rows, cell, font = 4, 3, (360, 480), ImageFont.load_default(13)
    sheet = Image.new("RGB", (columns * cell[0], rows * cell[1]), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (_, sample, text) in enumerate(wrong[: columns * rows]):
        x, y = i % columns * cell[0], i // columns * cell[1]
        for picture in sample.images[:1]:
            small = picture.copy()
            small.thumbnail((cell[0] - 20, cell[1] - 70))
            sheet.paste(small, (x + 10, y + 10))
        for line, part in enumerate(text[k : k + 50] for k in range(0, len(text), 50)):
            pen.text((x + 10, y + cell[1] - 55 + 16 * line), part, "black", font)
    sheet.save(file)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=500, help="pictures of each kind and split")
    parser.add_argument("--first", type=int, default=0, help="first picture's number; to choose weights, take others")
    parser.add_argument("--kinds", nargs="+", default=SCORED, choices=SCORED, help="by default all that have pictures")
    parser.add_argument("--short", action="store_true", help="one short question on each chart, table or scene instead")
    parser.add_argument("--checkpoint", help="folder; by default the bundled one")
    parser.add_argument("--num-crops", type=int, help="most tiles per picture, by default as the checkpoint says")
    parser.add_argument("--quantization", help="such as int8, to see what it loses")
    parser.add_argument("--out", type=Path, default=Path("runs/evaluation"))
    args = parser.parse_args()
    if args.pictures < 1:
        parser.error("--pictures must be at least 1")
    if args.short:
        args.kinds = [kind for kind in args.kinds if kind in SMALL_QUESTIONS]
        if not args.kinds:
            parser.error(f"--short needs one of these in --kinds: {', '.join(SMALL_QUESTIONS)}")
    return args


def main():
    args = arguments()
    torch.manual_seed(0)
    model, processor = load_model_and_processor(
        args.checkpoint, num_crops=args.num_crops, quantization=args.quantization
    )
    args.out.mkdir(parents=True, exist_ok=True)
    rows, report = ["| kind, split | pictures | exact | more |", "|---|---|---|---|"], {}
    for kind, split in itertools.product(args.kinds, HELD_OUT):
        name = f"{'short ' * args.short}{kind}, {split.replace('_', ' ')}"
        samples = [draw(kind, split, args.first + i) for i in tqdm(range(args.pictures), unit="pic", desc=name)]
        if args.short:
            samples = [short(sample, i) for i, sample in enumerate(samples)]
        questions, images = [sample.turns[0][0] for sample in samples], [sample.images for sample in samples]
        texts = generate_many(model, processor, questions, images, batch_size=16, max_new_tokens=500)
        scores = [score(sample, text) for sample, text in zip(samples, texts, strict=True)]
        if samples[0].kind in TYPE:
            widths = [width_of_type(sample, processor) for sample in samples]
            for i in np.argsort(widths, kind="stable")[: math.ceil(len(samples) / 5)]:
                scores[i] |= {"small": scores[i]["exact"], "width": widths[i]}
        names = dict.fromkeys(itertools.chain(*scores))
        found = {name: [score[name] for score in scores if name in score] for name in names}
        mean = {name: sum(values) / len(values) for name, values in found.items()}
        wrong = [(sc["cer"], sample, text) for sc, sample, text in zip(scores, samples, texts) if not sc["exact"]]
        wrong.sort(key=lambda mistake: -mistake[0])
        sheet_of_errors(wrong, args.out / f"worst_{'short_' * args.short}{kind}_{split}.png")
        more = ", ".join(
            f"{name} {value:.2f}" if name in COUNTS else f"{name} {value:.1%}"
            for name, value in mean.items()
            if name != "exact"
        )
        rows.append(f"| {name} | {len(samples)} | {mean['exact']:.1%} | {more} |")
        report[name] = {**mean, "wrong": [{"said": text, "true": sample.turns[0][1]} for _, sample, text in wrong]}
        (args.out / "scores.json").write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
