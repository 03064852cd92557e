"""Stage 1, read: the vision tower alone learns to name the character on every patch.

Learning to read through the decoder's few answer tokens is slow; here every half patch of every tile is a lesson.

    python -m training.pretrain_vision --pictures 40000
"""

import argparse
import random

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel

from .loop import Run, optimizers, start, stream_of_batches
from .pictures import draw, page
from .pictures.sample import CHARACTERS
from .recipe import IMAGE_MEAN, IMAGE_STD, PATCH, TILE, VISION

NONE = len(CHARACTERS)
HALVES = 2


class Reader(nn.Module):
    """The tower and one linear layer that says, for the left and the right half of each patch, which character
    covers its centre, and where that character's centre and how wide it is (in patches)."""

    def __init__(self, config: CLIPVisionConfig):
        super().__init__()
        self.vision_tower = CLIPVisionModel(config)
        self.head = nn.Linear(config.hidden_size, HALVES * (NONE + 1 + 3))
        side = config.image_size // config.patch_size
        with torch.no_grad():
            position = self.vision_tower.embeddings.position_embedding.weight
            position[1:] = sine_positions(side, config.hidden_size) * 0.5

    def forward(self, tiles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(tiles, 3, TILE, TILE) -> logits (tiles, patches, 2, characters + 1), boxes (tiles, patches, 2, 3)."""
        # The features that the whole model uses: the last built layer without post_layernorm, without CLS.
        hidden_states = self.vision_tower(tiles, output_hidden_states=True).hidden_states[-1][:, 1:]
        out = self.head(hidden_states).float().unflatten(-1, (HALVES, -1))
        return out[..., : NONE + 1], out[..., NONE + 1 :]


def sine_positions(side: int, width: int) -> torch.Tensor:
    """2-D sine positions, (side * side, width): near patches start out alike, so attention finds them at once."""
    frequencies = 1 / 100 ** (torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * frequencies * torch.pi / 2
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=-1).reshape(side * side, -1)


def tiles_and_targets(image: Image.Image, characters: np.ndarray, rows: int, columns: int):
    """Cuts a picture into `rows` x `columns` tiles and says what each half patch shows.

    Returns uint8 tiles (rows * columns, TILE, TILE, 3), int64 classes (tiles, patches, 2) and float32 boxes
    (tiles, patches, 2, 3): the character's centre relative to the half patch, and its width, in patches.
    """
    width, height = columns * TILE, rows * TILE
    scale = np.array([width / image.width, height / image.height] * 2, dtype=np.float32)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    side, half = TILE // PATCH, PATCH / HALVES
    classes = np.full((height // PATCH, HALVES * width // PATCH), NONE, dtype=np.int64)
    boxes = np.zeros((*classes.shape, 3), dtype=np.float32)
    edges = characters[:, 1:] * scale
    centers = np.stack([edges[:, 0] + edges[:, 2], edges[:, 1] + edges[:, 3]], axis=1) / 2
    first_x, last_x = np.ceil(edges[:, [0, 2]] / half - 0.5).astype(int).clip(0).T
    first_y, last_y = np.ceil(edges[:, [1, 3]] / PATCH - 0.5).astype(int).clip(0).T
    for i, label in enumerate(characters[:, 0].astype(int)):
        where = slice(first_y[i], last_y[i]), slice(first_x[i], last_x[i])
        classes[where] = label
        boxes[where] = *centers[i] / PATCH, (edges[i, 2] - edges[i, 0]) / PATCH
    boxes[..., 0] -= (np.arange(classes.shape[1]) + 0.5) / HALVES
    boxes[..., 1] -= np.arange(classes.shape[0])[:, None] + 0.5

    def cut(array, tall, wide):
        shape = (rows, tall, columns, wide, *array.shape[2:])
        return array.reshape(shape).swapaxes(1, 2).reshape(rows * columns, tall, wide, *array.shape[2:])

    def per_patch(array):
        return cut(array, side, side * HALVES).reshape(rows * columns, side * side, HALVES, *array.shape[2:])

    return cut(np.asarray(image), TILE, TILE), per_patch(classes), per_patch(boxes)


def picture(split: str, index: int):
    """One picture for stage 1: mostly pages full of text, one in four a cover."""
    if index % 4 == 0:
        sample, grid = draw("cover", split, index), (4, 3)
    else:
        sample, grid = dense_page(split, index), (4, 4)
    return tiles_and_targets(sample.images[0], sample.characters[0], *grid)


def dense_page(split: str, index: int):
    """A page with as many lines as fit; every third one is drawn larger and shrunk, as photos are."""
    rng = random.Random(f"dense/{split}/{index}")
    scale = rng.uniform(1, 1.6) if rng.random() < 0.33 else 1
    size = (round(448 * scale), round(448 * scale))
    return page.draw(rng, split, size, (17 * scale, 56 * scale), (30, 30))


def collate(pictures):
    """Joins pictures into one batch of tiles."""
    return tuple(torch.from_numpy(np.concatenate(arrays)) for arrays in zip(*pictures, strict=True))


def normalize(tiles: torch.Tensor) -> torch.Tensor:
    """uint8 (n, TILE, TILE, 3) -> float32 (n, 3, TILE, TILE), as the image processor does."""
    mean, std = torch.tensor(IMAGE_MEAN, device=tiles.device), torch.tensor(IMAGE_STD, device=tiles.device)
    return ((tiles / 255 - mean) / std).permute(0, 3, 1, 2)


def loss_and_accuracy(reader: Reader, batch, device) -> tuple[torch.Tensor, float]:
    """Cross entropy of the characters plus half the error of their boxes; accuracy on half patches with a character."""
    tiles, classes, boxes = (part.to(device) for part in batch)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        logits, places = reader(normalize(tiles))
    there = classes != NONE
    weight = torch.ones(NONE + 1, device=device)
    weight[NONE] = 0.3
    loss = F.cross_entropy(logits.flatten(0, 2), classes.flatten(), weight)
    loss = loss + 0.5 * F.smooth_l1_loss(places[there], boxes[there])
    return loss, (logits[there].argmax(-1) == classes[there]).float().mean().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=40_000, help="how many pictures to learn from")
    parser.add_argument("--batch", type=int, default=6, help="pictures a step (12 to 16 tiles each)")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--workers", type=int, default=1, help="processes that draw")
    parser.add_argument("--out", default="runs/vision", help="folder of the checkpoint and the log; resumed if there")
    args = parser.parse_args()

    device = start()
    reader = Reader(CLIPVisionConfig(**VISION)).to(device)
    run = Run(args.out, reader, optimizers(reader, lambda name: args.lr), args.pictures)
    held_out = [collate([picture(split, i) for i in range(16)]) for split in ("heldout", "heldout_fonts")]
    for batch in run.steps(stream_of_batches(picture, collate, args.batch, args.workers, run.seen), args.batch):
        loss, accuracy = loss_and_accuracy(reader, batch, device)
        run.update(loss, accuracy=accuracy)
        if run.time_to_evaluate():
            with torch.no_grad():
                scores = [loss_and_accuracy(reader, batch, device)[1] for batch in held_out]
            run.report(heldout=scores[0], heldout_fonts=scores[1])


if __name__ == "__main__":
    main()
