"""Lessons in looking, an auxiliary loss on the decoder's attention: where in the picture is what an answer says next?

A small model that reads a table or a chart loses its place: it skips a row or reads one twice. For each character that
an answer reads from a picture, these lessons teach one attention head in two layers which image feature shows it.
"""

import re
from collections.abc import Iterable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.phi3.modeling_phi3 import apply_rotary_pos_emb

from .pictures.sample import CHARACTERS, Sample
from .reading import in_grid
from .recipe import NUM_CROPS, PATCH

#: The layers, counted from 0, and the head in them that had begun to look at the right place without any lessons.
LAYERS, HEAD = (4, 5), 3
#: Width and height of an image feature in pixels.
FEATURE = 2 * PATCH
#: What may stand before a word and behind it.
_BEFORE, _BEHIND = re.compile(r"(?<![\w$])"), re.compile(r"(?![\w%]|[.,]\d)")


def words_of(characters: np.ndarray) -> list[tuple[str, int]]:
    """The words of a picture, each with the index of its first character: a gap or a new line ends a word."""
    words: list[tuple[str, int]] = []
    last_right, last_top = -np.inf, -np.inf
    for i, (index, left, top, right, bottom) in enumerate(characters):
        if abs(top - last_top) < 1 and abs(left - last_right) < 0.12 * (bottom - top):
            words[-1] = words[-1][0] + CHARACTERS[int(index)], words[-1][1]
        else:
            words.append((CHARACTERS[int(index)], i))
        last_right, last_top = right, top
    return words


def places_of(answer: str, characters: np.ndarray) -> dict[int, int]:
    """For characters of the answer, by index, the index of the character of the picture that each is read from.

    A word said as often as it is drawn is matched in order, one drawn once is read there each time; others are skipped.
    Stops once every word has been said: what follows is concluded, not read.
    """
    drawn: dict[str, list[int]] = {}
    for word, first in words_of(characters):
        drawn.setdefault(word, []).append(first)
    said = {word: _starts(word, answer) for word in drawn}
    end = max((starts[0] for starts in said.values() if starts), default=0)
    places = {}
    for word, starts in said.items():
        starts, firsts = [start for start in starts if start <= end], drawn[word]
        if len(firsts) == 1:
            firsts = firsts * len(starts)
        if len(starts) == len(firsts):
            places |= {s + k: f + k for s, f in zip(starts, firsts) for k in range(len(word))}
    return places


def _starts(word: str, answer: str) -> list[int]:
    """Where the word begins in an answer as a word of its own, not as a part of another word or number."""
    starts, start = [], answer.find(word)
    while start >= 0:
        alone = _BEFORE.match(answer, start) and _BEHIND.match(answer, start + len(word))
        if alone:
            starts.append(start)
        start = answer.find(word, start + (len(word) if alone else 1))
    return starts


def only(facts: Iterable[str], answer: str) -> str:
    """The answer with everything but the facts blanked out: its own "The" and "of" may be words of a title, too."""
    kept = " " * len(answer)
    for fact in facts:
        begin = answer.find(f'"{fact}"') + 1 or answer.rfind(fact)
        if begin >= 0:
            kept = kept[:begin] + fact + kept[begin + len(fact) :]
    return kept


def features_of(size: tuple[int, int], characters: np.ndarray, num_crops: int = NUM_CROPS) -> np.ndarray:
    """For each character of a picture of this size (width, height), the index of the image feature that shows its
    centre in one of the tiles (at most `num_crops`), counted from the picture's first feature; int64 (characters,)."""
    edges, (width, height) = in_grid(size, characters, num_crops)
    centers = (edges[:, :2] + edges[:, 2:]) / 2
    column, row = (np.clip(centers, 0, [width - 1, height - 1]) // FEATURE).astype(int).T
    return row * (width // FEATURE + 1) + column


def looks_of(sample: Sample, pieces: list[str], num_crops: int = NUM_CROPS) -> list[tuple[int, int]]:
    """For a sample's first answer, `pieces` being the text of its tokens: pairs (index of a token, image feature that
    shows it)."""
    if len(sample.images) != 1 or sample.kind == "mismatch":  # its answer says what cannot be seen
        return []
    characters = sample.characters[0][sample.characters[0][:, 0] < len(CHARACTERS)]  # no shapes
    answer = sample.turns[0][1]
    if sample.kind == "cover":
        answer = only(sample.truth.values(), answer)
    places = places_of(answer, characters)
    features = features_of(sample.images[0].size, characters, num_crops)
    looks, begin = [], 0
    for i, piece in enumerate(pieces):
        seen = [places[k] for k in range(begin, begin + len(piece)) if k in places]
        looks += [(i, int(features[seen[0]]))] if seen else []
        begin += len(piece)
    return looks


class Looking:
    """The lessons for one attention head in each of `layers` of a model's decoder."""

    def __init__(self, model: nn.Module, layers: tuple[int, ...] = LAYERS):
        self.seen = {}
        for number in layers:
            model.model.layers[number].register_forward_pre_hook(self._keep, with_kwargs=True)

    def _keep(self, layer, args, kwargs):
        self.seen[layer] = args[0], kwargs["position_embeddings"]

    def loss_and_accuracy(self, looks: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Of the last forward pass, -log of the attention paid to the right positions, the mean over the lessons and
        the sum over the layers; and how often, in the last of the layers, the right position gets the most.

        `looks`, int64 (lessons, 3): row of the batch, position that looks, position that it should look at. The rows
        are padded on the right.
        """
        rows, queries, keys = looks.T
        loss = 0.0
        for layer, (hidden_states, (cos, sin)) in self.seen.items():
            attention = layer.self_attn
            query, key = _weights_of_the_head(attention)
            normed = layer.input_layernorm(hidden_states)
            query, key = (F.linear(normed, weight)[:, None] for weight in (query, key))
            query, key = (part[:, 0].float() for part in apply_rotary_pos_emb(query, key, cos, sin))
            scores = (query @ key.transpose(1, 2))[rows, queries] * attention.scaling
            later = torch.arange(scores.shape[1], device=looks.device) > queries[:, None]
            scores = scores.masked_fill(later, float("-inf"))
            loss = loss + F.cross_entropy(scores, keys)
        self.seen.clear()
        return loss, (scores.argmax(-1) == keys).float().mean().item()


def _weights_of_the_head(attention: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of `qkv_proj` that compute the queries and keys of `HEAD`."""
    begin, size = HEAD * attention.head_dim, attention.head_dim
    weight, all_queries = attention.qkv_proj.weight, attention.config.num_attention_heads * size
    return weight[begin : begin + size], weight[all_queries + begin : all_queries + begin + size]
