"""Decoding on a GPU without waiting for Python: the step that writes one token as one compiled graph.

A step of the official model starts hundreds of small kernels, and a fast GPU is done with each before Python has
started the next one. Compiled, with CUDA graphs, it is started once. That needs a cache whose tensors keep their size
and their place.
"""

import contextlib
import threading
from collections.abc import Iterator

import torch
from transformers import StaticCache


class CompiledDecoding:
    """The compiled step of one model and the cache it works on, lent to one answer at a time.

    Args:
        model: a `Phi3VForCausalLM`, one question at a time.
        smallest: positions of the smallest cache; a longer chat gets one of the next power of two, and a new graph.
        backend: what `torch.compile` takes; tests use "eager", which needs no compiler.
    """

    def __init__(self, model, smallest: int = 4096, backend="inductor"):
        self._config, self._smallest, self._room, self._cache = model.config, smallest, 0, None
        self._lent = threading.Lock()
        mode = {"mode": "reduce-overhead"} if backend == "inductor" else {}
        self._step = torch.compile(model.__call__, fullgraph=True, dynamic=False, backend=backend, **mode)

    @contextlib.contextmanager
    def lend(self, positions: int) -> Iterator[dict]:
        """Arguments of `generate` for an answer of so many positions; none while another answer has the cache."""
        if not self._lent.acquire(blocking=False):
            yield {}
            return
        try:
            yield {"past_key_values": self._empty_cache(positions), "one_step": self.step}
        except Exception:  # one that is too large for the memory must not be lent again
            self._room, self._cache = 0, None
            raise
        finally:
            self._lent.release()

    def _empty_cache(self, positions: int) -> StaticCache:
        """An empty cache for so many positions or more: the last one, if it is large enough."""
        positions = min(positions, self._config.max_position_embeddings)
        if self._room < positions:
            self._room = max(self._smallest, 1 << (positions - 1).bit_length())
            self._cache = StaticCache(config=self._config, max_cache_len=self._room)
        else:
            self._cache.reset()
        return self._cache

    def step(self, input_ids, position_ids, past_key_values, **kwargs):
        """The model's outputs for one more token, `input_ids` (1, 1)."""
        # All that is in the cache belongs to the row, so that the graph makes the mask from its length.
        with planned_attention():
            return self._step(
                input_ids=input_ids,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=True,
                logits_to_keep=1,
            )


@contextlib.contextmanager
def planned_attention():
    """Lets cuDNN's attention be used, which the loader turns off: here it is planned once, for the cache's one size."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
