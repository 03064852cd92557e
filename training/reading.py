"""Lessons in reading, an auxiliary loss on the vision tower's features: what does each part of each patch show?

An answer has a few dozen letters to learn from; here every tile has a thousand lessons. Each patch is cut into `PARTS`
columns, as `i` and `l` are narrower than half a patch.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from helpers.phi3_v import Phi3VImageProcessor
from helpers.phi3_v.modeling_phi3_v import Phi3VImageEmbedding

from .pictures.sample import CHARACTERS, SHAPES
from .recipe import NUM_CROPS, PATCH, TILE

PROCESSOR = Phi3VImageProcessor(NUM_CROPS, TILE)
NONE, IGNORED = len(CHARACTERS) + len(SHAPES), -100
PARTS = 4
#: Characters less high than this, in pixels, need not be read (capitals have 0.72 of a font's size, boxes 0.84).
SMALLEST = 8


class ReadingHead(nn.Module):
    """One linear layer that predicts, for each part of a patch, which character or shape covers its centre, where that
    one's own centre is and how wide it is (in patches), and the mean colour."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.head = nn.Linear(hidden_size, PARTS * (NONE + 1 + 3 + 3))

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(tiles, patches, hidden_size) -> logits (tiles, patches, PARTS, classes), boxes and colours (…, PARTS, 3)."""
        return self.head(hidden_states).float().unflatten(-1, (PARTS, -1)).split((NONE + 1, 3, 3), dim=-1)


class FeatureReader(ReadingHead):
    """A reading head on what the vision tower of a model last said of all tiles. It names the characters once more
    from the projected features: what is lost there, no decoder can read."""

    def __init__(self, images: Phi3VImageEmbedding):
        first, *_, last = images.img_projection
        super().__init__(first.in_features // 4)
        self.projected_head = nn.Linear(last.out_features, 4 * PARTS * (NONE + 1))
        images.register_forward_hook(self._look)

    def _look(self, images, args, output):
        numbers = [h * w + 1 for h, w in images.get_grids(*args)]
        self.tiles = torch.cat([tiles[:number] for tiles, number in zip(args[0], numbers, strict=True)])
        self.hidden_states = output.last_hidden_state[:, 1:]

    def forward(self, projector: nn.Module):
        """As `ReadingHead`, for the tower's last tiles, and as a fourth part the logits from projected features."""
        side = TILE // PATCH // 2
        # 2 x 2 patches make a feature: (tiles, patches, C) -> (tiles, side, side, 4 C), and the answers back again.
        merged = self.hidden_states.unflatten(1, (side, 2, side, 2)).transpose(2, 3).flatten(3)
        again = self.projected_head(projector(merged)).float().unflatten(-1, (2, 2, PARTS, NONE + 1))
        return *super().forward(self.hidden_states), again.transpose(2, 3).flatten(1, 4)


def in_grid(
    size: tuple[int, int], characters: np.ndarray, num_crops: int = NUM_CROPS
) -> tuple[np.ndarray, tuple[int, int]]:
    """The characters' edges, (characters, 4), in the grid of at most `num_crops` tiles to which a picture of this size
    (width, height) is scaled and padded, and the width and height of that grid; all in pixels."""
    resized = PROCESSOR.get_resized_size(*size[::-1], num_crops)[::-1]
    height, width = (TILE * tiles for tiles in PROCESSOR.get_tile_grid(*size[::-1], num_crops))
    pad = np.array([(width - resized[0]) // 2, (height - resized[1]) // 2] * 2)
    return characters[:, 1:] * np.tile(np.divide(resized, size), 2) + pad, (width, height)


def lessons(size: tuple[int, int], characters: np.ndarray, num_crops: int = NUM_CROPS):
    """What the tiles (at most `num_crops`) of a picture of this size (width, height) show, the global view first.

    Returns int64 classes (tiles, patches, PARTS) and float32 boxes (tiles, patches, PARTS, 3): the character's centre
    relative to the part, and its width, in patches. A character too small to be read has the class IGNORED, and so
    has everything in a picture of which no character is known.
    """
    edges, (width, height) = in_grid(size, characters, num_crops)
    labels = characters[:, 0].astype(np.int64)
    whole = _lessons(labels, edges * np.tile([TILE / width, TILE / height], 2), 1, 1)
    parts = _lessons(labels, edges, height // TILE, width // TILE)
    classes, boxes = (np.concatenate(pair) for pair in zip(whole, parts, strict=True))
    if len(characters) == 0:
        classes[:] = IGNORED
    return torch.from_numpy(classes), torch.from_numpy(boxes)


def _lessons(labels: np.ndarray, edges: np.ndarray, rows: int, columns: int):
    """Classes and boxes of `rows` x `columns` tiles for characters with these edges: left, top, right, bottom."""
    side, part = TILE // PATCH, PATCH / PARTS
    classes = np.full((rows * side, PARTS * columns * side), NONE)
    boxes = np.zeros((*classes.shape, 3), dtype=np.float32)
    centers = np.stack([edges[:, 0] + edges[:, 2], edges[:, 1] + edges[:, 3]], axis=1) / 2
    first_x, last_x = np.ceil(edges[:, [0, 2]] / part - 0.5).astype(int).clip(0).T
    first_y, last_y = np.ceil(edges[:, [1, 3]] / PATCH - 0.5).astype(int).clip(0).T
    # A line lower than a patch may lie between two rows of patch centres: it belongs to the row of its own centre.
    row = (centers[:, 1] // PATCH).astype(int)
    first_y, last_y = np.minimum(first_y, row), np.maximum(last_y, row + 1)
    for i, label in enumerate(labels):
        where = slice(first_y[i], last_y[i]), slice(first_x[i], last_x[i])
        classes[where] = label if edges[i, 3] - edges[i, 1] >= SMALLEST else IGNORED
        boxes[where] = *centers[i] / PATCH, (edges[i, 2] - edges[i, 0]) / PATCH
    boxes[..., 0] -= (np.arange(classes.shape[1]) + 0.5) / PARTS
    boxes[..., 1] -= np.arange(classes.shape[0])[:, None] + 0.5

    def cut(array):
        shape = (rows, side, columns, side, PARTS, *array.shape[2:])
        return array.reshape(shape).swapaxes(1, 2).reshape(rows * columns, side * side, PARTS, *array.shape[2:])

    return cut(classes), cut(boxes)


def colors_of(tiles: torch.Tensor) -> torch.Tensor:
    """(tiles, 3, TILE, TILE) -> mean colour of each part, (tiles, patches, PARTS, 3), in the tiles' own units."""
    side = TILE // PATCH
    means = F.adaptive_avg_pool2d(tiles, (side, side * PARTS)).unflatten(-1, (side, PARTS))
    return means.flatten(2, 3).permute(0, 2, 3, 1)


def loss_and_accuracy(predicted, tiles, classes, boxes) -> tuple[torch.Tensor, float]:
    """Cross entropy of the classes plus half the error of their boxes and the error of the colours; accuracy on the
    parts with a character or a shape, from projected features where there are any."""
    logits, places, colors, *again = predicted
    there = (classes != NONE) & (classes != IGNORED)
    weight = torch.where(classes == NONE, 0.3, 1.0) * (classes != IGNORED)
    loss, guesses = 0.0, (logits, *again)
    for guess in guesses:
        each = F.cross_entropy(guess.flatten(0, 2), classes.clamp(min=0).flatten(), reduction="none")
        loss = loss + (each * weight.flatten()).sum() / weight.sum().clamp(min=1)
    wrong_places = F.smooth_l1_loss(places[there], boxes[there], reduction="sum") / (3 * there.sum()).clamp(min=1)
    loss = loss + 0.5 * wrong_places + F.smooth_l1_loss(colors, colors_of(tiles))
    right = (guesses[-1][there].argmax(-1) == classes[there]).float()
    return loss, right.mean().item() if len(right) else 0.0
