"""helpers/cache.py: the same keys and values as in transformers' own cache, without copying them for each token."""

from types import SimpleNamespace

import pytest
import torch
from phi3_v_data import tiny_model
from transformers.cache_utils import DynamicCache

from helpers.cache import SPARE, GrowingLayer, best_cache, growing_cache


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


def test_a_token_is_written_behind_the_others():
    """Nothing that is there is moved, as long as there is room."""
    cache, places = growing_cache(), set()
    for positions in [10] + [1] * SPARE:
        keys, values = cache.update(states(positions), states(positions), 0)
        places.add((keys.data_ptr(), values.data_ptr()))
    assert len(places) == 1
    keys, _ = cache.update(states(1), states(1), 0)
    assert keys.data_ptr() not in {place for pair in places for place in pair}


@pytest.mark.parametrize(
    "change",
    [
        lambda cache: cache.crop(-3),
        lambda cache: cache.batch_select_indices(torch.tensor([1])),
        lambda cache: cache.batch_repeat_interleave(2),
        lambda cache: cache.reset(),
        lambda cache: None,
    ],
)
def test_it_can_be_changed_between_two_tokens(change):
    ours, theirs, first = growing_cache(), DynamicCache(), (states(8), states(8))
    for cache in (ours, theirs):
        cache.update(*first, 0)
        change(cache)
    batch = theirs.layers[0].keys.shape[0] if theirs.get_seq_length() else 2
    for _ in range(3):
        new = states(1, batch), states(1, batch)
        assert same(ours.update(*new, 0), theirs.update(*new, 0))


def test_the_model_says_the_same():
    model, ids = tiny_model(), torch.arange(3, 40)[None]
    said = [
        model.generate(input_ids=ids, past_key_values=cache, max_new_tokens=12, do_sample=False)
        for cache in (growing_cache(), DynamicCache(config=model.config))
    ]
    assert torch.equal(*said)


def test_it_is_for_the_cpu():
    cache = best_cache(tiny_model())["past_key_values"]
    cache.update(states(1), states(1), 0)
    assert isinstance(cache.layers[0], GrowingLayer)
    assert best_cache(SimpleNamespace(device=torch.device("mps"))) == {}
