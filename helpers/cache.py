"""A cache that grows in place: transformers' own copies all keys and values for each new token."""

import torch
from transformers.cache_utils import Cache, DynamicLayer

#: Positions of room for what comes; of the official weights in float32, 64 take 50 MB.
SPARE = 64


class GrowingLayer(DynamicLayer):
    """A `DynamicLayer` whose `keys` and `values` (batch, heads, positions, head size) have room behind them."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys, self.values = appended(self.keys, key_states), appended(self.values, value_states)
        return self.keys, self.values


def appended(past: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Both along the positions: in place if `past` is the beginning of a larger tensor with room for `new`."""
    batch, heads, added, size = new.shape
    length = past.shape[-2] if past.numel() else 0
    room = past.stride(1) // size if length else 0  # the positions of the tensor that `past` is a part of
    if length + added <= room:
        whole = past.as_strided((batch, heads, room, size), past.stride())
    else:
        whole = new.new_empty(batch, heads, length + added + SPARE, size)
        if length:
            whole[:, :, :length] = past
    whole[:, :, length : length + added] = new
    return whole[:, :, : length + added]


def growing_cache() -> Cache:
    """An empty cache for `generate(past_key_values=...)`."""
    return Cache(layer_class_to_replicate=GrowingLayer)


def best_cache(model) -> dict:
    """What to give to `generate`: this cache on a CPU, and nothing elsewhere, where it was never tried."""
    return {"past_key_values": growing_cache()} if model.device.type == "cpu" else {}
