"""Compiled decoding gives the usual answers, with a single graph."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from phi3_v_data import noise_image
from torch._dynamo.testing import CompileCounter
from transformers import StaticCache

from helpers import generate, generate_many, load_model_and_processor, stream
from helpers.compiled import CompiledDecoding, Recorded, compile_prompts
from helpers.generation import FIXED_SETTINGS, token_by_token
from helpers.machine import cudnn_attention, disable_cudnn_attention
from helpers.phi3_v.modeling_phi3_v import CACHE, clear_cache

SHORT_CONTEXT = 512  # of the golden checkpoint


@pytest.fixture
def graphs(tiny):
    """Counts the graphs of the tiny model, which decodes by compiled steps meanwhile."""
    counter = CompileCounter()
    torch._dynamo.reset()
    tiny[0].compiled_decoding = CompiledDecoding(tiny[0], smallest=2 * SHORT_CONTEXT, backend=counter)
    yield counter
    del tiny[0].compiled_decoding


def usual(tiny, *args, **kwargs):
    """The answer without compiled steps."""
    compiled = tiny[0].__dict__.pop("compiled_decoding")
    try:
        return generate(*tiny, *args, **kwargs)
    finally:
        tiny[0].compiled_decoding = compiled


def test_one_graph_for_twenty_questions(tiny, graphs):
    """Prompts of mixed length, with no, one or two pictures."""
    for i in range(20):
        pictures = [noise_image(60 + 9 * i, 90, j) for j in range(i % 3)]
        asked = ("word " * (1 + 4 * i), pictures)
        assert generate(*tiny, *asked, max_new_tokens=6) == usual(tiny, *asked, max_new_tokens=6)
    assert graphs.frame_count == 1


def test_compiled_prompts_of_any_size(tiny, graphs):
    """Two graphs, for a layer of the tower and for an `mlp`; and, as before, one for the step, with an `mlp` in it."""
    asked = [("word " * (1 + 4 * i), [noise_image(60, 60 + 40 * i, j) for j in range(i % 3)]) for i in range(9)]
    expected = [usual(tiny, *pair, max_new_tokens=6) for pair in asked]
    counter = CompileCounter()
    compile_prompts(tiny[0], backend=counter)
    try:
        assert [generate(*tiny, *pair, max_new_tokens=6) for pair in asked] == expected
        assert (counter.frame_count, graphs.frame_count) == (2, 1)
        assert generate_many(*tiny, *zip(*asked), max_new_tokens=6, progress=False) == expected
    finally:
        for module in tiny[0].modules():
            module._compiled_call_impl = None


def test_an_answer_that_passes_the_short_context(tiny, graphs):
    """The cache is rebuilt with the pictures, as without compiled steps."""
    asked = ("word " * (SHORT_CONTEXT - 330), [noise_image(90, 90)])
    answer = generate(*tiny, *asked, max_new_tokens=40)
    assert answer.prompt_tokens < SHORT_CONTEXT < answer.prompt_tokens + answer.new_tokens
    assert answer == usual(tiny, *asked, max_new_tokens=40)


def test_a_longer_chat_gets_a_larger_cache(tiny, graphs):
    first, second = "word " * 9, "word " * 3 * SHORT_CONTEXT
    for question in (first, second, first):
        assert generate(*tiny, question, max_new_tokens=6) == usual(tiny, question, max_new_tokens=6)
    assert graphs.frame_count == 2


def test_a_cache_is_used_again_as_long_as_everything_fits(tiny):
    decoding, caches = CompiledDecoding(tiny[0], smallest=8, backend="eager"), []
    for positions in (5, 8, 9, 16, 8, 17):
        with decoding.reserve(positions) as arguments:
            caches.append(arguments[CACHE])
    assert [cache.layers[0].keys.shape[-2] for cache in caches] == [8, 8, 16, 16, 16, 32]
    assert len(set(map(id, caches))) == 3


def test_a_question_after_a_stream_that_was_closed(tiny, graphs):
    pieces = stream(*tiny, "word " * 30, noise_image(90, 90), max_new_tokens=30)
    next(pieces)
    pieces.close()
    asked = ("What is this?", noise_image(60, 90))
    assert generate(*tiny, *asked, max_new_tokens=20) == usual(tiny, *asked, max_new_tokens=20)


def test_two_answers_at_once(tiny, graphs):
    """The second one has a cache of its own; the next has the compiled step again, however the last one ended."""
    asked = [("What is this?", noise_image(90, 90)), ("And this, then?", noise_image(60, 90, 1))]
    alone = [usual(tiny, *pair, max_new_tokens=12) for pair in asked]
    streams = [stream(*tiny, *pair, max_new_tokens=12) for pair in asked]
    pieces = [next(pieces) for pieces in streams]
    for i in (0, 1):
        assert pieces[i] + "".join(streams[i]) == alone[i]

    def fail(*args):
        raise RuntimeError("something else")

    left = stream(*tiny, *asked[0], max_new_tokens=12)
    next(left)
    left.close()
    with tiny[0].register_forward_hook(fail), pytest.raises(RuntimeError, match="something else"):
        generate(*tiny, *asked[0])
    with tiny[0].compiled_decoding.reserve(100) as reserved:
        assert reserved


def test_a_cache_that_could_not_be_made_is_not_used_again(tiny, graphs, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr("transformers.cache_utils.StaticLayer.lazy_initialization", fail)
    with pytest.raises(RuntimeError, match="Out of memory"):
        generate(*tiny, "Hello", max_new_tokens=tiny[0].config.max_position_embeddings // 2)
    monkeypatch.undo()
    assert generate(*tiny, "Hello", max_new_tokens=4) == usual(tiny, "Hello", max_new_tokens=4)


def test_the_cache_of_an_answer_that_failed_is_not_used_again(tiny, graphs):
    compiled = tiny[0].compiled_decoding
    with pytest.raises(RuntimeError, match="CUDA out of memory"), compiled.reserve(100):
        raise RuntimeError("CUDA out of memory")
    assert compiled._room == 0


def test_ctrl_c_while_a_cache_is_made(tiny, graphs, monkeypatch):
    """A half-made cache is not used: neither a cache without its graph nor one that is too small."""

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    compiled = tiny[0].compiled_decoding
    with monkeypatch.context() as patched:
        patched.setattr("transformers.StaticCache.early_initialization", interrupt)
        with pytest.raises(KeyboardInterrupt):
            generate(*tiny, "Hello", max_new_tokens=4)
    assert compiled._room == 0
    assert generate(*tiny, "Hello", max_new_tokens=4) == usual(tiny, "Hello", max_new_tokens=4)


def test_a_model_that_was_moved_gets_another_cache(golden_checkpoint):
    model, processor = load_model_and_processor(golden_checkpoint, num_crops=1, device="cpu")
    model.compiled_decoding = CompiledDecoding(model, smallest=2 * SHORT_CONTEXT, backend="eager")
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        model.to(dtype)
        assert generate(model, processor, "Hello", max_new_tokens=4).new_tokens == 4


def test_what_is_longer_than_the_model_is_not_compiled(tiny, graphs):
    positions = tiny[0].config.max_position_embeddings
    with tiny[0].compiled_decoding.reserve(positions) as reserved:
        assert reserved[CACHE].get_max_length() >= positions
    with tiny[0].compiled_decoding.reserve(positions + 1) as reserved:
        assert reserved == {}


def test_only_the_compiled_step_uses_cudnn_attention(monkeypatch):
    """The loader turns it off on a GPU, as the lengths of other steps change each time."""
    flags = [True]
    monkeypatch.setattr(torch.backends.cuda, "cudnn_sdp_enabled", lambda: flags[-1])
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", flags.append)
    disable_cudnn_attention()
    assert flags == [True, False]
    with cudnn_attention():
        assert flags == [True, False, True]
    assert flags == [True, False, True, False]


def test_a_step_is_launched_before_the_previous_token_is_read(tiny, graphs):
    """A GPU then never waits for Python; the first token comes at once, and at the end there is one step too many."""
    model, processor = tiny
    begun = []
    with model.compiled_decoding.reserve(100) as reserved:
        step = reserved.pop("one_step")
        reserved["one_step"] = lambda **inputs: (begun.append(inputs), step(**inputs))[1]
        inputs = processor("<|user|>\nWhat is this?<|end|>\n<|assistant|>\n")
        settings = {"do_sample": False, "max_new_tokens": 5, "custom_generate": token_by_token}
        tokens = model.generate(**inputs, **reserved, **FIXED_SETTINGS, **settings)
        assert [len(begun) for _ in tokens] == [0, 2, 3, 4, 5]


def test_a_recorded_step(tiny, graphs, monkeypatch):
    """As on a GPU: the inputs keep their place, and each step overwrites the outputs of the last."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", SimpleNamespace)
    for name in ("graph", "device"):
        monkeypatch.setattr(torch.cuda, name, lambda *args, **kwargs: contextlib.nullcontext())
    compiled = tiny[0].compiled_decoding
    cache = compiled._empty_cache(100)
    recorded = compiled._recorded = Recorded(compiled._step, cache)

    def replay():
        outputs = compiled._step(recorded._input_ids, recorded._position_ids, cache)
        recorded._outputs.logits.copy_(outputs.logits)

    recorded._graph.replay = replay
    for asked in (("What is this?", noise_image(90, 90)), ("And this, then?", noise_image(60, 90, 1))):
        assert generate(*tiny, *asked, max_new_tokens=12) == usual(tiny, *asked, max_new_tokens=12)
    assert graphs.frame_count == 1


def test_by_default_nothing_is_compiled(golden_checkpoint):
    model, _ = load_model_and_processor(golden_checkpoint, device="cpu")
    assert not hasattr(model, "compiled_decoding")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "cpu"}, "compile=True needs a CUDA GPU"),
        ({"device": "cuda", "attn_implementation": "flash_attention_2"}, "compile=True works with"),
    ],
)
def test_what_cannot_be_compiled(golden_checkpoint, settings, message):
    """A static cache has empty positions, which flash-attn would attend to."""
    with pytest.raises(ValueError, match=message):
        load_model_and_processor(golden_checkpoint, compile=True, dtype=torch.float32, **settings)


def test_a_static_cache_is_emptied_in_place(tiny):
    """A recorded graph goes on reading and writing where the tensors were."""
    config = tiny[0].config
    cache, states = StaticCache(config=config, max_cache_len=8), torch.ones(1, config.num_key_value_heads, 3, 4)
    keys, values = (part.data_ptr() for part in cache.update(states, states, 0))
    clear_cache(cache)
    assert cache.get_seq_length() == 0
    assert [part.data_ptr() for part in cache.update(states, states, 0)] == [keys, values]
