"""Scores the bundled checkpoint on pictures it has never seen.

    python -m training.evaluate --pictures 500

Prints a table, and writes `runs/evaluation/scores.json` with every wrong answer and `worst.png` with the pictures
of the worst ones.
"""

import argparse
import json
import re
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from rapidfuzz.distance import Levenshtein
from tqdm import tqdm

from helpers import format_prompt, load_model_and_processor

from .pictures import cover, draw

_FIELDS = {r"\{title\}": "(?P<title>.*)", r"\{author\}": "(?P<author>.*)"}
PATTERN = re.compile(re.sub(r"\\{\w+\\}", lambda field: _FIELDS[field[0]], re.escape(cover.ANSWER)))


def answer(model, processor, samples, batch: int = 16) -> list[str]:
    """The model's answer to the first question of each sample, greedily, left-padded batch by batch."""
    answers = []
    for i in tqdm(range(0, len(samples), batch), unit="batch"):
        part = samples[i : i + batch]
        prompts = [format_prompt(sample.turns[0][0], len(sample.images)) for sample in part]
        inputs = processor(prompts, [sample.images for sample in part], return_tensors="pt").to(model.device)
        out = model.generate(**inputs, max_new_tokens=200, do_sample=False)
        answers += processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


def score_cover(sample, text: str) -> dict:
    """Which of title and author are exact, and the character error rate of both together."""
    found = PATTERN.fullmatch(text)
    said = found.groupdict() if found else {"title": "", "author": ""}
    truth = sample.truth
    errors = sum(Levenshtein.distance(truth[field], said[field]) for field in ("title", "author"))
    return {
        "title": said["title"] == truth["title"],
        "author": said["author"] == truth["author"],
        "both": said == {"title": truth["title"], "author": truth["author"]},
        "cer": errors / (len(truth["title"]) + len(truth["author"])),
    }


def sheet_of_errors(wrong, folder: Path, columns: int = 4, rows: int = 3):
    """The pictures of the worst answers with what was said under each."""
    cell, font = (360, 480), ImageFont.load_default(13)
    sheet = Image.new("RGB", (columns * cell[0], rows * cell[1]), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (sample, text, _) in enumerate(wrong[: columns * rows]):
        x, y = i % columns * cell[0], i // columns * cell[1]
        picture = sample.images[0].copy()
        picture.thumbnail((cell[0] - 20, cell[1] - 70))
        sheet.paste(picture, (x + 10, y + 10))
        for line, part in enumerate(text[k : k + 50] for k in range(0, len(text), 50)):
            pen.text((x + 10, y + cell[1] - 55 + 16 * line), part, "black", font)
    sheet.save(folder / "worst.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=500, help="pictures a split")
    parser.add_argument("--checkpoint", help="folder; by default the bundled one")
    parser.add_argument("--out", type=Path, default=Path("runs/evaluation"))
    args = parser.parse_args()
    torch.manual_seed(0)
    model, processor = load_model_and_processor(args.checkpoint)
    args.out.mkdir(parents=True, exist_ok=True)
    rows, report, wrong = [], {}, []
    for split in ("heldout", "heldout_fonts"):
        samples = [draw("cover", split, i) for i in tqdm(range(args.pictures), unit="pic", desc=split)]
        texts = answer(model, processor, samples)
        scores = [score_cover(sample, text) for sample, text in zip(samples, texts)]
        mean = {name: sum(score[name] for score in scores) / len(scores) for name in scores[0]}
        mistakes = [(sa, te, sc) for sa, te, sc in zip(samples, texts, scores) if not sc["both"]]
        wrong += mistakes
        report[split] = {
            **mean,
            "pictures": len(samples),
            "wrong": [{"said": text, **sample.truth} for sample, text, _ in mistakes],
        }
        cells = [f"{mean[name]:.1%}" for name in ("title", "author", "both")] + [f"{mean['cer']:.2%}"]
        rows.append(f"| cover, {split.replace('_', ' ')} | {len(samples)} | " + " | ".join(cells) + " |")
    wrong.sort(key=lambda mistake: -mistake[2]["cer"])
    sheet_of_errors(wrong, args.out)
    (args.out / "scores.json").write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")
    header = "| skill, split | pictures | exact title | exact author | both | character errors |"
    print("\n".join([header, "|---|---|---|---|---|---|", *rows]))


if __name__ == "__main__":
    main()
