"""Plots the logs of training runs: losses on the left, shares of right answers on the right.

python -m training.plot runs/vision runs/train
"""

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure


def read(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's `log.jsonl`."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs, one row of the picture each")
    parser.add_argument("--out", type=Path, default=Path("runs/curves.png"))
    args = parser.parse_args()
    figure = Figure(figsize=(14, 5 * len(args.runs)), dpi=90, layout="constrained")
    rows = figure.subplots(len(args.runs), 2, squeeze=False)
    for folder, (losses, shares) in zip(args.runs, rows, strict=True):
        lines = read(folder)
        seen = [line["seen"] for line in lines]
        for name in sorted({name for line in lines for name in line} - {"seen", "seconds"}):
            axes = losses if "loss" in name else shares
            axes.plot(seen, [line.get(name, float("nan")) for line in lines], marker=".", label=name)
        losses.set(title=f"{folder.name}, {lines[-1]['seconds'] / 60:.0f} minutes", yscale="log", ylabel="loss")
        shares.set(ylim=(0, 1), ylabel="share right")
        for axes in (losses, shares):
            axes.set_xlabel("pictures")
            axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=7)
            axes.grid(alpha=0.3)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out)
    print(args.out)


if __name__ == "__main__":
    main()
