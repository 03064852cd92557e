"""Answers on a GPU without waiting for Python: the step that writes one token as one compiled graph, and parts of what
comes before it.

A step of the official model starts hundreds of small kernels, and a fast GPU is done with each before Python has
started the next one. Compiled and recorded as a CUDA graph, it is started once. That needs a cache whose tensors keep
their size and their place.
"""

import contextlib
import threading
from collections.abc import Iterator

import torch
from transformers import StaticCache

from .machine import cudnn_attention
from .phi3_v.modeling_phi3_v import CACHE


class CompiledDecoding:
    """The compiled step of one model and the cache it works on, lent to one answer at a time.

    Args:
        model: a `Phi3VForCausalLM`, one question at a time.
        smallest: positions of the smallest cache; a longer chat gets one of the next power of two, and a new graph.
        backend: what `torch.compile` takes; tests use "eager", which needs no compiler.
    """

    def __init__(self, model, smallest: int = 4096, backend="inductor"):
        self._model, self._smallest = model, smallest
        self._forget()
        self._lent = threading.Lock()
        self._compiled = torch.compile(model.__call__, fullgraph=True, dynamic=False, backend=backend)

    @contextlib.contextmanager
    def lend(self, positions: int) -> Iterator[dict]:
        """Arguments of `generate` for a prompt and answer of so many positions together; none while another answer has
        the cache, or for more positions than the model has."""
        if positions > self._model.config.max_position_embeddings or not self._lent.acquire(blocking=False):
            yield {}
            return
        try:
            yield {CACHE: self._empty_cache(positions), "one_step": self.step}
        except Exception:  # one that is too large for the memory must not be lent again
            self._forget()
            raise
        finally:
            self._lent.release()

    def _forget(self):
        self._room, self._cache, self._recorded, self._made_for = 0, None, None, None

    def _empty_cache(self, positions: int) -> StaticCache:
        """An empty cache for so many positions or more: the last one, if it is large enough."""
        config, device, dtype = self._model.config, self._model.device, self._model.dtype
        if self._room < positions or self._made_for != (device, dtype):
            self._forget()  # first, for it takes memory
            room = max(self._smallest, 1 << (positions - 1).bit_length())
            cache = StaticCache(config=config, max_cache_len=room)
            head_size = self._model.model.layers[0].self_attn.head_dim
            cache.early_initialization(1, config.num_key_value_heads, head_size, dtype, device)
            recorded = Recorded(self._step, cache) if device.type == "cuda" else None
            # All at once: after Ctrl-C in between there is none of them.
            self._room, self._cache, self._recorded, self._made_for = room, cache, recorded, (device, dtype)
        self._cache.reset()
        return self._cache

    def step(self, input_ids, position_ids, **kwargs):
        """The model's outputs for one more token, `input_ids` (1, 1); on a GPU the next step overwrites them."""
        step = self._recorded or self._step
        return step(input_ids, position_ids, kwargs[CACHE])

    def _step(self, input_ids, position_ids, cache):
        # All that is in the cache belongs to the row, so that the graph makes the mask from its length.
        return self._compiled(
            input_ids=input_ids,
            position_ids=position_ids,
            use_cache=True,
            logits_to_keep=1,
            **{CACHE: cache},
        )


class Recorded:
    """What one step starts on a GPU, as a CUDA graph: it is played again without the checks before compiled code."""

    def __init__(self, step, cache: StaticCache):
        device = cache.layers[0].device
        self._input_ids, self._position_ids = torch.zeros(2, 1, 1, dtype=torch.long, device=device)
        self._graph, inputs = torch.cuda.CUDAGraph(), (self._input_ids, self._position_ids, cache)
        with torch.no_grad(), torch.cuda.device(device), cudnn_attention():
            for _ in range(2):  # compiles, and plans what is planned at the first call
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
    """Compiles, for prompts and pictures of any size, the layers of the vision tower and the `mlp` of the decoder's.
    (Their norms, so small, wait longer for the checks before compiled code than they gain by it.)"""
    for part in (*model.vision_tower.encoder.layers, *(layer.mlp for layer in model.model.layers)):
        part.compile(dynamic=True, backend=backend)
