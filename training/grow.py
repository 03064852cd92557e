"""Initialises a wider or deeper decoder, or a deeper vision tower, from a smaller one.

As in Net2Net (Chen et al., 2016, https://arxiv.org/abs/1511.05641) the old channels compute what they did before; the
new ones begin at random, and nothing reads them until training changes that. New layers go between and after the old
ones and add nothing until training changes that.
"""

import re

import torch

#: Weights that are several equal blocks, one below the other; each block grows separately.
STACKED = {"qkv_proj": 3, "gate_up_proj": 2}
#: The name of a layer of the decoder or the tower, and of the weights that compute its outputs.
_LAYER = re.compile(r"(.*\blayers\.)(\d+)\.")
_OUTPUTS = ("o_proj.weight", "down_proj.weight", "out_proj.weight", "out_proj.bias", "fc2.weight", "fc2.bias")


def grown(weights: dict[str, torch.Tensor], into: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`weights`, grown to the shapes of `into`, those of a larger new model; the head size must be the same.

    Raises `ValueError` if `into` has fewer layers: some of what `weights` know would be lost.
    """
    few, many = _layers(weights), _layers(into)
    for stack, layers in few.items():
        if layers > many[stack]:
            raise ValueError(f"{stack} has {layers} layers and does not fit into {many[stack]}: a model can only grow.")
    # The number that each old layer has in the new stack.
    place = {stack: [i * many[stack] // layers for i in range(layers)] for stack, layers in few.items()}
    weights = {_LAYER.sub(lambda old: f"{old[1]}{place[old[1]][int(old[2])]}.", name): w for name, w in weights.items()}
    wide = {name: _grown(name, weight, into[name].shape) for name, weight in weights.items()}
    silent = {
        name: torch.zeros_like(weight)
        for name, weight in into.items()
        if (layer := _LAYER.match(name))
        and int(layer[2]) not in place.get(layer[1], range(many[layer[1]]))
        and name.endswith(_OUTPUTS)
    }
    return wide | silent


def _layers(weights: dict[str, torch.Tensor]) -> dict[str, int]:
    """The number of layers in each stack, by the prefix of its weights' names."""
    layers: dict[str, int] = {}
    for name in weights:
        if layer := _LAYER.match(name):
            layers[layer[1]] = max(layers.get(layer[1], 0), 1 + int(layer[2]))
    return layers


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
