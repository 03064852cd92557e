"""Faster answers on a GPU: the step that writes one token as one compiled graph, and parts of reading the prompt
compiled too.

A step of the official model launches hundreds of small kernels, and a fast GPU finishes each before Python has launched
the next. Compiled and recorded as a CUDA graph, the step is a single launch. That needs a cache whose tensors keep
their size and address.
"""

import contextlib
import threading
from collections.abc import Iterator

import torch
from transformers import StaticCache

from .machine import cudnn_attention
from .phi3_v.modeling_phi3_v import CACHE


class CompiledDecoding:
    """The compiled step of one model and its static cache, for one answer at a time (batch size 1).

    Args:
        model: a `Phi3VForCausalLM`.
        smallest: positions in the smallest cache; a longer chat gets the next power of two, and a new graph.
        backend: as in `torch.compile`; tests use "eager", which needs no compiler.
    """

    def __init__(self, model, smallest: int = 4096, backend="inductor"):
        self._model, self._smallest = model, smallest
        self._forget()
        self._in_use = threading.Lock()
        self._compiled = torch.compile(model.__call__, fullgraph=True, dynamic=False, backend=backend)

    @contextlib.contextmanager
    def reserve(self, positions: int) -> Iterator[dict]:
        """Arguments of `generate` for a prompt and its answer, `positions` tokens together. There are none while
        another answer uses the cache, or for more positions than the model has."""
        if positions > self._model.config.max_position_embeddings or not self._in_use.acquire(blocking=False):
            yield {}
            return
        try:
            yield {CACHE: self._empty_cache(positions), "one_step": self.step}
        except Exception:  # a cache that did not fit into memory must not be used again
            self._forget()
            raise
        finally:
            self._in_use.release()

    def _forget(self):
        self._room, self._cache, self._recorded, self._made_for = 0, None, None, None

    def _empty_cache(self, positions: int) -> StaticCache:
        """An empty cache for at least `positions` tokens: the last one, if it is large enough."""
        config, device, dtype = self._model.config, self._model.device, self._model.dtype
        if self._room < positions or self._made_for != (device, dtype):
            self._forget()  # first, to free its memory
            room = max(self._smallest, 1 << (positions - 1).bit_length())
            cache = StaticCache(config=config, max_cache_len=room)
            head_size = self._model.model.layers[0].self_attn.head_dim
            cache.early_initialization(1, config.num_key_value_heads, head_size, dtype, device)
            recorded = Recorded(self._step, cache) if device.type == "cuda" else None
            # Set together at the end: Ctrl-C before leaves none of them behind.
            self._room, self._cache, self._recorded, self._made_for = room, cache, recorded, (device, dtype)
        self._cache.reset()
        return self._cache

    def step(self, input_ids, position_ids, **kwargs):
        """The model's outputs for one more token, `input_ids` (1, 1); on a GPU the next step overwrites them."""
        step = self._recorded or self._step
        return step(input_ids, position_ids, kwargs[CACHE])

    def _step(self, input_ids, position_ids, cache):
        # No attention_mask: nothing in the cache is padding, and the graph makes the mask from the cache's length.
        return self._compiled(
            input_ids=input_ids,
            position_ids=position_ids,
            use_cache=True,
            logits_to_keep=1,
            **{CACHE: cache},
        )


class Recorded:
    """One step recorded as a CUDA graph: a replay skips the guards that compiled code checks first."""

    def __init__(self, step, cache: StaticCache):
        device = cache.layers[0].device
        self._input_ids, self._position_ids = torch.zeros(2, 1, 1, dtype=torch.long, device=device)
        self._graph, inputs = torch.cuda.CUDAGraph(), (self._input_ids, self._position_ids, cache)
        with torch.no_grad(), torch.cuda.device(device), cudnn_attention():
            for _ in range(2):  # warms up: compiles, and makes what is made at the first call
                step(*inputs)
            # Other threads may go on using the GPU.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._outputs = step(*inputs)

    def __call__(self, input_ids, position_ids, cache):
        self._input_ids.copy_(input_ids)
        self._position_ids.copy_(position_ids)
        self._graph.replay()
        return self._outputs


def compile_prompts(model, backend="inductor"):
    """Compiles the layers of the vision tower and the `mlp` of the decoder's layers, for prompts and pictures of any
    size. (For their small norms, checking the guards would take longer than compiling saves.)"""
    for part in (*model.vision_tower.encoder.layers, *(layer.mlp for layer in model.model.layers)):
        part.compile(dynamic=True, backend=backend)
