"""Stage 1, read: the vision tower alone learns to name the character or shape on every patch, and the colours.

Every quarter of every patch is a lesson (`reading.py`).

    python -m training.pretrain_vision --pictures 40000
"""

import argparse
import math
import random

import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from . import reading
from .loop import Run, compile_layers, fastest_attention, mixed_precision, optimizers, start, stream_of_batches
from .pictures import draw, page
from .reading import PROCESSOR, ReadingHead, lessons
from .recipe import PATCH, TILE, VISION


class Reader(nn.Module):
    """The tower and the head of its lessons."""

    def __init__(self, config: CLIPVisionConfig):
        super().__init__()
        self.vision_tower = CLIPVisionModel(config)
        self.head = ReadingHead(config.hidden_size)
        side = config.image_size // config.patch_size
        with torch.no_grad():
            position = self.vision_tower.embeddings.position_embedding.weight
            position[1:] = sine_positions(side, config.hidden_size) * 0.5

    def forward(self, tiles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(tiles, 3, TILE, TILE) -> what `ReadingHead` says of them."""
        # The features that the whole model uses: the last built layer without post_layernorm, without CLS.
        return self.head(self.vision_tower(tiles, output_hidden_states=True).hidden_states[-1][:, 1:])


def sine_positions(side: int, width: int) -> torch.Tensor:
    """2-D sine positions, (side * side, width): near patches start out alike, so attention finds them at once."""
    frequencies = 1 / 100 ** (torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * frequencies * torch.pi / 2
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=-1).reshape(side * side, -1)


def with_larger_tiles(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A reader's weights, from smaller tiles to tiles of TILE pixels: the learned part of its positions is repeated."""
    name = "vision_tower.embeddings.position_embedding.weight"
    position, width = state[name], state[name].shape[1]
    few, many = round(math.sqrt(len(position) - 1)), TILE // PATCH
    learned = (position[1:] - 0.5 * sine_positions(few, width)).view(few, few, width)
    repeated = learned.repeat(many // few, many // few, 1).view(many * many, width)
    return {**state, name: torch.cat([position[:1], 0.5 * sine_positions(many, width) + repeated])}


def picture(split: str, index: int):
    """One picture for stage 1: pages full of text and all other kinds."""
    kind = ("cover", "page", "chart", "table", "scene", "page", "cover", "scene")[index % 8]
    sample = dense_page(split, index) if kind == "page" else draw(kind, split, index)
    classes, boxes = lessons(sample.images[0].size, sample.characters[0])
    return PROCESSOR(sample.images[0])["pixel_values"][0, : len(classes)], classes, boxes


def dense_page(split: str, index: int):
    """A page with as many lines as fit; every third one is drawn larger and shrunk, as photos are."""
    rng = random.Random(f"dense/{split}/{index}")
    scale = rng.uniform(1, 1.6) if rng.random() < 0.33 else 1
    size = (round(448 * scale), round(448 * scale))
    return page.draw(rng, split, size, (17 * scale, 62 * scale), (30, 30))


def collate(pictures):
    """Joins pictures into one batch of tiles."""
    return tuple(torch.cat(parts) for parts in zip(*pictures, strict=True))


def loss_and_accuracy(reader: Reader, batch, device) -> tuple[torch.Tensor, float]:
    """See `reading.loss_and_accuracy`."""
    tiles, classes, boxes = (part.to(device, non_blocking=True) for part in batch)
    with mixed_precision(device):
        predicted = reader(tiles)
    return reading.loss_and_accuracy(predicted, tiles, classes, boxes)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=40_000, help="how many pictures to learn from")
    parser.add_argument("--batch", type=int, default=3, help="pictures a step (5 tiles each)")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--workers", type=int, default=1, help="processes that draw")
    parser.add_argument("--out", default="runs/vision", help="folder of the checkpoint and the log; resumed if there")
    parser.add_argument("--from", dest="start", help="state.pt of a run with smaller tiles to begin with")
    parser.add_argument("--compile", action="store_true", help="compile the layers: faster, needs a C++ compiler")
    args = parser.parse_args()

    device = start()
    reader = Reader(CLIPVisionConfig(**VISION)).to(device)
    reader.vision_tower.set_attn_implementation(fastest_attention(device))
    if args.start:
        before = torch.load(args.start, map_location="cpu", weights_only=True)
        reader.load_state_dict(with_larger_tiles(before["model"]))
    if args.compile:
        compile_layers(reader.vision_tower.encoder.layers)
    run = Run(args.out, reader, optimizers(reader, lambda name: args.lr), args.pictures)
    held_out = {split: collate([picture(split, i) for i in range(12)]) for split in ("heldout", "heldout_fonts")}

    def evaluate() -> dict[str, float]:
        return {split: loss_and_accuracy(reader, batch, device)[1] for split, batch in held_out.items()}

    batches = stream_of_batches(picture, collate, args.batch, args.workers, run.seen)
    for batch in run.steps(batches, args.batch, evaluate):
        loss, accuracy = loss_and_accuracy(reader, batch, device)
        run.update(loss, accuracy=accuracy)


if __name__ == "__main__":
    main()
