"""A wider decoder that begins with what a narrower one knows.

As in Net2Net (Chen et al., 2016, https://arxiv.org/abs/1511.05641) the first channels go on computing what they did;
the new ones begin at random, and nothing reads them until training says so.
"""

import torch

#: Weights of several equal blocks below one another, of which each grows for itself.
STACKED = {"qkv_proj": 3, "gate_up_proj": 2}


def grown(weights: dict[str, torch.Tensor], into: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`weights` in the shapes of `into`, a new model's, where these are larger; the head size must be the same."""
    return {name: _grown(name, weight, into[name].shape) for name, weight in weights.items()}


def _grown(name: str, weight: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    if weight.shape == shape:
        return weight
    if weight.ndim == 1:
        new = torch.full(shape, 1.0 if "norm" in name else 0.0)
        new[: len(weight)] = weight
        return new
    blocks = STACKED.get(name.split(".")[-2], 1)
    parts = []
    for old in weight.chunk(blocks):
        rows, columns = old.shape
        new = torch.randn(shape[0] // blocks, shape[1]) * old.std() * (columns / shape[1]) ** 0.5
        if not name.endswith("model.embed_tokens.weight"):
            new[:rows] = 0
        new[:rows, :columns] = old
        parts.append(new)
    return torch.cat(parts)
