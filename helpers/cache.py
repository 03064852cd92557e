"""A cache that grows in place: transformers' own copies all keys and values for each new token."""

import torch
from transformers.cache_utils import Cache, DynamicLayer

from .phi3_v.modeling_phi3_v import CACHE

#: Spare positions for tokens to come; with the official model in float32, 64 take 50 MB.
SPARE = 64


class GrowingLayer(DynamicLayer):
    """A `DynamicLayer` whose `keys` and `values` (batch, heads, positions, head size) are views of larger buffers."""

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor):
        super().lazy_initialization(key_states, value_states)
        self.all_keys, self.all_values = self.keys, self.values  # the whole buffers

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.all_keys, self.keys = appended(self.all_keys, self.keys, key_states)
        self.all_values, self.values = appended(self.all_values, self.values, value_states)
        return self.keys, self.values


def appended(whole: torch.Tensor, past: torch.Tensor, new: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Append `new` to `past` along the positions. Returns the buffer that holds both, and its filled part.

    The buffer is `whole` if `past` is its beginning, there is room, and it may be written to; else it is a new one.
    """
    length = past.shape[-2] if past.numel() else 0
    total = length + new.shape[-2]
    is_its_beginning = length and past.data_ptr() == whole.data_ptr() and past.stride() == whole.stride()
    frozen = torch.is_grad_enabled() or (whole.is_inference() and not torch.is_inference_mode_enabled())
    if frozen or not is_its_beginning or past.shape[:2] != whole.shape[:2] or total > whole.shape[-2]:
        whole = new.new_empty(*new.shape[:2], total + SPARE, new.shape[-1])
        if length:
            whole[:, :, :length] = past
    whole[:, :, length:total] = new
    return whole, whole[:, :, :total]


def growing_cache() -> Cache:
    """An empty cache for `generate`."""
    return Cache(layer_class_to_replicate=GrowingLayer)


def best_cache(model) -> dict:
    """Arguments for `generate`: this cache on a CPU; none on other devices, where it was never tried, or if the
    model's generation config names a cache implementation."""
    asked = model.generation_config.cache_implementation
    return {CACHE: growing_cache()} if model.device.type == "cpu" and not asked else {}
