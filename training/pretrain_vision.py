"""Stage 1, read: the vision tower alone learns to name the character or shape on every patch, and the colours.

Learning to read through the decoder's few answer tokens is slow; here every half patch of every tile is a lesson.

    python -m training.pretrain_vision --pictures 40000
"""

import argparse
import math
import random

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel

from helpers.phi3_v import Phi3VImageProcessor

from .loop import Run, compile_layers, fastest_attention, optimizers, start, stream_of_batches
from .pictures import draw, page
from .pictures.sample import CHARACTERS, SHAPES
from .recipe import NUM_CROPS, PATCH, TILE, VISION

PROCESSOR = Phi3VImageProcessor(NUM_CROPS, TILE)
NONE, IGNORED = len(CHARACTERS) + len(SHAPES), -100
HALVES = 2
#: Characters less high than this, in pixels, need not be read (capitals have 0.72 of a font's size, boxes 0.84).
SMALLEST = 8


class Reader(nn.Module):
    """The tower and one linear layer that says, for the left and the right half of each patch, which character
    or shape covers its centre, where the middle of that is and how wide it is (in patches), and the mean colour."""

    def __init__(self, config: CLIPVisionConfig):
        super().__init__()
        self.vision_tower = CLIPVisionModel(config)
        self.head = nn.Linear(config.hidden_size, HALVES * (NONE + 1 + 3 + 3))
        side = config.image_size // config.patch_size
        with torch.no_grad():
            position = self.vision_tower.embeddings.position_embedding.weight
            position[1:] = sine_positions(side, config.hidden_size) * 0.5

    def forward(self, tiles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(tiles, 3, TILE, TILE) -> logits (tiles, patches, 2, classes), boxes and colours (tiles, patches, 2, 3)."""
        # The features that the whole model uses: the last built layer without post_layernorm, without CLS.
        hidden_states = self.vision_tower(tiles, output_hidden_states=True).hidden_states[-1][:, 1:]
        out = self.head(hidden_states).float().unflatten(-1, (HALVES, -1))
        return out.split((NONE + 1, 3, 3), dim=-1)


def sine_positions(side: int, width: int) -> torch.Tensor:
    """2-D sine positions, (side * side, width): near patches start out alike, so attention finds them at once."""
    frequencies = 1 / 100 ** (torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * frequencies * torch.pi / 2
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=-1).reshape(side * side, -1)


def tiles_and_targets(image: Image.Image, characters: np.ndarray):
    """The tiles of a picture as the image processor makes them, the global view first, and what they show.

    Returns float32 tiles (tiles, 3, TILE, TILE), int64 classes (tiles, patches, 2) and float32 boxes
    (tiles, patches, 2, 3): the character's centre relative to the half patch, and its width, in patches.
    A character too small to be read has the class IGNORED.
    """
    inputs = PROCESSOR(image)
    height, width = inputs["image_sizes"][0].tolist()
    resized = PROCESSOR.get_resized_size(*image.size)
    pad = np.array([(width - resized[0]) // 2, (height - resized[1]) // 2] * 2)
    edges = characters[:, 1:] * np.tile(np.divide(resized, image.size), 2) + pad
    labels = characters[:, 0].astype(np.int64)
    whole = _targets(labels, edges * np.tile([TILE / width, TILE / height], 2), 1, 1)
    parts = _targets(labels, edges, height // TILE, width // TILE)
    classes, boxes = (np.concatenate(pair) for pair in zip(whole, parts, strict=True))
    return inputs["pixel_values"][0, : len(classes)], torch.from_numpy(classes), torch.from_numpy(boxes)


def _targets(labels: np.ndarray, edges: np.ndarray, rows: int, columns: int):
    """Classes and boxes of `rows` x `columns` tiles for characters with these edges: left, top, right, bottom."""
    side, half = TILE // PATCH, PATCH / HALVES
    classes = np.full((rows * side, HALVES * columns * side), NONE)
    boxes = np.zeros((*classes.shape, 3), dtype=np.float32)
    centers = np.stack([edges[:, 0] + edges[:, 2], edges[:, 1] + edges[:, 3]], axis=1) / 2
    first_x, last_x = np.ceil(edges[:, [0, 2]] / half - 0.5).astype(int).clip(0).T
    first_y, last_y = np.ceil(edges[:, [1, 3]] / PATCH - 0.5).astype(int).clip(0).T
    # A line lower than a patch may lie between two rows of centres: it belongs to the row it is in.
    row = (centers[:, 1] // PATCH).astype(int)
    first_y, last_y = np.minimum(first_y, row), np.maximum(last_y, row + 1)
    for i, label in enumerate(labels):
        where = slice(first_y[i], last_y[i]), slice(first_x[i], last_x[i])
        classes[where] = label if edges[i, 3] - edges[i, 1] >= SMALLEST else IGNORED
        boxes[where] = *centers[i] / PATCH, (edges[i, 2] - edges[i, 0]) / PATCH
    boxes[..., 0] -= (np.arange(classes.shape[1]) + 0.5) / HALVES
    boxes[..., 1] -= np.arange(classes.shape[0])[:, None] + 0.5

    def cut(array):
        shape = (rows, side, columns, side, HALVES, *array.shape[2:])
        return array.reshape(shape).swapaxes(1, 2).reshape(rows * columns, side * side, HALVES, *array.shape[2:])

    return cut(classes), cut(boxes)


def with_larger_tiles(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a reader of smaller tiles for tiles of TILE pixels: what its positions learned is repeated."""
    name = "vision_tower.embeddings.position_embedding.weight"
    position, width = state[name], state[name].shape[1]
    few, many = round(math.sqrt(len(position) - 1)), TILE // PATCH
    learned = (position[1:] - 0.5 * sine_positions(few, width)).view(few, few, width)
    repeated = learned.repeat(many // few, many // few, 1).view(many * many, width)
    return {**state, name: torch.cat([position[:1], 0.5 * sine_positions(many, width) + repeated])}


def colors_of(tiles: torch.Tensor) -> torch.Tensor:
    """(tiles, 3, TILE, TILE) -> mean colour of each half patch, (tiles, patches, 2, 3), in the tiles' own units."""
    means = F.avg_pool2d(tiles, (PATCH, PATCH // HALVES)).unflatten(-1, (-1, HALVES))
    return means.flatten(2, 3).permute(0, 2, 3, 1)


def picture(split: str, index: int):
    """One picture for stage 1: every kind whose marks are known, and pages full of text."""
    kind = ("cover", "page", "chart", "table", "scene", "page", "cover", "scene")[index % 8]
    sample = dense_page(split, index) if kind == "page" else draw(kind, split, index)
    if not len(sample.characters[0]):  # matplotlib does not tell where its characters are
        sample = dense_page(split, index)
    return tiles_and_targets(sample.images[0], sample.characters[0])


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
    """Cross entropy of the classes plus half the error of their boxes and the error of the colours; accuracy on half
    patches with a character or a shape."""
    tiles, classes, boxes = (part.to(device) for part in batch)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        logits, places, colors = reader(tiles)
    there = (classes != NONE) & (classes != IGNORED)
    weight = torch.ones(NONE + 1, device=device)
    weight[NONE] = 0.3
    loss = F.cross_entropy(logits.flatten(0, 2), classes.flatten(), weight, ignore_index=IGNORED)
    loss = loss + 0.5 * F.smooth_l1_loss(places[there], boxes[there]) + F.smooth_l1_loss(colors, colors_of(tiles))
    return loss, (logits[there].argmax(-1) == classes[there]).float().mean().item()


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
        reader.load_state_dict(with_larger_tiles(torch.load(args.start, weights_only=True)["model"]))
    if args.compile:
        compile_layers(reader.vision_tower.encoder.layers)
    run = Run(args.out, reader, optimizers(reader, lambda name: args.lr), args.pictures)
    held_out = [collate([picture(split, i) for i in range(12)]) for split in ("heldout", "heldout_fonts")]
    for batch in run.steps(stream_of_batches(picture, collate, args.batch, args.workers, run.seen), args.batch):
        loss, accuracy = loss_and_accuracy(reader, batch, device)
        run.update(loss, accuracy=accuracy)
        if run.time_to_evaluate():
            with torch.no_grad():
                scores = [loss_and_accuracy(reader, batch, device)[1] for batch in held_out]
            run.report(heldout=scores[0], heldout_fonts=scores[1])


if __name__ == "__main__":
    main()
