"""helpers/cache.py: the same keys and values as in transformers' own cache, without copying them for each token."""

from types import SimpleNamespace

import pytest
import torch
from phi3_v_data import tiny_model
from PIL import Image
from transformers.cache_utils import DynamicCache

import helpers
from helpers.cache import SPARE, GrowingLayer, best_cache, growing_cache
from helpers.phi3_v.modeling_phi3_v import CACHE


def states(positions: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, positions, 4)


def same(ours, theirs) -> bool:
    return all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("lengths", [[5] + [1] * 10, [1] * (2 * SPARE + 3), [3, SPARE, 1], [7, 3 * SPARE, 2, 1]])
def test_it_holds_what_the_other_one_holds(lengths):
    ours, theirs = growing_cache(), DynamicCache()
    for positions in lengths:
        new = states(positions), states(positions)
        assert same(ours.update(*new, 0), theirs.update(*new, 0))
        assert ours.get_seq_length() == theirs.get_seq_length()


def test_a_token_is_appended_in_place():
    """Nothing is moved as long as there is room."""
    cache, places = growing_cache(), set()
    for positions in [10] + [1] * SPARE:
        with torch.no_grad():
            keys, values = cache.update(states(positions), states(positions), 0)
        places.add((keys.data_ptr(), values.data_ptr()))
    assert len(places) == 1
    with torch.no_grad():
        keys, _ = cache.update(states(1), states(1), 0)
    assert keys.data_ptr() not in {place for pair in places for place in pair}


def keep(layer, part: tuple):
    """Leaves only views of some rows or positions."""
    layer.keys, layer.values = layer.keys[part], layer.values[part]


@pytest.mark.parametrize(
    "change",
    [
        lambda cache: cache.crop(-3),
        lambda cache: cache.batch_select_indices(torch.tensor([1])),
        lambda cache: cache.batch_repeat_interleave(2),
        lambda cache: cache.reset(),
        lambda cache: keep(cache.layers[0], (slice(1),)),
        lambda cache: keep(cache.layers[0], (..., slice(2, None), slice(None))),
        lambda cache: keep(cache.layers[0], (..., slice(None, None, 2), slice(None))),
        lambda cache: None,
    ],
)
@torch.no_grad()
def test_it_can_be_changed_between_two_tokens(change):
    ours, theirs, first = growing_cache(), DynamicCache(), (states(8), states(8))
    for cache in (ours, theirs):
        cache.update(*first, 0)
        change(cache)
    batch = theirs.layers[0].keys.shape[0] if theirs.get_seq_length() else 2
    for _ in range(3):
        new = states(1, batch), states(1, batch)
        assert same(ours.update(*new, 0), theirs.update(*new, 0))


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"prompt_lookup_num_tokens": 3}])
@pytest.mark.parametrize("length", [37, 60])  # the second one passes the short context of 64 and is rebuilt
def test_the_model_says_the_same(settings, length):
    model, ids = tiny_model(), torch.arange(3, 3 + length)[None]
    said = [
        model.generate(input_ids=ids, **{CACHE: cache}, max_new_tokens=SPARE + 9, do_sample=False, **settings)
        for cache in (growing_cache(), DynamicCache(config=model.config))
    ]
    assert torch.equal(*said)


def test_what_was_written_in_inference_mode_is_left_alone():
    """And so is what a gradient still needs."""
    cache = growing_cache()
    with torch.inference_mode():
        keys, _ = cache.update(states(3), states(3), 0)
    with torch.no_grad():
        assert cache.update(states(1), states(1), 0)[0].data_ptr() != keys.data_ptr()
    places = {cache.update(states(1), states(1), 0)[0].data_ptr() for _ in range(3)}
    assert len(places) > 1


def test_a_stream_may_leave_inference_mode():
    loaded = helpers.load_model_and_processor(helpers.POCKET, device="cpu")
    pieces = helpers.stream(*loaded, "Describe this picture.", Image.new("RGB", (300, 200), "white"))
    with torch.inference_mode():
        first = next(pieces)
    assert first + "".join(pieces)


def test_it_is_for_the_cpu():
    model = tiny_model()
    cache = best_cache(model)[CACHE]
    cache.update(states(1), states(1), 0)
    assert isinstance(cache.layers[0], GrowingLayer)
    elsewhere = SimpleNamespace(device=torch.device("mps"), generation_config=model.generation_config)
    assert best_cache(elsewhere) == {}
    model.generation_config.cache_implementation = "static"  # who asks for another one gets it
    assert best_cache(model) == {}
